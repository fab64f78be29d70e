"""The list of Cython extensions; everything else is in pyproject.toml.

``RAIDFS_DEBUG=1`` builds the core with bounds checks, assertions and the address and undefined-behaviour
sanitizers; ``scripts/test`` runs the suite once that way. ``RAIDFS_TSAN=1`` builds it with the thread sanitizer, for
``scripts/race-check``.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("RAIDFS_DEBUG") == "1"

if DEBUG:
    compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-DRAIDFS_DEBUG=1"]
    link_args = ["-fsanitize=address,undefined"]
elif os.environ.get("RAIDFS_TSAN") == "1":
    compile_args = ["-O1", "-g", "-fno-strict-aliasing", "-fsanitize=thread"]
    link_args = ["-fsanitize=thread"]
else:
    compile_args = ["-O2", "-g1", "-fno-strict-aliasing"]
    link_args = []

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
}

extensions = [
    Extension(
        name,
        [path],
        extra_compile_args=[*compile_args, "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"],
        extra_link_args=[*link_args, "-pthread"],
    )
    for name, path in [
        ("raidfs._core", "raidfs/_core.pyx"),
        ("raidfs._backend_threads", "raidfs/_backend_threads.pyx"),
        ("raidfs._backend_uring", "raidfs/_backend_uring.pyx"),
        ("raidfs._plane", "raidfs/_plane.pyx"),
        *([("debug_probe", "tests/core/debug_probe.pyx")] if DEBUG else []),
    ]
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives=DIRECTIVES,
        build_dir="build/cython-debug" if DEBUG else "build/cython",
    )
)

"""Imports run one way, and a command that only asks a node is quick to start."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import raidfs

PACKAGE = pathlib.Path(raidfs.__file__).parent

# What each part may import of ours, besides itself. From the bottom: facts and pure codecs; the core and what carries
# its operations out; the lock managers; the array, the cluster; the node, where they meet; the mount; the command line.
BASE = frozenset({"errors", "units"})
ALLOWED: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "units": frozenset({"errors"}),
    "runtime": BASE,
    "format": BASE,
    "_core": frozenset(),
    "_backend_threads": frozenset({"_core"}),
    "_backend_uring": frozenset({"_core"}),
    "_plane": frozenset({"_core", "_backend_threads", "_backend_uring"}),
    "lock": BASE | {"runtime"},
    "control": BASE,
    "array": BASE | {"runtime", "format", "_core"},
    "cluster": BASE | {"runtime", "format", "lock"},
    "node": BASE | {"runtime", "format", "lock", "control", "array", "cluster", "_core", "_backend_threads"},
    "mount": BASE | {"runtime", "control", "node", "_core", "_backend_threads", "_backend_uring", "_plane"},
    "cli": BASE | {"runtime", "format", "lock", "control", "array", "node", "mount"},
    "sim": BASE | {"runtime", "format", "lock", "control", "array", "cluster", "_core", "node"},
    "__main__": frozenset({"cli"}),
}


def _part_of(module: str) -> str:
    # ``raidfs.lock.api`` belongs to lock; a module of its own beside the packages is a piece of the node.
    name = module.split(".")[1]
    return name if name in ALLOWED or (PACKAGE / name).is_dir() else "node"


def _modules() -> Iterator[tuple[str, pathlib.Path]]:
    for path in sorted(PACKAGE.rglob("*.py*")):
        if path.suffix in {".py", ".pyx", ".pxd"}:
            words = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield ".".join(words).removesuffix(".__init__"), path


def _imports(path: pathlib.Path) -> Iterator[str]:
    if path.suffix != ".py":
        yield from re.findall(r"^\s*(?:from|import|cimport)\s+(raidfs\.[\w.]+)", path.read_text(), re.MULTILINE)
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "raidfs":
                yield from (f"raidfs.{alias.name}" for alias in node.names if alias.name != "__version__")
            else:
                yield str(node.module)


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(*found, id=found[0] + found[1].suffix) for found in _modules()]
)
def test_a_module_imports_only_what_stands_below_it(module: str, path: pathlib.Path) -> None:
    if module == "raidfs":
        assert not [name for name in _imports(path) if name.startswith("raidfs")]
        return
    part = _part_of(module)
    allowed = ALLOWED[part] | {part}
    used = {_part_of(name) for name in _imports(path) if name.startswith("raidfs.")}
    assert used <= allowed, f"{module} is part of {part!r}, which must not import {sorted(used - allowed)}"


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["--version"], ["status"], ["umount", "/nowhere"], ["examine", "/nowhere"], ["mount", "--help"]),
        *(["wait", "/nowhere"], ["check", "--wait", "/nowhere"], ["add", "/nowhere", "c.img"]),
    ],
)
def test_a_command_that_is_no_node_imports_neither_trio_nor_pyfuse3_nor_rich(
    words: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    program = f"""
import sys
from raidfs.cli.main import main
try:
    main({words!r})
except SystemExit:
    pass
print(sorted({{"trio", "pyfuse3", "rich", "raidfs._core"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(*found, id=found[0] + found[1].suffix) for found in _modules()]
)
def test_every_module_says_what_it_is(module: str, path: pathlib.Path) -> None:
    text = path.read_text()
    if path.suffix == ".py":
        assert module == "raidfs.__main__" or ast.get_docstring(ast.parse(text)), path
    else:
        assert text.startswith(('"""', "#")), path


def test_the_package_is_typed_and_every_compiled_module_has_a_stub() -> None:
    assert (PACKAGE / "py.typed").exists()
    for path in PACKAGE.glob("*.pyx"):
        assert path.with_suffix(".pyi").exists(), path

"""What a figure must not be separated from: host, kernel, programs, medium, commit."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import subprocess
from importlib import metadata


def host_facts() -> dict[str, str | int | float]:
    """Return the facts of this machine and its programs; nothing that names the machine itself."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "system": _os_release(),
        "python": platform.python_version(),
        "pyfuse3": metadata.version("pyfuse3"),
        "trio": metadata.version("trio"),
        "raidfs": metadata.version("raidfs"),
        "fio": first_line("fio", "--version"),
        "qemu_storage_daemon": first_line("qemu-storage-daemon", "--version"),
        "commit": first_line("git", "rev-parse", "--short=12", "HEAD"),
        "tree_is_modified": int(bool(first_line("git", "status", "--porcelain", "--", "raidfs", "setup.py"))),
    }


def medium_facts(directory: pathlib.Path) -> dict[str, str]:
    """Return the file system below ``directory`` and, where it has one, the model of its device."""
    found = first_line("findmnt", "-n", "-o", "FSTYPE,SOURCE", "--target", str(directory)).split()
    file_system, source = (*found, "", "")[:2]
    model = pathlib.Path("/sys/class/block", pathlib.Path(source).name, "device/model")
    return {"file_system": file_system, "device": _text(model) or pathlib.Path(source).name}


def load_average() -> float:
    """Return the load of the last minute: who else used the machine."""
    return round(os.getloadavg()[0], 2)


def host_kind() -> str:
    """Return a name for machines like this one, fit for a file name: ``2cpu-amd-epyc``."""
    words = re.findall(r"[a-z]+", cpu_model().lower().replace("(r)", "").replace("(tm)", ""))
    return "-".join([f"{os.cpu_count()}cpu", *words[:2]])


def cpu_model() -> str:
    """Return the processor's name as the kernel tells it."""
    match = re.search(r"^model name\s*:\s*(.+)$", _text(pathlib.Path("/proc/cpuinfo")), re.MULTILINE)
    return match.group(1) if match else platform.machine()


def first_line(*command: str) -> str:
    """Return the first line that a program prints, or nothing if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _os_release() -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(pathlib.Path("/etc/os-release")), re.MULTILINE)
    return match.group(1) if match else platform.system()


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

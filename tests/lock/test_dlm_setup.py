"""What ``--lock dlm`` needs, and what it says when that is not there; none of this needs a DLM."""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys

import pytest

from raidfs.errors import (
    ControldNotRunning,
    DlmDenied,
    DlmDeviceMissing,
    DlmError,
    DlmModuleMissing,
    LockError,
    MissingLibrary,
)
from raidfs.lock.autostart import open_manager
from raidfs.lock.corosync import ClusterFacts, cluster_facts
from raidfs.lock.dlm_setup import CONTROL_PATH, check_kernel, controld_pid, parse_config, read_config, why_unfenced
from raidfs.lock.libdlm import Libdlm
from raidfs.runtime import TrioRuntime

# As dlm_controld 4.2 prints it.
DUMP = """\
daemon_debug=0
log_debug=1 (dlm.conf)
protocol=detect
enable_fencing=1 (dlm.conf)
enable_startup_fencing=1
enable_quorum_lockspace=1

"""
FENCED = {"enable_fencing": "1", "enable_quorum_lockspace": "1"}
THREE_NODES = ClusterFacts("hacluster", 1, quorate=True, two_node=False, wait_for_all=False)
TWO_NODES = ClusterFacts("hacluster", 1, quorate=True, two_node=True, wait_for_all=True)
TWO_ALONE = ClusterFacts("hacluster", 1, quorate=True, two_node=True, wait_for_all=False)


def there(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def test_the_configuration_is_read_as_dlm_tool_prints_it() -> None:
    config = parse_config(DUMP)
    assert config["enable_fencing"] == "1"
    assert config["protocol"] == "detect"
    assert len(config) == 6


def test_a_daemon_that_does_not_tell_its_configuration_gives_none() -> None:
    assert read_config(("/nowhere/dlm_tool",)) is None
    assert read_config((sys.executable, "-c", "raise SystemExit(1)")) is None
    assert read_config((sys.executable, "-c", "print('enable_fencing=1')")) == {"enable_fencing": "1"}


@pytest.mark.parametrize(
    ("facts", "config", "word"),
    [
        (THREE_NODES, FENCED, None),
        (TWO_NODES, FENCED, None),
        (THREE_NODES, FENCED | {"enable_fencing": "0"}, "enable_fencing=0"),
        (THREE_NODES, {}, "enable_fencing"),
        (THREE_NODES, FENCED | {"enable_quorum_lockspace": "0"}, "enable_quorum_lockspace=0"),
        (TWO_ALONE, FENCED, "wait_for_all"),
        (THREE_NODES, None, "does not tell"),
    ],
)
def test_a_cluster_that_leaves_a_node_its_locks_is_named(
    facts: ClusterFacts, config: dict[str, str] | None, word: str | None
) -> None:
    reason = why_unfenced(facts, config)
    assert (reason is None) == (word is None)
    assert word is None or (reason is not None and word in reason)


def test_a_kernel_without_the_dlm_is_told_from_a_missing_device(tmp_path: pathlib.Path) -> None:
    misc, control = tmp_path / "misc", tmp_path / "dlm-control"
    misc.write_text("229 fuse\n")
    with pytest.raises(DlmModuleMissing, match="modprobe dlm"):
        check_kernel(str(misc), str(control))
    misc.write_text("229 fuse\n124 dlm-control\n")
    with pytest.raises(DlmDeviceMissing, match="udev"):
        check_kernel(str(misc), str(control))
    control.touch(0o600)
    check_kernel(str(misc), str(control))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_user_who_may_not_use_the_dlm_is_told_so(tmp_path: pathlib.Path) -> None:
    misc, control = tmp_path / "misc", tmp_path / "dlm-control"
    misc.write_text("124 dlm-control\n")
    control.touch(0o600)
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o055)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            check_kernel(str(misc), str(control))
        except DlmDenied:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_missing_library_is_named_with_its_package() -> None:
    with pytest.raises(MissingLibrary, match=r"libno\.so\.3.*libdlm3"):
        Libdlm("libno.so.3")


@pytest.mark.skipif(there("libcmap.so.4") and there("libvotequorum.so.8"), reason="corosync's libraries are here")
def test_corosyncs_missing_libraries_are_named() -> None:
    with pytest.raises(MissingLibrary, match=r"lib(cmap|votequorum)\.so"):
        cluster_facts()


@pytest.mark.skipif(os.path.exists(CONTROL_PATH), reason="the DLM is here")
def test_a_dlm_controld_that_does_not_run_is_told() -> None:
    with pytest.raises(ControldNotRunning, match="systemctl start dlm"):
        controld_pid()


@pytest.mark.skipif(os.path.exists(CONTROL_PATH), reason="the DLM is here")
async def test_a_machine_without_the_dlm_says_what_is_missing_and_nothing_hangs() -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_manager("dlm", array_uuid="", runtime=TrioRuntime()) as manager:
            await manager.open_lockspace("space", cluster_name="hacluster", client="me")
    (error,) = caught.value.exceptions
    assert isinstance(error, DlmError)
    assert isinstance(error, LockError)

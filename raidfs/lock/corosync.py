"""corosync by ctypes: what a cluster is called, whether it has quorum, who uses a lock space, and groups of processes.

Its libraries (libcmap, libquorum, libvotequorum, libcpg) come with the daemon. Calls are short but wait for it, so they
are made from threads. Numbers are those of corosync/corotypes.h, quorum.h, votequorum.h and cpg.h, version 3.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from raidfs.errors import CorosyncDenied, CorosyncNotRunning, MissingLibrary

_OK = 1
_TRY_AGAIN = 6
_ACCESS = 11
_NO_SECTIONS = 27
_DISPATCH_ALL = 2
_TRACK_CURRENT_AND_CHANGES = 0x01 | 0x02
_AGREED = 2
_GROUP_BYTES_MAX = 128
_ITERATION_ALL = 3

_u32, _u64, _size, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p


class Gone(Exception):
    """The connection to corosync has ended; the argument says which call told so."""


class _VotequorumInfo(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("node_id", "node_state", "node_votes", "node_expected_votes")),
        *((name, ctypes.c_uint) for name in ("highest_expected", "total_votes", "quorum", "flags", "qdevice_votes")),
        ("qdevice_name", ctypes.c_char * 255),
    )


class _Name(ctypes.Structure):
    _fields_ = (("length", _u32), ("value", ctypes.c_char * _GROUP_BYTES_MAX))


class _Address(ctypes.Structure):
    _fields_ = (("nodeid", _u32), ("pid", _u32), ("reason", _u32))


class _Description(ctypes.Structure):
    _fields_ = (("group", _Name), ("nodeid", _u32), ("pid", _u32))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", _size))


_QUORUM_NOTIFY = ctypes.CFUNCTYPE(None, _u64, _u32, _u64, _u32, _pointer)
_CPG_DELIVER = ctypes.CFUNCTYPE(None, _u64, _pointer, _u32, _u32, _pointer, _size)
_CPG_CONFCHG = ctypes.CFUNCTYPE(None, _u64, _pointer, ctypes.POINTER(_Address), _size, _pointer, _size, _pointer, _size)


class _QuorumCallbacks(ctypes.Structure):
    _fields_ = (("notify", _QUORUM_NOTIFY),)


class _CpgCallbacks(ctypes.Structure):
    _fields_ = (("deliver", _CPG_DELIVER), ("confchg", _CPG_CONFCHG))


def _library(name: str, package: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise MissingLibrary(library=name, package=package) from None


# Opens a connection; the errors here are the ones that a person can do something about.
def _connect(initialize: Callable[..., int], handle: Any, *args: object) -> None:
    code = initialize(ctypes.byref(handle), *args)
    if code == _ACCESS:
        raise CorosyncDenied()
    if code != _OK:
        raise CorosyncNotRunning(code=code)


def _check(what: str, code: int) -> None:
    if code != _OK:
        raise Gone(f"{what} gave {code}")


@dataclasses.dataclass(frozen=True)
class ClusterFacts:
    """What corosync is set up for, and how it stands."""

    cluster_name: str
    node_id: int
    quorate: bool
    two_node: bool
    wait_for_all: bool


def cluster_facts() -> ClusterFacts:
    """Ask the corosync of this machine.

    Raises MissingLibrary, CorosyncDenied, CorosyncNotRunning.
    """
    cmap = _library("libcmap.so.4", "libcmap4")
    votes = _library("libvotequorum.so.8", "libvotequorum8")
    handle = _u64()
    try:
        _connect(cmap.cmap_initialize, handle)
        try:
            text = ctypes.c_char_p()
            found = cmap.cmap_get_string(handle, b"totem.cluster_name", ctypes.byref(text))
            name = (text.value or b"").decode() if found == _OK else ""
        finally:
            cmap.cmap_finalize(handle)
        info = _VotequorumInfo()
        _connect(votes.votequorum_initialize, handle, ctypes.byref((_pointer * 2)()))
        try:
            _check("votequorum_getinfo", votes.votequorum_getinfo(handle, ctypes.c_uint(0), ctypes.byref(info)))
        finally:
            votes.votequorum_finalize(handle)
    except Gone:
        raise CorosyncNotRunning(code=0) from None
    # VOTEQUORUM_INFO_TWONODE, _QUORATE, _WAIT_FOR_ALL
    return ClusterFacts(name, info.node_id, bool(info.flags & 2), bool(info.flags & 1), bool(info.flags & 4))


def lock_space_users(name: str) -> list[int]:
    """Return the corosync ids of the machines that have joined the DLM's lock space ``name``, in order; joins nothing.

    dlm_controld is in a group of its name for each lock space of its machine (dlm_daemon/cpg.c: dlm_join_lockspace),
    whoever has opened it, a process or the kernel's md. Raises MissingLibrary, CorosyncDenied, CorosyncNotRunning.
    """
    library = _library("libcpg.so.4", "libcpg4")
    handle, iteration, found = _u64(), _u64(), _Description()
    _connect(library.cpg_initialize, handle, ctypes.byref(_CpgCallbacks()))
    users = set()
    try:
        start = library.cpg_iteration_initialize
        _check("cpg_iteration_initialize", start(handle, ctypes.c_int(_ITERATION_ALL), None, ctypes.byref(iteration)))
        try:
            while (code := library.cpg_iteration_next(iteration, ctypes.byref(found))) != _NO_SECTIONS:
                _check("cpg_iteration_next", code)  # else a list that was cut off would look like nobody
                if found.group.value.decode(errors="replace") == f"dlm:ls:{name}":
                    users.add(found.nodeid)
        finally:
            library.cpg_iteration_finalize(iteration)
    except Gone:
        raise CorosyncNotRunning(code=0) from None
    finally:
        library.cpg_finalize(handle)
    return sorted(users)


class QuorumWatch:
    """Tells by ``on_change(quorate)``, from within `dispatch`, how the quorum of this machine stands and changes."""

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._library = _library("libquorum.so.5", "libquorum5")
        self._notify = _QUORUM_NOTIFY(lambda handle, quorate, *rest: on_change(bool(quorate)))
        self._callbacks = _QuorumCallbacks(self._notify)
        self._handle = _u64()
        kind = _u32()
        _connect(self._library.quorum_initialize, self._handle, ctypes.byref(self._callbacks), ctypes.byref(kind))
        track = self._library.quorum_trackstart
        _check("quorum_trackstart", track(self._handle, ctypes.c_uint(_TRACK_CURRENT_AND_CHANGES)))
        fd = ctypes.c_int()
        _check("quorum_fd_get", self._library.quorum_fd_get(self._handle, ctypes.byref(fd)))
        self.fd = fd.value

    def dispatch(self) -> None:
        """Take what has come; raises Gone."""
        _check("quorum_dispatch", self._library.quorum_dispatch(self._handle, _DISPATCH_ALL))

    def close(self) -> None:
        """End the connection."""
        self._library.quorum_finalize(self._handle)


class Process(NamedTuple):
    """A member of a group."""

    nodeid: int
    pid: int


class Group:
    """A closed process group (CPG): each message reaches all of its members in one order, the sender too.

    ``on_message(sender, data)`` and ``on_members(members)`` are called from within `dispatch`.
    """

    def __init__(
        self, name: str, on_message: Callable[[Process, bytes], None], on_members: Callable[[set[Process]], None]
    ) -> None:
        self._library = _library("libcpg.so.4", "libcpg4")
        self._name = _Name(len(name.encode()), name.encode())

        def deliver(handle: int, group: int, nodeid: int, pid: int, data: int, size: int) -> None:
            on_message(Process(nodeid, pid), ctypes.string_at(data, size))

        def confchg(handle: int, group: int, members: Any, count: int, *rest: object) -> None:
            on_members({Process(members[i].nodeid, members[i].pid) for i in range(count)})

        self._functions = (_CPG_DELIVER(deliver), _CPG_CONFCHG(confchg))
        self._callbacks = _CpgCallbacks(*self._functions)
        self._handle = _u64()
        _connect(self._library.cpg_initialize, self._handle, ctypes.byref(self._callbacks))
        fd = ctypes.c_int()
        _check("cpg_fd_get", self._library.cpg_fd_get(self._handle, ctypes.byref(fd)))
        self.fd = fd.value
        nodeid = ctypes.c_uint()
        _check("cpg_local_get", self._library.cpg_local_get(self._handle, ctypes.byref(nodeid)))
        self.own = Process(nodeid.value, os.getpid())
        self._joined = False

    def join(self) -> bool:
        """Join the group; returns False when it has to be tried again."""
        if not self._joined:
            code = self._library.cpg_join(self._handle, ctypes.byref(self._name))
            if code == _TRY_AGAIN:
                return False
            _check("cpg_join", code)
            self._joined = True
        return True

    def send(self, data: bytes) -> bool:
        """Send a message; returns False when it has to be tried again. Raises Gone."""
        code = self._library.cpg_mcast_joined(self._handle, _AGREED, ctypes.byref(_Iovec(data, len(data))), 1)
        if code == _TRY_AGAIN:
            return False
        _check("cpg_mcast_joined", code)
        return True

    def dispatch(self) -> None:
        """Take what has come; raises Gone."""
        _check("cpg_dispatch", self._library.cpg_dispatch(self._handle, _DISPATCH_ALL))

    def close(self) -> None:
        """Leave the group and end the connection."""
        self._library.cpg_finalize(self._handle)

"""One virtual machine of a lab: its QEMU process, and what can be done to it from outside."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import time
from typing import Any

from lab.shape import AGENT_PORT, LabError, Shape

PROGRAM = "qemu-system-x86_64"
_QMP_S = 10
_END_S = 10
_POLL_S = 0.01
_EXEC_LOOKS = 100  # of a process that is in the middle of exec

# Those that this very process has started, which has to collect them when they end; they may well outlive it.
_started: dict[int, subprocess.Popen[bytes]] = {}


class Machine:
    """Machine ``number`` (from 1) of the lab in ``run``. It holds no state but what is in the machine's directory."""

    def __init__(self, number: int, shape: Shape, run: pathlib.Path) -> None:
        self.number = number
        self.home = run / f"n{number}"
        self._shape = shape
        self._run = run

    def __str__(self) -> str:
        return f"n{self.number}"

    @property
    def pid(self) -> int | None:
        """The process of this machine, None when it is off; never a process of somebody else with an old number."""
        try:
            pid = int((self.home / "pid").read_text())
            for _ in range(_EXEC_LOOKS):
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode()
                if words or self._process_state(pid) in "ZX":
                    break
                time.sleep(_POLL_S)
        except (OSError, ValueError):
            return None
        return pid if f"file={self.home}/env" in words else None

    @property
    def state(self) -> str:
        """``running``, ``paused`` or ``off``."""
        pid = self.pid
        if pid is None:
            return "off"
        if self._process_state(pid) == "T":
            return "paused"
        status: str = self._qmp({"execute": "query-status"})["status"]
        return status

    def start(self) -> None:
        """Switch the machine on; it boots from the unchanged root image each time."""
        if self.pid is not None:
            raise LabError(f"{self} is on already")
        self.home.mkdir(parents=True, exist_ok=True)
        for name in ("qmp", "pid"):
            (self.home / name).unlink(missing_ok=True)
        self._write_settings()
        with open(self.home / "qemu.log", "ab") as log:
            process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(self._run)},
            )
        _started[process.pid] = process
        (self.home / "pid").write_text(str(process.pid))

    def kill(self) -> None:
        """Cut the power, and return when the machine is off; what is off stays so."""
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + _END_S
        while self.pid is not None:
            if time.monotonic() > end:
                raise LabError(f"{self}: process {pid} does not end")
            time.sleep(_POLL_S)
        if pid in _started:
            _started.pop(pid).wait()
        (self.home / "pid").unlink(missing_ok=True)

    def pause(self, *, clock_too: bool = False) -> None:
        """Freeze the machine: with SIGSTOP, so that its clock jumps at `resume`, or with its clock."""
        pid = self.pid
        if pid is None:
            raise LabError(f"{self} is off")
        if clock_too:
            self._qmp({"execute": "stop"})
        else:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused machine go on."""
        pid = self.pid
        if pid is None:
            raise LabError(f"{self} is off")
        os.kill(pid, signal.SIGCONT)
        self._qmp({"execute": "cont"})

    def set_link(self, peer: int, *, up: bool) -> None:
        """Plug the cable to another machine in or out, at this end."""
        self._qmp({"execute": "set_link", "arguments": {"name": f"to{peer}", "up": up}})

    @staticmethod
    def _process_state(pid: int) -> str:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def _qmp(self, command: dict[str, Any]) -> Any:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_QMP_S)
            try:
                sock.connect(str(self.home / "qmp"))
            except OSError as error:
                raise LabError(f"{self} is off ({error.strerror})") from None
            stream = sock.makefile("rw")
            stream.readline()  # the greeting
            answer: dict[str, Any] = {}
            for asked in ({"execute": "qmp_capabilities"}, command):
                stream.write(json.dumps(asked) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
                while "event" in answer:
                    answer = json.loads(stream.readline())
                if "error" in answer:
                    raise LabError(f"{self}: {answer['error']['desc']}")
            return answer["return"]

    def _write_settings(self) -> None:
        shares = " ".join(f"share{i}={s.guest}={_mount_options(s.read_only)}" for i, s in enumerate(self._shares()))
        (self.home / "env").write_text(
            f"LAB_NODE={self.number}\nLAB_NODES={self._shape.wish.nodes}\nLAB_SHARES={shlex.quote(shares)}\n"
        )
        (self.home / "corosync.conf").write_text(self._shape.corosync_conf())
        (self.home / "dlm.conf").write_text(self._shape.dlm_conf())

    def _shares(self) -> tuple[Any, ...]:
        return self._shape.wish.shares

    def _command(self) -> list[str]:
        shape, wish, home = self._shape, self._shape.wish, self.home
        command = [
            *(PROGRAM, "-accel", shape.accelerator, "-nodefaults", "-no-user-config"),
            *("-cpu", "host" if shape.accelerator.startswith("kvm") else "max,la57=off"),
            *("-m", str(wish.memory_mib), "-smp", str(wish.cpus), "-display", "none", "-no-reboot"),
            *("-name", f"raidfs-lab-n{self.number}"),
            *("-kernel", f"{shape.boot}/vmlinuz", "-initrd", f"{shape.boot}/initrd.gz"),
            "-append",
            # The processor's own counter cannot be measured on a host that is busy: clocks would run too fast by far.
            "console=ttyS0 panic=-1 quiet mitigations=off clocksource=hpet tsc=unstable no_timer_check nowatchdog",
            *("-chardev", f"file,id=console,path={home}/console.log,append=on", "-serial", "chardev:console"),
            *("-qmp", f"unix:{home}/qmp,server=on,wait=off", "-device", "virtio-rng-pci"),
            # Never written: what a machine changes is gone when it is switched off.
            *_disk("root", f"{shape.boot}/root.ext4", "snapshot=on"),
        ]
        if shape.raidfs_image is not None:
            command += _disk("raidfs", shape.raidfs_image, "snapshot=on")
        for number, path in enumerate(shape.disks):
            command += _disk(f"shared{number}", path, "cache=none,discard=unmap", "share-rw=on")
        for name in ("env", "corosync.conf", "dlm.conf"):
            command += ["-fw_cfg", f"name=opt/lab/{name},file={home}/{name}"]
        for number, share in enumerate(self._shares()):
            read_only = ",readonly=on" if share.read_only else ""
            where = f"path={share.host},mount_tag=share{number}"
            command += ["-virtfs", f"local,{where},security_model=none,multidevs=remap{read_only}"]
        return [*command, *self._network()]

    def _network(self) -> list[str]:
        shape, own = self._shape, self.number
        # The control channel: one way in, from this host only, and no way out.
        reached = f"hostfwd=tcp:127.0.0.1:{shape.control[own - 1]}-:{AGENT_PORT}"
        words = [
            *("-netdev", f"user,id=control,restrict=on,ipv6=off,{reached}"),
            *("-device", f"virtio-net-pci,netdev=control,mac=52:54:00:76:{own:02x}:00,romfile="),
        ]
        for peer in shape.numbers:
            if peer == own:
                continue
            there, here = shape.cables[f"{peer}-{own}"], shape.cables[f"{own}-{peer}"]
            words += ["-netdev", f"socket,id=to{peer},udp=127.0.0.1:{there},localaddr=127.0.0.1:{here}"]
            words += ["-device", f"virtio-net-pci,netdev=to{peer},romfile=,mac=52:54:00:76:{own:02x}:{peer:02x}"]
        return words


def _disk(name: str, path: str, drive: str, device: str = "") -> list[str]:
    options = f",{device}" if device else ""
    return [
        *("-drive", f"if=none,id={name},file={path},format=raw,{drive}"),
        *("-device", f"virtio-blk-pci,drive={name},serial={name}{options}"),
    ]


def _mount_options(read_only: bool) -> str:
    # What is read-only does not change under the guest: let it cache.
    return "ro,cache=loose" if read_only else "cache=none"

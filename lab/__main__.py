"""The command line of the lab; see ``scripts/lab --help``."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from types import FrameType

from lab import agent, images
from lab.cluster import Lab
from lab.shape import NODES_MAX, LabError, Share, Wish, run_directory

EXIT_FAILED = 255  # of the lab itself, as `exec` has the statuses of commands below
EXIT_SKIPPED = 77  # of `test` on a machine that cannot run a lab
_EXIT_INTERRUPTED = 130
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}

_EPILOG = """
a cluster of two machines with two shared disks, and an array over them:
  scripts/lab up
  scripts/lab exec 1 -- raidfs create --assume-clean --cluster-name raidfs-lab /dev/shared0 /dev/shared1
  scripts/lab exec 1 -- raidfs mount --lock dlm --allow-unfenced /dev/shared0 /dev/shared1 /mnt
  scripts/lab exec 2 -- raidfs mount --lock dlm --allow-unfenced /dev/shared0 /dev/shared1 /mnt
  scripts/lab kill 1; scripts/lab exec 2 -- raidfs status --detail; scripts/lab start 1
  scripts/lab down

environment:
  RAIDFS_LAB_RUN       where the state of this lab is; one for each that runs at a time (/var/tmp/raidfs-lab-UID)
  RAIDFS_LAB_CACHE     where packages and root images are kept (~/.cache/raidfs-lab, 0.7 GB)
  RAIDFS_LAB_ACCEL     accelerator of QEMU (tcg,thread=multi)
  RAIDFS_LAB_PACKAGES  more Debian packages for the root image, separated by blanks

Exit status of exec: that of the command, 124 at the limit of time; 255 when the lab itself fails. More: docs/lab.md.
"""


def main() -> int:
    """Run the command line and return the exit status."""
    parser = _parser()
    args, words = parser.parse_known_args()
    if words and args.function is not _test:
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    try:
        status: int = (_test(args.full, words) if args.function is _test else args.function(args)) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        usage="scripts/lab COMMAND ...",
        description="Virtual machines with shared disks, corosync and the DLM. Needs neither KVM nor root, and of this "
        "machine no more than loopback ports.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(function=function)
        return sub

    command("build", _build, "make the images that machines boot from; the others do it when it is due")
    up = command("up", _up, "boot the machines and let them join one cluster")
    up.add_argument("--nodes", type=int, default=2, choices=range(1, NODES_MAX + 1), help="how many machines (2)")
    up.add_argument("--disk", nargs="+", type=_size, metavar="SIZE", help="shared disks (256M 256M)")
    up.add_argument("--memory", type=int, default=512, metavar="MIB", help="of each machine (512)")
    up.add_argument("--cpus", type=int, default=1, help="of each machine (1)")
    up.add_argument(
        "--share", action="append", type=_share, default=[], metavar="DIR[:GUESTDIR[:ro]]", help="a host directory"
    )
    up.add_argument("--token", type=int, default=3000, metavar="MS", help="corosync's token timeout (3000)")
    up.add_argument(
        "--dlm", action="append", type=_pair, default=[], metavar="KEY=VALUE", help="in dlm.conf (enable_fencing=0)"
    )
    up.add_argument("--wait-for-all", action="store_true", help="corosync's option; else one of two has quorum alone")
    up.add_argument("--no-cluster", action="store_true", help="do not start corosync and dlm_controld")
    start = command("start", _start, "boot a machine that is off, and let it join")
    run = command("exec", _exec, "run a command in a machine")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="kill it then; exit status 124")
    run.add_argument("--env", action="append", type=_pair, default=[], metavar="NAME=VALUE")
    run.add_argument("--directory", metavar="DIR", help="where it starts (/root)")
    run.add_argument("--detach", metavar="LOG", help="leave it running, its output in this file there; prints its pid")
    kill = command("kill", _kill, "switch a machine off as a power failure would")
    pause = command("pause", _pause, "freeze a machine; its clock jumps when it goes on")
    pause.add_argument("--clock-too", action="store_true", help="freeze its clock as well")
    resume = command("resume", _resume, "let a frozen machine go on")
    for sub in (start, run, kill, pause, resume):
        sub.add_argument("machine", metavar="MACHINE", help="1, 2 ... or n1, n2 ...")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    partition = command("partition", _partition, "cut the cables between these machines and all others")
    partition.add_argument("machines", nargs="+", metavar="MACHINE")
    heal = command("heal", _heal, "put cables back")
    heal.add_argument("machines", nargs="*", metavar="MACHINE", help="theirs only (all)")
    command("status", _status, "show machines, disks and files")
    down = command("down", _down, "switch all machines off and remove the shared disks")
    down.add_argument("--keep", action="store_true", help="keep the disks")
    test = command("test", _test, "run tests/dlm on machines of their own; further words go to pytest")
    test.add_argument("--full", action="store_true", help="all of them, and not just those of a few minutes")
    return parser


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"not a size: {text}")
    return int(match[1]) << _UNITS[match[2]]


def _share(text: str) -> Share:
    host, guest, mode, *_ = (*text.split(":"), "", "")
    host = os.path.abspath(host)
    return Share(host, guest or host, mode == "ro")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"not NAME=VALUE: {text}")
    return name, value


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build(args: argparse.Namespace) -> None:
    made = images.ready(_tell)
    print(f"{made.boot}\n{made.raidfs}")


def _up(args: argparse.Namespace) -> None:
    wish = Wish(
        nodes=args.nodes,
        memory_mib=args.memory,
        cpus=args.cpus,
        disks_bytes=tuple(args.disk or Wish.disks_bytes),
        shares=tuple(args.share),
        token_ms=args.token,
        dlm=tuple(args.dlm),
        wait_for_all=args.wait_for_all,
        cluster=not args.no_cluster,
    )
    Lab.up(run_directory(), wish, _tell)


def _start(args: argparse.Namespace) -> None:
    lab = Lab.load(run_directory())
    lab.start([lab.machine(args.machine).number], _tell)


def _exec(args: argparse.Namespace) -> int:
    lab = Lab.load(run_directory())
    machine = lab.machine(args.machine)
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise LabError("no command")

    def write(stream: int, data: bytes) -> None:
        while data:
            data = data[os.write(stream, data) :]

    return agent.execute(
        machine,
        lab.shape.control[machine.number - 1],
        words,
        # What is typed on a terminal stays here, and what goes on without us reads nothing.
        stdin=None if args.detach or sys.stdin.isatty() else sys.stdin.buffer,
        stdout=lambda data: write(1, data),
        stderr=lambda data: write(2, data),
        environment=dict(args.env),
        directory=args.directory,
        detached_log=args.detach,
        timeout_s=args.timeout,
    )


def _kill(args: argparse.Namespace) -> None:
    machine = Lab.load(run_directory()).machine(args.machine)
    if machine.pid is None:
        raise LabError(f"{machine} is off")
    machine.kill()


def _pause(args: argparse.Namespace) -> None:
    Lab.load(run_directory()).machine(args.machine).pause(clock_too=args.clock_too)


def _resume(args: argparse.Namespace) -> None:
    Lab.load(run_directory()).machine(args.machine).resume()


def _partition(args: argparse.Namespace) -> None:
    lab = Lab.load(run_directory())
    lab.set_links([lab.machine(text).number for text in args.machines], up=False)


def _heal(args: argparse.Namespace) -> None:
    lab = Lab.load(run_directory())
    lab.set_links([lab.machine(text).number for text in args.machines] or lab.machines, up=True)


def _status(args: argparse.Namespace) -> None:
    lab = Lab.load(run_directory())
    for machine in lab.machines.values():
        print(f"{machine} {machine.state} pid {machine.pid or '-'}, console {machine.home}/console.log")
    for number, path in enumerate(lab.shape.disks):
        print(f"/dev/shared{number} {path}")


def _down(args: argparse.Namespace) -> None:
    Lab.load(run_directory()).down(keep_disks=args.keep)


def _test(full: bool, words: list[str]) -> int:
    try:
        images.ready(_tell)
    except images.NotHere as error:
        print(f"lab: SKIPPED, nothing was tested on several machines: {error}", flush=True)
        return EXIT_SKIPPED
    run = pathlib.Path(tempfile.mkdtemp(prefix="raidfs-lab-test.", dir="/var/tmp"))
    environment = {**os.environ, "RAIDFS_LAB_TEST": "full" if full else "reduced", "RAIDFS_LAB_RUN": str(run)}
    chosen = [] if any(word.startswith("tests/") for word in words) else ["tests/dlm"]
    command = [sys.executable, "-m", "pytest", "-q", *chosen, *words]
    status = EXIT_FAILED
    process = subprocess.Popen(command, env=environment)

    def stop(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGINT)

    # Whoever stops the test stops the machines as well: pytest's fixtures do it, and what is left is done here.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        status = process.wait()
    finally:
        for state in run.glob("*/lab.json"):
            Lab.load(state.parent).down()
        if status == 0:
            shutil.rmtree(run)
        else:
            _tell(f"lab: consoles and logs of the machines are in {run}")
    return status


if __name__ == "__main__":
    sys.exit(main())

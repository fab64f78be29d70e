"""The command ``raidfs``: finds the verb, runs it, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 the command line makes no sense; 130 interrupted. `raidfs status --test` has its own.
Only the verb that is asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from raidfs import __version__
from raidfs.errors import EXIT_FAILED, BadArguments, RaidfsError

_EXIT_INTERRUPTED = 130  # as a shell tells it: 128 + SIGINT

# In the order of an array's life, as ``--help`` lists them.
COMMANDS = (
    *("create", "examine", "update", "handover", "mount", "status"),
    *("fail", "remove", "add", "add-spare", "re-add", "grow"),
    *("resync", "check", "repair", "idle", "wait"),
    *("explain", "umount", "lockd"),
)

_DESCRIPTION = "Clustered RAID1 in user space: Linux md-cluster's disk format and protocol, served through FUSE."

_EPILOG = """
a first array:
  raidfs create --size 1G /srv/a.img /srv/b.img   make two images and an array over them
  raidfs mount /srv/a.img /srv/b.img /mnt/node0   this node's view of it: /mnt/node0/md0
  raidfs status                                   what /proc/mdstat would tell
  raidfs umount /mnt/node0                        stop this node cleanly

Every command has its own --help. Exit codes: 0 done, 1 failed, 2 usage.
"""


class _Parser(argparse.ArgumentParser):
    # Errors leave as an exception, so that they get the same single line as all others.
    def error(self, message: str) -> NoReturn:
        raise BadArguments(problem=message, program=self.prog)


class _Help(argparse.RawDescriptionHelpFormatter):
    # argparse forgets the indent of subcommands when it looks for the longest, whose help then is on the next line.
    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        self._action_max_length += 2 if isinstance(action, argparse._SubParsersAction) else 0


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser for ``commands``."""
    parser = _Parser(
        prog="raidfs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"raidfs {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for command in commands:
        _module(command).add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``raidfs`` with ``arguments`` (default: those of the process) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except RaidfsError as error:
        print(f"raidfs: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        print(f"raidfs: {named}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    return code


def _run(words: list[str]) -> int:
    # A verb in first place is the only one whose module has to be imported; help and mistakes need all of them.
    known = words[:1] if words and words[0] in COMMANDS else COMMANDS
    parsed = build_parser(known).parse_args(words)
    code: int = _module(parsed.command).run(parsed)
    return code


def _module(command: str) -> Any:
    # Each has ``add_parser`` and ``run``.
    return importlib.import_module(f"raidfs.cli.{command.replace('-', '_')}")

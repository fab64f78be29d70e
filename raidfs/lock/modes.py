"""The lock modes: which go together, and which way a lock value block travels between them.

Both tables are the DLM's (``fs/dlm/lock.c``: ``__dlm_compat_matrix`` and ``dlm_lvb_operations``), indexed by
`Mode`. They are data, on purpose: a rule derived from one would hide the odd entries (PW to EX *reads*
the value block, PW to PW *writes* it).
"""

from __future__ import annotations

import enum

from raidfs.lock.api import Mode

# Rows and columns NL CR CW PR PW EX; symmetric.
_COMPATIBLE: tuple[tuple[bool, ...], ...] = tuple(
    tuple(bit == "1" for bit in row)
    for row in (
        "111111",  # NL
        "111110",  # CR
        "111000",  # CW
        "110100",  # PR
        "110000",  # PW
        "100000",  # EX
    )
)


class LvbMove(enum.Enum):
    """What a grant does with the value block."""

    NOTHING = "-"
    READ = "1"  # the resource's value goes to the caller
    WRITE = "0"  # the caller's buffer becomes the resource's value


# Row: the mode that the lock has; column: the mode that it gets.
_LVB_MOVES: tuple[tuple[LvbMove, ...], ...] = tuple(
    tuple(LvbMove(move) for move in row)
    for row in (
        "111111",  # NL
        "-11111",  # CR
        "--1111",  # CW
        "---111",  # PR
        "000001",  # PW
        "000000",  # EX
    )
)

# A holder in this mode or above may be about to change the value block (dlm_recover_purge asks the same).
LVB_WRITER = Mode.PW


def compatible(mode: Mode, other: Mode) -> bool:
    """Return whether two clients may hold these modes on one resource at the same time."""
    return _COMPATIBLE[mode][other]


def lvb_move(granted: Mode | None, requested: Mode) -> LvbMove:
    """Return which way the value block goes when a lock in ``granted`` (None: a new lock) gets ``requested``."""
    return LvbMove.READ if granted is None else _LVB_MOVES[granted][requested]

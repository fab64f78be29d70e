"""What the writer's journal takes for a loss."""

from __future__ import annotations

import pytest
from support.stamped_writer import SECTOR, Journal, Lost, stamp


def content(*generations: int) -> bytes:
    return b"".join(stamp(7, 4 + number, generation) for number, generation in enumerate(generations))


@pytest.fixture
def journal() -> Journal:
    made = Journal(7, 16)
    made.acknowledged(4, 3, 1)
    made.acknowledged(5, 1, 2)
    return made


def look(journal: Journal, data: bytes, *, settles: bool = False) -> None:
    journal.check(4, data, settles=settles, where="here")


def test_what_was_acknowledged_is_there(journal: Journal) -> None:
    look(journal, content(1, 2, 1, 0))


@pytest.mark.parametrize(
    "found", [content(1, 1), content(0, 2), content(2, 2), content(1, 3), bytes(2 * SECTOR), content(1) + content(1)]
)
def test_an_older_or_unknown_generation_or_another_place_is_a_loss(journal: Journal, found: bytes) -> None:
    with pytest.raises(Lost):
        look(journal, found)


def test_half_a_sector_is_a_loss(journal: Journal) -> None:
    journal.failed(4, 1, 9)
    with pytest.raises(Lost):
        look(journal, content(9)[:256] + content(1)[256:])


def test_a_write_that_failed_was_done_or_not_and_stays_as_it_was_read_first(journal: Journal) -> None:
    journal.failed(4, 3, 9)
    look(journal, content(1, 2, 9))
    look(journal, content(9, 2, 1))
    look(journal, content(9, 2, 1), settles=True)
    look(journal, content(9, 2, 1))
    with pytest.raises(Lost):
        look(journal, content(1, 2, 1))

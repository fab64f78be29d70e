"""Faults to order: how they are written, and which I/O they strike."""

from __future__ import annotations

import errno

import pytest

from raidfs.errors import BadFault
from raidfs.faults import FaultKind, IoKind, LegFaults, Strike, faults_of_leg, parse_fault

READ, WRITE, FLUSH = IoKind.READ, IoKind.WRITE, IoKind.FLUSH


def leg(*texts: str) -> LegFaults:
    return LegFaults([parse_fault(text) for text in texts])


def test_a_fault_says_what_was_written() -> None:
    fault = parse_fault("error,leg=b.img,on=write+flush,at=8K-1M,nth=5,count=all,errno=ENOSPC")
    assert (fault.kind, fault.leg, fault.on) == (FaultKind.ERROR, "b.img", frozenset({WRITE, FLUSH}))
    assert (fault.start, fault.end, fault.nth, fault.count) == (8192, 1 << 20, 5, None)
    assert fault.errno == errno.ENOSPC
    assert parse_fault("delay,seconds=0.25").delay_s == 0.25
    assert parse_fault("torn,keep=3").keep_bytes == 1536
    assert parse_fault("torn,errno=none").errno == 0
    assert parse_fault("misdirect,by=1M").shift_bytes == 1 << 20
    assert parse_fault("gone").errno == errno.ENODEV


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("eror", "'eror' is no kind of fault"),
        ("", "'' is no kind of fault"),
        ("error,nth", "'nth' is no condition of error"),
        ("error,seconds=1", "'seconds=1' is no condition of error (at, count, errno, leg, nth, on)"),
        ("error,nth=0", "nth=0: a whole number from 1 on"),
        ("error,nth=x", "nth=x: a whole number from 1 on"),
        ("error,nth=1,nth=2", "nth is given twice"),
        ("error,errno=none", "errno=none: a name such as EIO"),
        ("error,errno=EWHAT", "errno=EWHAT: a name such as EIO"),
        ("torn,on=read", "on=read: torn strikes write"),
        ("lost-flush,on=read", "on=read: lost-flush strikes write and flush"),
        ("error,at=8K-4K", "at=8K-4K: the range is empty"),
        ("error,at=a-b", "'a' is not a size"),
        ("misdirect,by=100", "by=100: a multiple of 512"),
        ("misdirect,by=0", "by=0: a multiple of 512"),
        ("delay,seconds=-1", "seconds=-1: a number of seconds"),
        ("delay,seconds=inf", "seconds=inf: a number of seconds"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_word_is_named(text: str, problem: str) -> None:
    with pytest.raises(BadFault) as caught:
        parse_fault(text)
    assert f"--fault {text}: {problem}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_fault_is_for_an_image_by_its_path_its_name_or_its_position() -> None:
    for name in ("/srv/b.img", "b.img", "1"):
        fault = parse_fault(f"error,leg={name}")
        assert faults_of_leg([fault], 1, "/srv/b.img").decide(READ, 0, 512)
        assert not faults_of_leg([fault], 0, "/srv/a.img").decide(READ, 0, 512)


def test_without_conditions_all_is_struck() -> None:
    faults = leg("error")
    assert all(faults.decide(kind, 0, 512) for kind in (READ, WRITE, FLUSH))
    assert faults.struck == 3


def test_nth_strikes_once_and_count_more_often() -> None:
    assert _struck(leg("error,on=write,nth=2"), 4) == [False, True, False, False]
    assert _struck(leg("error,nth=2,count=2"), 4) == [False, True, True, False]
    assert _struck(leg("error,nth=3,count=all"), 4) == [False, False, True, True]


def _struck(faults: LegFaults, times: int) -> list[bool]:
    return [faults.decide(WRITE, 0, 512) is not None for _ in range(times)]


def test_only_what_matches_is_counted() -> None:
    faults = leg("error,on=write,at=4K-8K,nth=2")
    struck = [
        faults.decide(kind, offset, length) is not None
        for kind, offset, length in [
            (WRITE, 0, 4096),
            (WRITE, 4095 - 511, 1024),
            (READ, 4096, 512),
            (FLUSH, 0, 0),
            (WRITE, 8192, 512),
            (WRITE, 8191 - 511, 512),
        ]
    ]
    assert struck == [False, False, False, False, False, True]


def test_a_leg_that_is_gone_answers_nothing_more_whatever_started_it() -> None:
    faults = leg("gone,on=write,at=1M-,nth=1")
    assert faults.decide(READ, 0, 512) is None
    assert faults.decide(WRITE, 1 << 20, 512) == Strike(
        keep_bytes=0, errno=errno.ENODEV, texts=("gone,on=write,at=1M-,nth=1",)
    )
    for kind in (READ, WRITE, FLUSH):
        strike = faults.decide(kind, 0, 512)
        assert strike is not None
        assert strike.errno == errno.ENODEV


def test_delays_add_up_and_the_first_other_fault_counts() -> None:
    strike = leg("delay,seconds=1", "torn,keep=2", "delay,seconds=0.5", "error").decide(WRITE, 0, 4096)
    assert strike is not None
    assert (strike.delay_s, strike.keep_bytes, strike.errno, len(strike.texts)) == (1.5, 1024, errno.EIO, 4)


@pytest.mark.parametrize(
    ("text", "done", "result"),
    [
        ("error", 0, -errno.EIO),
        ("delay", 4096, 4096),
        ("torn", 512, -errno.EIO),
        ("torn,keep=2,errno=none", 1024, 4096),
        ("short,keep=3", 1536, 1536),
        ("short,keep=100", 4096, 4096),
        ("lost-flush", 4096, 4096),
        ("misdirect", 4096, 4096),
        ("gone", 0, -errno.ENODEV),
    ],
)
def test_what_is_done_of_a_write_and_what_the_leg_says(text: str, done: int, result: int) -> None:
    strike = leg(text).decide(WRITE, 8192, 4096)
    assert strike is not None
    assert (strike.done_bytes(4096), strike.result(4096)) == (done, result)


def test_a_misdirected_write_stays_in_the_image() -> None:
    strike = leg("misdirect,by=8K").decide(WRITE, 8192, 4096)
    assert strike is not None
    assert strike.place(8192, 4096, 1 << 20) == 16384
    assert strike.place(8192, 4096, 16384) == 0
    assert strike.place(4096, 4096, 8192) == 0

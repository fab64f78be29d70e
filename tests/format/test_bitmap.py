from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import GoldenImage, golden_images

from raidfs.errors import NoBitmapSuperblock, NotClusteredBitmap, RaidfsError, SuperblockField
from raidfs.format.bitmap import (
    SUPER_BYTES,
    BitmapState,
    BitmapSuperblock,
    bits_of,
    count_dirty,
    is_dirty,
    iter_dirty,
    set_clean,
    set_dirty,
)
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import Superblock

BASE = BitmapSuperblock(
    uuid=bytes(range(16)),
    events=7,
    events_cleared=5,
    sync_size_sectors=8192,
    chunk_bytes=65536,
    nodes=4,
    cluster_name=b"alpha",
)


def slots(image: GoldenImage) -> list[bytes]:
    layout = ArrayLayout.of(Superblock.decode(image.head[4096:8192]), BitmapSuperblock.decode(image.head[8192:]))
    starts = [layout.slot_offset_bytes(slot) for slot in range(layout.nodes)]
    return [image.head[start : start + layout.slot_bytes] for start in starts]


@pytest.mark.parametrize("image", golden_images(), ids=lambda image: image.name)
def test_what_linux_wrote_is_read_and_written_back_byte_for_byte(image: GoldenImage) -> None:
    written = [data for data in slots(image) if any(data)]
    assert len(written) == len(slots(image)) or image.name == "007-kernel-recovering/member1"
    for data in written:
        assert BitmapSuperblock.decode(data).encode() == data[:SUPER_BYTES]


def test_the_fields_of_a_running_arrays_slots_are_those_that_mdadm_prints() -> None:
    image = golden_images("002")[0]
    heads = [BitmapSuperblock.decode(data) for data in slots(image)]
    assert [head.events for head in heads] == [22, 25, 0, 0]
    assert [head.events_cleared for head in heads] == [22, 23, 0, 0]
    assert {(head.chunk_bytes, head.daemon_sleep_s, head.nodes) for head in heads} == {(64 << 20, 5, 4)}
    assert {head.cluster_name_text for head in heads} == {"vmlab"}
    dirty = [count_dirty(data[SUPER_BYTES:], head.bits) for data, head in zip(slots(image), heads, strict=True)]
    assert dirty == [0, 1, 0, 0]


def test_a_slot_with_a_reserve_after_a_resize_keeps_it() -> None:
    assert BitmapSuperblock.decode(slots(golden_images("001")[0])[1]).sectors_reserved == 1


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (0, 0, NoBitmapSuperblock),
        (4, 4, NotClusteredBitmap),
        (4, 6, NotClusteredBitmap),
        (52, 0, SuperblockField),
        (52, 256, SuperblockField),
        (52, 65537, SuperblockField),
        (56, 0, SuperblockField),
        (60, 16384, SuperblockField),
        (68, 1, SuperblockField),
    ],
)
def test_a_bad_field_is_refused_by_its_name(offset: int, value: int, error: type[RaidfsError]) -> None:
    data = bytearray(BASE.encode())
    struct.pack_into("<I", data, offset, value)
    with pytest.raises(error) as caught:
        BitmapSuperblock.decode(bytes(data), path="/srv/a.img", slot=3)
    assert "/srv/a.img" in str(caught.value)
    assert "slot 3" in str(caught.value) or error is NotClusteredBitmap


def test_bytes_that_end_early_are_no_bitmap() -> None:
    with pytest.raises(NoBitmapSuperblock):
        BitmapSuperblock.decode(BASE.encode()[:-1])


def test_a_stale_bitmap_says_so() -> None:
    assert dataclasses.replace(BASE, state=int(BitmapState.STALE)).is_stale
    assert not BASE.is_stale


@given(st.data())
def test_any_bytes_are_either_refused_or_written_back_as_they_are(data: st.DataObject) -> None:
    raw = bytearray(BASE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, SUPER_BYTES - 1))] = data.draw(st.integers(0, 255))
    try:
        head = BitmapSuperblock.decode(bytes(raw))
    except RaidfsError as e:
        assert "image" in str(e)  # noqa: PT017  either outcome may come
    else:
        assert head.encode() == bytes(raw)


@pytest.mark.parametrize(
    ("size_sectors", "chunk_bytes", "bits"),
    [(2093056, 64 << 20, 16), (2093056, 4096, 261632), (202752, 65536, 1584), (20953088, 1 << 20, 10231), (1, 512, 1)],
)
def test_the_last_chunk_counts_even_when_it_is_short(size_sectors: int, chunk_bytes: int, bits: int) -> None:
    assert bits_of(size_sectors, chunk_bytes) == bits


@given(st.binary(max_size=40).flatmap(lambda raw: st.tuples(st.just(raw), st.integers(0, 8 * len(raw)))))
def test_counting_and_listing_agree_with_looking_at_each_bit(case: tuple[bytes, int]) -> None:
    data, bits = case
    expected = [bit for bit in range(bits) if is_dirty(data, bit)]
    assert list(iter_dirty(data, bits)) == expected
    assert list(iter_dirty(memoryview(data), bits)) == expected
    assert count_dirty(data, bits) == len(expected)


@given(st.binary(min_size=1, max_size=20), st.integers(0, 159))
def test_setting_and_clearing_touches_one_bit(data: bytes, bit: int) -> None:
    bit %= 8 * len(data)
    buffer = bytearray(data)
    set_dirty(buffer, bit)
    assert is_dirty(buffer, bit)
    set_clean(buffer, bit)
    assert not is_dirty(buffer, bit)
    if is_dirty(data, bit):
        set_dirty(buffer, bit)
    assert bytes(buffer) == data


def test_a_bitmap_of_a_million_bits_is_counted_at_once() -> None:
    data = bytearray(b"\xff" * 125_000)
    set_clean(data, 500_000)
    assert count_dirty(bytes(data), 1_000_000) == 999_999

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.golden import GoldenImage, golden_images

from raidfs.errors import BadGeometry, ImageTooSmall, TooManyNodes
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import (
    ArrayLayout,
    bitmap_room_sectors,
    choose_layout,
    data_offset_sectors,
    default_chunk_bytes,
    device_sectors_for,
)
from raidfs.format.superblock import Superblock
from raidfs.units import GIB, KIB, MIB, TIB

SECTORS_PER_GIB = GIB // 512


def layout(device_sectors: int, **choices: int | None) -> ArrayLayout:
    wanted: dict[str, int | None] = {"size_sectors": None, "chunk_bytes": None, **choices}
    nodes = wanted.pop("nodes", 4)
    assert nodes is not None
    return choose_layout(
        device_sectors, size_sectors=wanted["size_sectors"], chunk_bytes=wanted["chunk_bytes"], nodes=nodes, path="a"
    )


@pytest.mark.parametrize(
    ("device_sectors", "chunk_bytes", "nodes", "data_offset", "size", "bits", "slot_bytes"),
    [
        (2097152, 64 * MIB, 4, 4096, 2093056, 16, 4096),
        (2097152, 4 * KIB, 4, 4096, 2093056, 261632, 36864),
        (204800, 64 * KIB, 3, 2048, 202752, 1584, 4096),
        (20971520, MIB, 16, 18432, 20953088, 10231, 4096),
    ],
)
def test_layouts_that_mdadm_examine_accepted(
    device_sectors: int, chunk_bytes: int, nodes: int, data_offset: int, size: int, bits: int, slot_bytes: int
) -> None:
    made = layout(device_sectors, chunk_bytes=chunk_bytes, nodes=nodes)
    assert (made.data_offset_sectors, made.size_sectors) == (data_offset, size)
    assert (made.bits, made.slot_bytes) == (bits, slot_bytes)


@pytest.mark.parametrize("image", golden_images(), ids=lambda image: image.name)
def test_the_layout_of_what_mdadm_created_is_the_one_we_choose(image: GoldenImage) -> None:
    superblock = Superblock.decode(image.head[4096:8192])
    slot = BitmapSuperblock.decode(image.head[8192:])
    chosen = layout(
        image.length_bytes // 512,
        size_sectors=superblock.size_sectors,
        chunk_bytes=slot.chunk_bytes,
        nodes=slot.nodes,
    )
    if superblock.size_sectors == superblock.data_size_sectors and slot.chunk_bytes == 64 * MIB:
        assert layout(image.length_bytes // 512, nodes=slot.nodes) == chosen
    assert chosen == ArrayLayout.of(superblock, slot)
    assert superblock.data_size_sectors == image.length_bytes // 512 - chosen.data_offset_sectors


@pytest.mark.parametrize(
    ("device_bytes", "offset"),
    [(100 * MIB, 2048), (GIB, 4096), (10 * GIB, 18432), (200 * GIB, 264192), (8 * TIB, 264192)],
)
def test_the_data_offset_grows_with_the_device(device_bytes: int, offset: int) -> None:
    assert data_offset_sectors(device_bytes // 512) == offset


@pytest.mark.parametrize(
    ("device_sectors", "room"),
    [
        (127, 0),
        (128, 8),
        (8 * SECTORS_PER_GIB + 8, 8),
        (8 * SECTORS_PER_GIB + 9, 128),
        (200 * SECTORS_PER_GIB + 127, 128),
        (200 * SECTORS_PER_GIB + 128, 256),
    ],
)
def test_the_room_for_a_bitmap_steps_where_mdadms_does(device_sectors: int, room: int) -> None:
    assert bitmap_room_sectors(device_sectors) == room


@given(st.integers(1, 2**40))
def test_the_smallest_device_has_the_size_and_no_smaller_one_has(size_sectors: int) -> None:
    device = device_sectors_for(size_sectors)
    assert device - data_offset_sectors(device) == size_sectors
    for smaller in (device - 1, device - 2048, size_sectors + 2048):
        if 0 < smaller < device:
            assert smaller - data_offset_sectors(smaller) < size_sectors


@given(st.integers(24, 2**40), st.integers(1, 2**30))
def test_a_larger_device_never_has_its_data_earlier(device_sectors: int, more: int) -> None:
    assert data_offset_sectors(device_sectors) <= data_offset_sectors(device_sectors + more)


@pytest.mark.parametrize(
    ("size_bytes", "chunk_bytes"),
    [(MIB, 64 * MIB), (8 * TIB, 64 * MIB), (60 * TIB, 64 * MIB), (100 * TIB, 128 * MIB), (200 * TIB, 256 * MIB)],
)
def test_the_default_chunk_grows_when_the_bitmap_would_not_fit(size_bytes: int, chunk_bytes: int) -> None:
    assert default_chunk_bytes(size_bytes // 512) == chunk_bytes


def test_slots_follow_one_another_from_byte_8192() -> None:
    made = layout(2097152, chunk_bytes=4 * KIB)
    assert [made.slot_offset_bytes(slot) for slot in range(4)] == [8192 + n * 36864 for n in range(4)]
    assert (made.data_offset_bytes, made.size_bytes, made.end_bytes) == (2 * MIB, 1022 * MIB, GIB)


def test_the_size_is_rounded_down_to_whole_blocks_of_4_kib() -> None:
    assert layout(204807).size_sectors == 202752
    assert layout(204800, size_sectors=8007).size_sectors == 8000


def test_more_nodes_than_slots_fit_are_refused_with_the_number_that_fits() -> None:
    # 64 MiB of 4 KiB chunks: slots of 4096 bytes in 1 MiB; 100 times as many bits make fewer slots.
    made = layout(device_sectors_for(600 * MIB // 512), chunk_bytes=4 * KIB, nodes=2)
    nodes_max = (made.data_offset_bytes - 8192) // made.slot_bytes
    assert 2 < nodes_max < 64
    assert layout(device_sectors_for(600 * MIB // 512), chunk_bytes=4 * KIB, nodes=nodes_max).nodes == nodes_max
    with pytest.raises(TooManyNodes, match=f"that is {nodes_max} nodes"):
        layout(device_sectors_for(600 * MIB // 512), chunk_bytes=4 * KIB, nodes=nodes_max + 1)


@pytest.mark.parametrize("nodes", [0, 1, 65])
def test_a_number_of_nodes_that_cannot_be_is_refused(nodes: int) -> None:
    with pytest.raises(BadGeometry, match=f"number of nodes {nodes} is not possible: from 2 to 64"):
        layout(204800, nodes=nodes)


@pytest.mark.parametrize("chunk_bytes", [512, 2048, 5000, 65537, 1 << 32])
def test_a_chunk_that_cannot_be_is_refused(chunk_bytes: int) -> None:
    with pytest.raises(BadGeometry, match="bitmap chunk"):
        layout(204800, chunk_bytes=chunk_bytes)


def test_a_device_without_room_for_the_size_is_refused_with_both_numbers() -> None:
    with pytest.raises(ImageTooSmall) as caught:
        layout(204800, size_sectors=204800)
    assert (caught.value.have_sectors, caught.value.need_sectors) == (204800, 206848)
    with pytest.raises(ImageTooSmall):
        layout(2048)
    with pytest.raises(BadGeometry, match="at least 4096 bytes"):
        layout(204800, size_sectors=7)


@given(
    device_sectors=st.integers(4096, 2**36),
    chunk_shift=st.integers(12, 31),
    nodes=st.integers(2, 64),
)
def test_every_layout_keeps_slots_and_data_apart_and_inside(device_sectors: int, chunk_shift: int, nodes: int) -> None:
    try:
        made = layout(device_sectors, chunk_bytes=1 << chunk_shift, nodes=nodes)
    except TooManyNodes:
        assume(False)
    assert made.slot_offset_bytes(nodes - 1) + made.slot_bytes <= made.data_offset_bytes
    assert made.bits * made.chunk_bytes >= made.size_bytes > (made.bits - 1) * made.chunk_bytes
    assert made.slot_bytes * 8 >= made.bits + 256 * 8
    assert made.end_bytes <= device_sectors * 512

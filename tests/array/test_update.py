"""Another number of slots, another cluster name: what the slots hold is kept, wherever the change is cut off."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.arrays import NOW_S, make_array
from support.golden import golden_images

from raidfs.array.assemble import assemble
from raidfs.array.assembly import Assembly
from raidfs.array.head import read_candidates
from raidfs.array.images import open_image
from raidfs.array.update import Step, Update, UpdateRequest, Write, plan_update, update_array
from raidfs.errors import (
    ArrayHalfResized,
    BadGeometry,
    ImageAccess,
    ImageInUse,
    LegMissing,
    NoBitmapSuperblock,
    SameImageTwice,
    TooManyNodes,
)
from raidfs.format.bitmap import SUPER_BYTES, BitmapSuperblock, iter_dirty, set_dirty
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import MAX_SECTOR, ROLE_FAULTY, SUPER_OFFSET_BYTES, Superblock
from raidfs.units import KIB, MIB

CHUNK = 4 * KIB  # of an array of 256 MiB: 65536 bits, so that a slot has three pages
SIZE = 256 * MIB
NODES = 4


@dataclasses.dataclass
class Made:
    paths: list[str]
    layout: ArrayLayout

    def update(self, **request: Any) -> Update:
        dry_run = request.pop("dry_run", False)
        return update_array(UpdateRequest(tuple(self.paths), **request), now_s=NOW_S + 1, dry_run=dry_run)

    def set_bits(self, slot: int, bits: Sequence[int], legs: Sequence[int] = (0, 1), **head: Any) -> None:
        """Set bits of a slot, and fields of its superblock, on some legs."""
        for leg in legs:
            with open(self.paths[leg], "r+b") as file:
                file.seek(self.layout.bitmap_start_bytes + slot * self.layout.slot_bytes)
                data = bytearray(file.read(self.layout.slot_bytes))
                found = memoryview(data)[SUPER_BYTES:]
                for bit in bits:
                    set_dirty(found, bit)
                data[:SUPER_BYTES] = dataclasses.replace(BitmapSuperblock.decode(bytes(data)), **head).encode()
                file.seek(-len(data), os.SEEK_CUR)
                file.write(data)

    def set_super(self, leg: int, **changes: Any) -> None:
        with open(self.paths[leg], "r+b") as file:
            file.seek(SUPER_OFFSET_BYTES)
            superblock = dataclasses.replace(Superblock.decode(file.read(4096)), **changes)
            file.seek(SUPER_OFFSET_BYTES)
            file.write(superblock.encode())

    def assembly(self, paths: Sequence[str] | None = None, *, heals: bool = False, run: bool = False) -> Assembly:
        return assemble(read_candidates(paths or self.paths), heals_bitmaps=heals, run=run)

    def superblock(self, leg: int) -> Superblock:
        found = read_candidates([self.paths[leg]])[0].superblock
        assert isinstance(found, Superblock)
        return found

    def slot(self, slot: int, leg: int = 0) -> bytes:
        with open(self.paths[leg], "rb") as file:
            file.seek(self.layout.bitmap_start_bytes + slot * self.layout.slot_bytes)
            return file.read(self.layout.slot_bytes)

    def dirty(self, slot: int, leg: int = 0) -> list[int]:
        return list(iter_dirty(self.slot(slot, leg)[SUPER_BYTES:], self.layout.bits))

    def head(self, slot: int, leg: int = 0) -> BitmapSuperblock:
        return BitmapSuperblock.decode(self.slot(slot, leg))

    def metadata(self) -> list[bytes]:
        found = []
        for path in self.paths:
            with open(path, "rb") as file:
                found.append(file.read(self.layout.data_offset_bytes))
        return found

    def put_metadata(self, metadata: Sequence[bytes]) -> None:
        for path, data in zip(self.paths, metadata, strict=True):
            with open(path, "r+b") as file:
                file.write(data)


def make(directory: Path, **request: Any) -> Made:
    request = {"size_bytes": SIZE, "chunk_bytes": CHUNK, "nodes": NODES, "assume_clean": True, **request}
    created = make_array(directory, **request)
    made = Made([image.path for image in created.images], created.layout)
    clear = bytes(made.layout.slot_bytes - SUPER_BYTES)
    for path in made.paths:
        with open(path, "r+b") as file:
            file.seek(made.layout.bitmap_start_bytes + SUPER_BYTES)
            file.write(clear)
    return made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """An array of four nodes, all of whose slots have bits, some on one leg only, as a crash leaves them."""
    made = make(tmp_path)
    for leg in (0, 1):
        made.set_super(leg, resync_offset_sectors=0, events=7)
    for slot in range(NODES):
        made.set_bits(slot, [slot, 1000 * slot + 500, 40_000 + slot, 65_535 - slot], events_cleared=slot)
        made.set_bits(slot, [20_000 + slot], legs=[slot % 2])
    return made


def bits_of(slot: int) -> set[int]:
    return {slot, 1000 * slot + 500, 40_000 + slot, 65_535 - slot}


# No data was written for bits that one leg has alone (P2), so they may go, and they may stay.
ONE_LEG_BITS = {20_000 + slot for slot in range(NODES)}
EVERY_BIT = set().union(*(bits_of(slot) for slot in range(NODES)))

# ---- what it does --------------------------------------------------------------------------------------------------


def test_more_nodes_get_empty_slots_and_the_others_keep_their_bits(made: Made) -> None:
    before = [[made.dirty(slot, leg) for slot in range(NODES)] for leg in (0, 1)]
    made.update(nodes=9)
    assembly = made.assembly()
    assert (assembly.nodes, assembly.cluster_name, assembly.half_updated) == (9, "raidfs", False)
    for leg in (0, 1):
        assert [set(made.dirty(slot, leg)) >= set(before[leg][slot]) for slot in range(NODES)] == [True] * NODES
        assert [made.dirty(slot, leg) for slot in range(NODES, 9)] == [[]] * 5
        assert {made.head(slot, leg).nodes for slot in range(9)} == {9}


def test_fewer_nodes_leave_the_bits_of_those_that_go_in_slot_0_on_all_legs(made: Made) -> None:
    made.update(nodes=2)
    assert made.assembly().nodes == 2
    for leg in (0, 1):
        assert set(made.dirty(0, leg)) == bits_of(0) | bits_of(2) | bits_of(3) | {20_000, 20_002, 20_003}
        assert set(made.dirty(1, leg)) >= bits_of(1)
        assert made.slot(2, leg) == made.slot(3, leg) == bytes(made.layout.slot_bytes)
        assert made.head(0, leg).events_cleared == 3


def test_the_cluster_name_changes_on_every_slot_and_nothing_else_does(made: Made) -> None:
    slots = [*itertools.product(range(NODES), (0, 1))]
    superblocks = [made.superblock(leg) for leg in (0, 1)]
    heads, bits = [made.head(*slot) for slot in slots], [set(made.dirty(*slot)) for slot in slots]
    made.update(cluster_name="blue")
    assert made.assembly().cluster_name == "blue"
    assert [made.head(*slot) for slot in slots] == [dataclasses.replace(head, cluster_name=b"blue") for head in heads]
    assert [set(made.dirty(*slot)) >= before for slot, before in zip(slots, bits, strict=True)] == [True] * len(slots)
    assert [made.superblock(leg) for leg in (0, 1)] == superblocks


def test_the_same_again_finds_nothing_to_do_and_writes_nothing(made: Made) -> None:
    made.update(nodes=6, cluster_name="blue")
    before = made.metadata()
    again = made.update(nodes=6, cluster_name="blue")
    assert again.steps == ()
    assert made.metadata() == before


def test_there_and_back_again_keeps_every_bit(made: Made) -> None:
    for nodes in (64, 2, 5, 3, 4):
        made.update(nodes=nodes)
    assert set().union(*(made.dirty(slot) for slot in range(NODES))) - ONE_LEG_BITS == EVERY_BIT


def test_a_dry_run_tells_the_steps_and_writes_nothing(made: Made) -> None:
    before = made.metadata()
    update = made.update(nodes=2, cluster_name="blue", dry_run=True)
    assert made.metadata() == before
    assert [step.what for step in update.steps] == [
        "add the bits of slots 2 to 3 to slot 0: 15 dirty chunks",
        "let slots 0 to 1 say 2 nodes, cluster blue",
        "erase slots that are not needed any more",
    ]


def test_bits_of_a_clean_array_count_when_they_go_to_another_slot(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.set_bits(3, [17])
    assert made.superblock(0).resync_offset_sectors == MAX_SECTOR
    made.update(nodes=2)
    assert [made.superblock(leg).resync_offset_sectors for leg in (0, 1)] == [0, 0]
    assert made.dirty(0) == [17]


def test_a_slot_that_is_out_of_date_goes_with_all_bits_set(made: Made) -> None:
    made.set_bits(3, [], state=2)
    made.update(nodes=3)
    assert len(made.dirty(0)) == made.layout.bits


def test_spares_get_the_slots_too(tmp_path: Path) -> None:
    made = make(tmp_path, spares=1)
    made.update(nodes=6, cluster_name="blue")
    assert {(made.head(slot, 2).nodes, made.head(slot, 2).cluster_name) for slot in range(6)} == {(6, b"blue")}


def test_a_leg_that_lacks_slots_gets_them(made: Made) -> None:
    with open(made.paths[1], "r+b") as file:
        file.seek(made.layout.slot_offset_bytes(2))
        file.write(bytes(made.layout.slot_bytes))
    made.update(nodes=5)
    assert made.assembly().nodes == 5
    assert made.dirty(2, 1) == made.dirty(2, 0)


def test_a_leg_that_is_one_event_behind_is_brought_up_first(made: Made) -> None:
    made.set_super(1, events=6)
    made.update(nodes=5)
    assert made.superblock(1).events == made.superblock(0).events == 7


# ---- what it refuses -----------------------------------------------------------------------------------------------


def check_refused(made: Made, error: type[Exception], match: str, **request: Any) -> None:
    before = made.metadata()
    with pytest.raises(error, match=match):
        made.update(**request)
    assert made.metadata() == before


def test_more_nodes_than_there_is_room_for_are_refused_with_numbers(tmp_path: Path) -> None:
    made = make(tmp_path, size_bytes=1024 * MIB)
    assert made.layout.nodes_max == 56
    text = "57 nodes need 2101248 bytes of bitmap and there is room for 2088960, that is 56 nodes"
    check_refused(made, TooManyNodes, text, nodes=57)
    made.update(nodes=56)
    assert made.assembly().nodes == 56


def test_a_bad_block_log_is_not_overwritten(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.set_super(1, bblog_size_sectors=8, bblog_offset_sectors=8 + 6 * 24 + 3)
    check_refused(made, TooManyNodes, "7 nodes need 86016 bytes of bitmap and there is room for 75264, ", nodes=7)
    made.update(nodes=6)


@pytest.mark.parametrize("number", ["001", "002", "003", "004", "005", "007"])
def test_arrays_of_the_kernel_and_of_mdadm_are_changed_too(tmp_path: Path, number: str) -> None:
    paths = tuple(image.write_to(tmp_path) for image in golden_images(number))
    for nodes in (8, 2, 3):
        update_array(UpdateRequest(paths, nodes, "blue"), now_s=NOW_S)
        assembly = assemble(read_candidates(paths))
        assert (assembly.nodes, assembly.cluster_name) == (nodes, "blue")


@pytest.mark.parametrize("nodes", [-1, 0, 1, 65])
def test_a_number_of_nodes_that_no_array_can_have_is_refused(made: Made, nodes: int) -> None:
    check_refused(made, BadGeometry, "from 2 to 64", nodes=nodes)


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb"])
def test_a_name_that_no_cluster_can_have_is_refused(made: Made, name: str) -> None:
    check_refused(made, BadGeometry, "printable", cluster_name=name)


def test_an_array_that_is_in_use_is_refused_even_for_a_dry_run(made: Made) -> None:
    with open_image(made.paths[1]) as image:
        image.lock(exclusive=False)
        check_refused(made, ImageInUse, f"{made.paths[1]} is in use by another process", nodes=5)
        check_refused(made, ImageInUse, "umount", nodes=5, dry_run=True)


def test_an_image_twice_is_refused(made: Made) -> None:
    made.paths[1] = made.paths[0]
    check_refused(made, SameImageTwice, "are the same image", nodes=5)


def test_an_array_whose_resize_was_cut_off_is_refused(made: Made) -> None:
    made.set_bits(2, [], sync_size_sectors=SIZE // 512 - 8)
    check_refused(made, ArrayHalfResized, "slots 2 are of another size", nodes=5)


def test_a_missing_leg_is_refused_and_with_run_it_has_to_be_added_again(made: Made) -> None:
    both, made.paths = made.paths, made.paths[:1]
    check_refused(made, LegMissing, "leg 1 is missing", nodes=5)
    made.update(nodes=5, run=True)
    assert made.superblock(0).role_of(1) == ROLE_FAULTY
    assembly = made.assembly(both, run=True)
    assert [leg.path for leg in assembly.left_out] == [both[1]]
    assert assembly.nodes == 5


def test_a_leg_that_is_out_of_date_is_left_as_it_is(made: Made) -> None:
    made.set_super(0, events=20)
    before = made.metadata()[1]
    assert made.update(nodes=5, run=True).left_out == (made.paths[1],)
    assert made.metadata()[1] == before


def test_an_image_that_cannot_be_written_leaves_an_array_that_is_finished_later(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.pwritev, itertools.count()

    def broken(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if next(count) == 5:
            raise OSError(5, "Input/output error")
        return real(fd, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", broken)
        with pytest.raises(ImageAccess, match="cannot write it: Input/output error"):
            made.update(nodes=2)
    made.update(nodes=2)
    assert made.assembly().nodes == 2
    assert set(made.dirty(0)) | set(made.dirty(1)) >= EVERY_BIT


# ---- cut off -------------------------------------------------------------------------------------------------------


def plan(made: Made, **request: Any) -> tuple[Step, ...]:
    wanted = UpdateRequest(tuple(made.paths), **request)
    images = {path: open_image(path) for path in made.paths}
    try:
        return plan_update(wanted, images, now_s=NOW_S + 1).steps
    finally:
        for image in images.values():
            image.close()


def apply(made: Made, metadata: list[bytes], writes: Sequence[Write]) -> list[bytes]:
    found = [bytearray(data) for data in metadata]
    for write in writes:
        leg = found[made.paths.index(write.path)]
        leg[write.offset_bytes : write.offset_bytes + len(write.data)] = write.data
    return [bytes(data) for data in found]


def torn(write: Write, rng: Random) -> list[Write]:
    """The parts of a write that reach the leg, in sectors."""
    parts = range(0, len(write.data), 512)
    return [Write(write.path, write.offset_bytes + at, write.data[at : at + 512]) for at in parts if rng.random() < 0.5]


def cuts(made: Made, steps: Sequence[Step], rng: Random) -> Iterator[tuple[str, list[bytes]]]:
    """What the images hold when the power fails: each step begun after the one before is durable, and then any part."""
    metadata = made.metadata()
    for number, step in enumerate(steps):
        writes = list(step.writes)
        for count in range(len(writes)):
            yield f"step {number}, the first {count} writes", apply(made, metadata, writes[:count])
            yield f"step {number}, all but the first {count}", apply(made, metadata, writes[count:])
        for _ in range(8):
            some = [part for write in writes if rng.random() < 0.7 for part in torn(write, rng)]
            yield f"step {number}, any part", apply(made, metadata, some)
        metadata = apply(made, metadata, writes)
    yield "the end", metadata


def check_opens(made: Made, nodes: set[int], names: set[str], what: str) -> None:
    """Every selection of legs makes up an array, which tells of every dirty chunk."""
    for paths in (made.paths, made.paths[::-1], made.paths[:1], made.paths[1:]):
        assembly = made.assembly(paths, heals=True, run=len(paths) == 1)
        assert assembly.nodes in nodes, what
        assert assembly.cluster_name in names, what
        leg = made.paths.index(assembly.bitmap_path)
        assert {bit for slot in range(assembly.nodes) for bit in made.dirty(slot, leg)} >= EVERY_BIT, what


CHANGES = [
    {"nodes": 6, "cluster_name": "blue"},
    {"nodes": 2, "cluster_name": "blue"},
    {"cluster_name": "blue"},
]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_cut_anywhere_it_opens_with_every_bit_and_can_be_finished(made: Made, change: dict[str, Any]) -> None:
    nodes, names = {NODES, change.get("nodes", NODES)}, {"raidfs", change.get("cluster_name", "raidfs")}
    before = made.metadata()
    for what, metadata in cuts(made, plan(made, **change), Random(1)):
        made.put_metadata(metadata)
        check_opens(made, nodes, names, what)
        made.update(**change)
        assembly = made.assembly()
        assert (assembly.nodes, assembly.cluster_name) == (
            change.get("nodes", NODES),
            max(names - {"raidfs"}, default="raidfs"),
        )
        check_opens(made, nodes, names, what)
        assert made.update(**change).steps == (), what
        made.put_metadata(before)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES[:2], ids=str)
@pytest.mark.parametrize("other", [{"nodes": 4}, {"nodes": 3}, {"nodes": 7}, {"cluster_name": "green"}], ids=str)
def test_cut_anywhere_it_can_be_changed_otherwise(made: Made, change: dict[str, Any], other: dict[str, Any]) -> None:
    before = made.metadata()
    for what, metadata in [*cuts(made, plan(made, **change), Random(2))][::11]:
        made.put_metadata(metadata)
        made.update(**other)
        assembly = made.assembly()
        assert not assembly.half_updated
        assert assembly.nodes == other.get("nodes", assembly.nodes)
        assert assembly.cluster_name == other.get("cluster_name", assembly.cluster_name)
        check_opens(made, {assembly.nodes}, {assembly.cluster_name}, what)
        made.put_metadata(before)


@pytest.mark.parametrize("wrong", ["slots told of before they are written", "slots gone before their bits are kept"])
def test_the_order_of_the_steps_is_what_keeps_the_bits(made: Made, wrong: str) -> None:
    grows = wrong.startswith("slots told")
    steps = plan(made, nodes=6 if grows else 2)
    steps = steps[::-1] if grows else steps[1:]

    def look() -> None:
        for what, metadata in cuts(made, steps, Random(1)):
            made.put_metadata(metadata)
            check_opens(made, {2, 4, 6}, {"raidfs"}, what)

    with pytest.raises((AssertionError, NoBitmapSuperblock)):
        look()

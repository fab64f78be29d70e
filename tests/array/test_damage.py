"""Damaged, truncated and swapped images: a clear error or a correct result, never anything else, never a write."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.arrays import make_array

from raidfs.array.assemble import assemble
from raidfs.array.examine import examine_image
from raidfs.array.head import read_candidates
from raidfs.cli.examine import text_lines
from raidfs.errors import RaidfsError
from raidfs.format.superblock import DEVICES_MAX, checksum
from raidfs.units import KIB

METADATA_BYTES = 8192 + 3 * 4096  # what comes after the last slot means nothing
NODES = 3


@dataclasses.dataclass(frozen=True)
class Damage:
    """What happens to one leg: bytes that are changed, a right checksum made afterwards, a new length."""

    changes: tuple[tuple[int, bytes], ...] = ()
    fix_checksum: bool = False
    length_bytes: int | None = None

    def apply(self, head: bytes) -> bytes:
        data = bytearray(head)
        for offset, piece in self.changes:
            data[offset : offset + len(piece)] = piece
        max_dev = int.from_bytes(data[4096 + 220 : 4096 + 224], "little")
        if self.fix_checksum and max_dev <= DEVICES_MAX:
            struct.pack_into("<I", data, 4096 + 216, checksum(bytes(data[4096:8192]), max_dev))
        return bytes(data[: len(head)])


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two good legs: what is before their data, and their full length."""

    heads: tuple[bytes, bytes]
    length_bytes: int


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("good")
    created = make_array(directory, size_bytes=256 * KIB, nodes=NODES, chunk_bytes=4 * KIB)
    first, second = (Path(image.path).read_bytes()[:METADATA_BYTES] for image in created.images)
    return Pair((first, second), created.images[0].size_bytes)


# Where a change matters: the fields of the superblock, its roles, the heads of the slots; and anywhere.
FIELDS = st.integers(4096, 4096 + 264) | st.sampled_from(range(8192, METADATA_BYTES, 4096)).flatmap(
    lambda slot: st.integers(slot, slot + 137)
)
PLACES = FIELDS | st.integers(0, METADATA_BYTES - 1)
PIECES = (
    st.binary(min_size=1, max_size=8)
    | st.sampled_from([b"\xff" * 8, bytes(8), b"\xff" * 4, bytes(4), b"\x7f", b"\x80"])
    | st.integers(0, 20).map(lambda n: struct.pack("<I", 1 << n))
)
WIPES = st.tuples(st.sampled_from([0, 4096, 8192, 12288, 16384]), st.sampled_from([512, 4096, 8192])).map(
    lambda place: (place[0], bytes(place[1]))
)
DAMAGES = st.builds(
    Damage,
    changes=st.lists(st.tuples(PLACES, PIECES) | WIPES, max_size=3).map(tuple),
    fix_checksum=st.booleans(),
    length_bytes=st.none() | st.integers(0, 2**21),
)


def write(path: Path, head: bytes, length_bytes: int) -> str:
    path.write_bytes(head)
    os.truncate(path, length_bytes)
    return str(path)


def check(paths: list[str], *, run: bool) -> None:
    """Examine and assemble the images; nothing but a RaidfsError with a text may come, and nothing may be written."""
    before = [(Path(path).read_bytes(), os.stat(path).st_mtime_ns) for path in paths]
    for path in paths:
        with contextlib.suppress(RaidfsError):
            examination = examine_image(path)
            assert "\n".join(text_lines(examination, homehost="alpha"))
            assert examination.to_json()
    try:
        assembly = assemble(read_candidates(paths), run=run)
    except RaidfsError as e:
        text = str(e)
        assert len(text) > 10, text
    else:
        layout = assembly.layout
        assert layout.slots_fit
        assert layout.bitmap_start_bytes >= 8192
        roles = [leg.role for leg in assembly.legs]
        assert roles == sorted(set(roles))
        assert set(roles) | set(assembly.missing_roles) == set(range(assembly.superblock.raid_disks))
        assert run or not assembly.missing_roles
        for leg in (*assembly.legs, *assembly.spares):
            assert layout.end_bytes <= os.stat(leg.path).st_size
            assert leg.superblock.set_uuid == assembly.set_uuid
    assert [(Path(path).read_bytes(), os.stat(path).st_mtime_ns) for path in paths] == before


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGES, other=st.none() | DAMAGES, run=st.booleans())
@example(damage=Damage(length_bytes=0), other=None, run=True)
@example(damage=Damage(length_bytes=4096), other=None, run=True)
@example(damage=Damage(length_bytes=8191), other=None, run=True)
@example(damage=Damage(length_bytes=8192 + 255), other=None, run=True)
def test_any_damage_is_either_refused_or_harmless(
    pair: Pair, tmp_path: Path, damage: Damage, other: Damage | None, run: bool
) -> None:
    paths = []
    for n, (head, hit) in enumerate(zip(pair.heads, (damage, other or Damage()), strict=True)):
        length = pair.length_bytes if hit.length_bytes is None else hit.length_bytes
        paths.append(write(tmp_path / f"leg{n}", hit.apply(head), length))
    check(paths, run=run)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 8 * 512 - 1), run=st.booleans())
def test_a_flipped_bit_of_the_superblock_is_refused_by_the_name_of_the_image(
    pair: Pair, tmp_path: Path, bit: int, run: bool
) -> None:
    flipped = bytearray(pair.heads[0])
    flipped[4096 + bit // 8] ^= 1 << bit % 8
    good = write(tmp_path / "leg1", pair.heads[1], pair.length_bytes)
    bad = write(tmp_path / "leg0", bytes(flipped), pair.length_bytes)
    check([bad, good], run=run)
    with pytest.raises(RaidfsError) as caught:
        assemble(read_candidates([bad, good]), run=run)
    assert bad in str(caught.value)


def test_images_of_other_arrays_and_swapped_heads_are_refused(pair: Pair, tmp_path: Path) -> None:
    other = make_array(tmp_path, size_bytes=256 * KIB, nodes=NODES, chunk_bytes=4 * KIB, name="other")
    legs = [write(tmp_path / f"good{n}", head, pair.length_bytes) for n, head in enumerate(pair.heads)]
    check([legs[0], other.images[1].path], run=False)
    swapped = write(tmp_path / "swapped", pair.heads[0][:8192] + pair.heads[1][8192:], pair.length_bytes)
    check([swapped, legs[1]], run=False)
    with pytest.raises(RaidfsError, match="one is a copy"):
        assemble(read_candidates([swapped, legs[0]]))

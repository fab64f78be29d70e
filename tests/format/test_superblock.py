from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.golden import GoldenImage, golden_images

from raidfs.errors import (
    NoSuperblock,
    RaidfsError,
    SuperblockChecksum,
    SuperblockFeatures,
    SuperblockField,
    SuperblockVersion,
)
from raidfs.format.superblock import (
    DEVICES_MAX,
    MAX_SECTOR,
    ROLE_FAULTY,
    ROLE_SPARE,
    SUPER_BYTES,
    Superblock,
    checksum,
    printable,
    stored_checksum,
    uuid_bytes,
    uuid_text,
)

GOLDEN = golden_images()


def superblock(**changes: object) -> Superblock:
    base = Superblock(
        set_uuid=bytes(range(16)),
        set_name=b"alpha:md0",
        ctime=1_700_000_000,
        size_sectors=8192,
        raid_disks=2,
        dev_number=0,
        device_uuid=bytes(range(16, 32)),
        data_offset_sectors=2048,
        data_size_sectors=8192,
        utime=1_700_000_000,
        events=0,
        resync_offset_sectors=0,
        dev_roles=(0, 1, *[ROLE_SPARE] * 126),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def area(image: GoldenImage) -> bytes:
    return image.head[4096 : 4096 + SUPER_BYTES]


def poked(data: bytes, offset: int, layout: str, value: int, *, fix_checksum: bool = True) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, value)
    if fix_checksum:
        struct.pack_into("<I", changed, 216, checksum(bytes(changed), 128))
    return bytes(changed)


@pytest.mark.parametrize("image", GOLDEN, ids=lambda image: image.name)
def test_what_linux_wrote_is_read_and_written_back_byte_for_byte(image: GoldenImage) -> None:
    assert Superblock.decode(area(image)).encode() == area(image)


def test_the_fields_of_a_running_array_are_those_that_mdadm_prints() -> None:
    first, second = golden_images("002")
    sb = Superblock.decode(area(first))
    assert sb.set_uuid_text == "44c3fa51:f3efc6a7:1276da09:fec20ce5"
    assert sb.device_uuid_text == "fddc04f0:f81aec42:f9b9160b:88880c09"
    assert (sb.name, sb.array_name, sb.raid_disks, sb.level) == ("n1:0", "0", 2, 1)
    assert (sb.size_sectors, sb.data_size_sectors, sb.data_offset_sectors) == (409600, 522240, 2048)
    assert (sb.events, sb.resync_offset_sectors, sb.is_clean, sb.max_dev) == (25, 0, False, 128)
    assert (sb.role, Superblock.decode(area(second)).role) == (0, 1)
    assert stored_checksum(area(first)) == 0xDF36FDEC
    assert sb.is_clustered
    assert not sb.is_recovering


def test_a_clean_array_has_the_last_sector_as_resync_offset() -> None:
    sb = Superblock.decode(area(golden_images("003")[0]))
    assert sb.resync_offset_sectors == MAX_SECTOR
    assert sb.is_clean


@pytest.mark.parametrize("max_dev", [0, 1, 3, 5, 128, DEVICES_MAX])
def test_the_checksum_covers_the_roles_and_nothing_behind_them(max_dev: int) -> None:
    data = superblock(dev_roles=tuple(range(max_dev))).encode()
    end = 256 + 2 * max_dev
    if max_dev:
        with pytest.raises(SuperblockChecksum):
            Superblock.decode(poked(data, end - 1, "B", 0x7F, fix_checksum=False))
    if end < SUPER_BYTES:
        behind = poked(data, end, "B", 0x7F, fix_checksum=False)
        assert Superblock.decode(behind).encode() == behind


def test_the_checksum_folds_the_carry_and_adds_an_odd_half_word() -> None:
    # By hand: 3 * 0xffffffff + 5 is 0x3_0000_0002, and the carry 3 makes it 5.
    data = b"\xff" * 12 + bytes(244) + struct.pack("<H", 5)
    assert checksum(data, 1) == 5


@pytest.mark.parametrize(
    ("offset", "layout", "value", "error"),
    [
        (0, "<I", 0, NoSuperblock),
        (4, "<I", 0, SuperblockVersion),
        (8, "<I", 0x101 | 1 << 13, SuperblockFeatures),
        (12, "<I", 1, SuperblockField),
        (80, "<Q", 8193, SuperblockField),
        (92, "<I", 0, SuperblockField),
        (128, "<Q", 15, SuperblockField),
        (136, "<Q", 2**62, SuperblockField),
        (144, "<Q", 0, SuperblockField),
        (220, "<I", DEVICES_MAX + 1, SuperblockField),
        (255, "B", 1, SuperblockField),
        (200, "<Q", 1, SuperblockChecksum),
    ],
)
def test_a_bad_field_is_refused_by_its_name(offset: int, layout: str, value: int, error: type[RaidfsError]) -> None:
    data = poked(superblock().encode(), offset, layout, value, fix_checksum=error is not SuperblockChecksum)
    with pytest.raises(error) as caught:
        Superblock.decode(data, path="/srv/a.img")
    assert "/srv/a.img" in str(caught.value)


def test_the_error_of_a_field_says_the_value_and_the_rule() -> None:
    data = poked(superblock().encode(), 144, "<Q", 0)
    with pytest.raises(SuperblockField) as caught:
        Superblock.decode(data, path="/srv/a.img")
    assert str(caught.value).startswith(
        "/srv/a.img: superblock field super_offset is 0, but it must be 8, the sector it was read from (metadata 1.2)"
    )


def test_bytes_that_end_early_are_no_superblock() -> None:
    with pytest.raises(NoSuperblock):
        Superblock.decode(superblock().encode()[:-1])


def test_a_damaged_superblock_can_still_be_taken_apart() -> None:
    data = poked(superblock().encode(), 200, "<Q", 7, fix_checksum=False)
    assert Superblock.unpack(data).events == 7


def test_a_device_number_beyond_the_table_is_a_spare() -> None:
    assert superblock(dev_number=500).role == ROLE_SPARE


def test_a_role_is_changed_in_the_table_of_roles_alone() -> None:
    before = superblock()
    after = before.with_role(1, ROLE_FAULTY)
    assert after.dev_roles[:3] == (0, ROLE_FAULTY, ROLE_SPARE)
    assert dataclasses.replace(after, dev_roles=before.dev_roles) == before


def test_a_name_without_a_home_host_is_the_arrays_name() -> None:
    assert superblock(set_name=b"data").array_name == "data"


def test_a_name_that_is_not_text_is_shown_escaped() -> None:
    assert printable(b"a\xffb\0rest") == "a\\xffb"


def test_a_uuid_is_read_as_it_is_printed() -> None:
    uuid = bytes.fromhex("4bf66aade18249269748a2084060f7f3")
    assert uuid_text(uuid) == "4bf66aad:e1824926:9748a208:4060f7f3"
    assert uuid_bytes(uuid_text(uuid)) == uuid
    with pytest.raises(ValueError, match="not a UUID"):
        uuid_bytes("4bf66aad")


U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
I32 = st.integers(-(2**31), 2**31 - 1)


@given(
    st.builds(
        superblock,
        set_uuid=st.binary(min_size=16, max_size=16),
        set_name=st.binary(max_size=32).map(lambda raw: raw.rstrip(b"\0")),
        ctime=U64,
        layout=U32,
        level=I32,
        events=U64,
        resync_offset_sectors=U64,
        recovery_offset_sectors=U64,
        dev_number=U32,
        bitmap_offset_sectors=I32,
        delta_disks=I32,
        devflags=st.integers(0, 255),
        bblog_size_sectors=st.integers(0, 65535),
        bblog_offset_sectors=I32,
        cnt_corrected_read=U32,
        feature_map=st.integers(0, 8191),
        dev_roles=st.lists(st.integers(0, 65535), max_size=200).map(tuple),
        trailing=st.binary(max_size=100).map(lambda raw: raw.rstrip(b"\0")),
    )
)
def test_every_value_survives_writing_and_reading(sb: Superblock) -> None:
    assert Superblock.decode(sb.encode()) == sb


@given(st.data())
def test_any_bytes_are_either_refused_or_written_back_as_they_are(data: st.DataObject) -> None:
    raw = bytearray(superblock().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 520) | st.integers(0, SUPER_BYTES - 1))
        raw[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        max_dev = int.from_bytes(raw[220:224], "little")
        if max_dev <= DEVICES_MAX:
            struct.pack_into("<I", raw, 216, checksum(bytes(raw), max_dev))
    try:
        sb = Superblock.decode(bytes(raw))
    except RaidfsError as e:
        assert "image" in str(e)  # noqa: PT017  either outcome may come
    else:
        assert sb.encode() == bytes(raw)


def test_every_single_flipped_bit_is_refused() -> None:
    good = superblock().encode()
    for bit in range(8 * (256 + 2 * 128)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RaidfsError):
            Superblock.decode(bytes(flipped))


@given(st.binary(max_size=SUPER_BYTES))
@example(bytes(SUPER_BYTES))
def test_foreign_bytes_are_no_superblock(raw: bytes) -> None:
    with pytest.raises(NoSuperblock):
        Superblock.decode(raw)

from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
from support.arrays import make_array
from support.golden import golden_images

from raidfs.array.examine import examine_image
from raidfs.cli import examine as command
from raidfs.cli.examine import text_lines
from raidfs.errors import NoSuperblock
from raidfs.units import KIB, MIB


def poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def run(*args: str) -> int:
    parser = ArgumentParser()
    command.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["examine", *args])
    status: int = parsed.run(parsed)
    return status


def lines(path: Path | str) -> list[str]:
    return list(text_lines(examine_image(str(path)), homehost="alpha"))


def test_the_dirty_chunks_of_each_slot_are_counted(tmp_path: Path) -> None:
    layout = make_array(tmp_path, nodes=3, chunk_bytes=4 * KIB).layout
    poke(tmp_path / "leg0", layout.slot_offset_bytes(2) + 256, b"\x81\x00\xff")
    slots = examine_image(str(tmp_path / "leg0")).slots
    assert [(slot.bits, slot.dirty) for slot in slots] == [(1024, 1024), (1024, 0), (1024, 10)]


def test_the_states_of_what_linux_ran_are_told(tmp_path: Path) -> None:
    seen = {}
    for image in golden_images():
        examination = examine_image(image.write_to(tmp_path))
        assert examination.checksum_is_right
        assert examination.problem is None, image.name
        seen[image.name] = (examination.to_json()["state"], [slot.dirty for slot in examination.slots])
    assert seen["001-kernel-stopped-clean/member1"] == ("active", [0, 0, 0, 0])
    assert seen["002-kernel-active-two-nodes/member0"] == ("active", [0, 1, 0, 0])
    assert seen["003-kernel-64k-chunk/member0"] == ("clean", [8176, 0, 0, 0])


def test_a_wrong_checksum_is_shown_with_the_right_one_and_the_rest_is_shown_too(tmp_path: Path) -> None:
    make_array(tmp_path)
    right = examine_image(str(tmp_path / "leg0")).checksum_stored
    poke(tmp_path / "leg0", 4096 + 216, b"\0\0\0\0")
    text = lines(tmp_path / "leg0")
    assert f"       Checksum : 0 - expected {right:x}" in text
    assert any("Slot 3" in line for line in text)


def test_a_field_that_cannot_be_is_shown_as_a_problem(tmp_path: Path) -> None:
    make_array(tmp_path)
    poke(tmp_path / "leg0", 4096 + 92, b"\0\0\0\0")
    assert any("Problem : " in line and "field raid_disks is 0" in line for line in lines(tmp_path / "leg0"))


def test_a_bad_slot_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    layout = make_array(tmp_path).layout
    poke(tmp_path / "leg0", layout.slot_offset_bytes(1), b"XXXX")
    text = "\n".join(lines(tmp_path / "leg0"))
    assert "no bitmap superblock in slot 1 (magic 58585858)" in text
    assert "         Slot 2 : OK, 1 bits (chunks), 0 dirty (0.0%), events 0, cleared at 0" in text


def test_without_slot_0_there_is_one_line_that_says_so(tmp_path: Path) -> None:
    layout = make_array(tmp_path).layout
    poke(tmp_path / "leg0", layout.slot_offset_bytes(0), b"XXXX")
    assert [slot.slot for slot in examine_image(str(tmp_path / "leg0")).slots] == [0]
    assert not any("Cluster Name" in line for line in lines(tmp_path / "leg0"))


def test_a_truncated_image_says_so(tmp_path: Path) -> None:
    make_array(tmp_path)
    with (tmp_path / "leg0").open("r+b") as file:
        file.truncate(3 * MIB)
    assert "          State : active TRUNCATED DEVICE" in lines(tmp_path / "leg0")
    assert "   Unused Space : before=1968 sectors, after=-4096 sectors" in lines(tmp_path / "leg0")


def test_an_image_that_ends_inside_its_bitmaps_is_still_shown(tmp_path: Path) -> None:
    make_array(tmp_path)
    with (tmp_path / "leg0").open("r+b") as file:
        file.truncate(8192 + 4096 + 300)
    slots = examine_image(str(tmp_path / "leg0")).slots
    assert [type(slot.error).__name__ for slot in slots] == ["NoneType", "ImageShort", *["NoBitmapSuperblock"] * 2]


def test_a_spare_and_a_missing_leg_are_told_in_mdadms_words(tmp_path: Path) -> None:
    make_array(tmp_path, spares=1)
    assert "   Device Role : spare" in lines(tmp_path / "spare0")
    assert "   Device Role : Active device 1" in lines(tmp_path / "leg1")
    poke(tmp_path / "leg0", 4096 + 256, (0xFFFE).to_bytes(2, "little"))
    assert "   Array State : .A ('A' == active, '.' == missing, 'R' == replacing)" in lines(tmp_path / "leg0")


def test_a_position_with_two_legs_is_being_replaced(tmp_path: Path) -> None:
    make_array(tmp_path, spares=1)
    poke(tmp_path / "leg0", 4096 + 260, (1).to_bytes(2, "little"))
    assert "   Array State : AR ('A' == active, '.' == missing, 'R' == replacing)" in lines(tmp_path / "leg0")


def test_a_file_without_a_superblock_is_told_on_stderr_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    make_array(tmp_path)
    assert run(str(tmp_path / "empty"), str(tmp_path / "leg0"), str(tmp_path / "absent")) == 1
    out, err = capsys.readouterr()
    assert f"No md superblock detected on {tmp_path}/empty." in err
    assert "absent: there is no such image" in err
    assert out.startswith(f"{tmp_path}/leg0:\n          Magic : a92b4efc\n        Version : 1.2\n")
    with pytest.raises(NoSuperblock):
        examine_image(str(tmp_path / "empty"))


def test_the_json_document_has_a_schema_and_one_entry_for_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_array(tmp_path, nodes=2)
    assert run("--json", str(tmp_path / "leg0"), str(tmp_path / "absent")) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    image, absent = document["images"]
    assert absent["error"]["error"] == "ImageNotFound"
    assert (image["name"], image["state"], image["checksum_correct"]) == ("alpha:md0", "active", True)
    assert image["array_uuid"] == "00010203:04050607:08090a0b:0c0d0e0f"
    assert [(slot["slot"], slot["bits"], slot["dirty"]) for slot in image["slots"]] == [(0, 1, 1), (1, 1, 0)]
    assert image["slots"][0]["cluster_name"] == "raidfs"


def test_numbers_without_bounds_take_no_time(tmp_path: Path) -> None:
    make_array(tmp_path)
    superblock = examine_image(str(tmp_path / "leg0")).superblock
    huge = dataclasses.replace(
        superblock, raid_disks=0xFF00, data_offset_sectors=1 << 50, dev_roles=tuple(range(1920)), events=2**64 - 1
    )
    poke(tmp_path / "leg0", 4096, huge.encode())
    poke(tmp_path / "leg0", 8192 + 68, b"\xff\xff\xff\xff")
    examination = examine_image(str(tmp_path / "leg0"))
    assert examination.array_state == "A" * 1920 + "." * (0xFF00 - 1920)
    (slot,) = examination.slots
    assert "nodes is 4294967295, but 32768 slots of 4096 bytes fit" in str(slot.error)


def test_a_damaged_time_is_shown_as_a_number_or_a_date(tmp_path: Path) -> None:
    make_array(tmp_path)
    poke(tmp_path / "leg0", 4096 + 64, b"\xff" * 8)
    assert any(line.startswith("  Creation Time : ") for line in lines(tmp_path / "leg0"))

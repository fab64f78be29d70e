"""Legs that are added, taken back and removed while nodes use the array; the recovery itself is not looked at here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.arrays import make_array
from support.changing_legs import LENGTH, at_rest, new_image, places, superblock, until
from support.nodes import CHUNK, Images, node, refused

from raidfs import errors
from raidfs.array.head import read_candidates
from raidfs.array.new_leg import new_superblock
from raidfs.format.superblock import ROLE_SPARE, SUPER_OFFSET_BYTES
from raidfs.units import MIB


async def test_a_new_image_is_a_spare_on_every_node_and_says_so_itself(
    images: Images, lockd: str, tmp_path: Path
) -> None:
    path = new_image(tmp_path / "new")
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        await a.add(path, spare=True, force=False)
        for one in (a, b):
            assert places(one) == {"leg0": "in_sync", "leg1": "in_sync", "new": "spare"}
            assert at_rest(one)
        own = superblock(path)
        assert (own.role, own.dev_number, own.events) == (ROLE_SPARE, 2, a.array.superblock.events)
        assert own.set_uuid == a.array.superblock.set_uuid
        with refused(errors.AlreadyLeg, path=path):
            await b.add(path, spare=False, force=False)
        await b.remove(path)
        for one in (a, b):
            assert places(one) == {"leg0": "in_sync", "leg1": "in_sync"}
        await b.touch()
        assert superblock(path).events < b.array.superblock.events


async def test_a_node_that_does_not_see_the_image_refuses_and_is_named_and_nothing_is_left(
    images: Images, lockd: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = new_image(tmp_path / "elsewhere" / "new")
    async with node(images, lockd, "a", search=(str(tmp_path / "elsewhere"),)) as a:
        async with node(images, lockd, "b") as b, node(images, lockd, "c", search=(str(tmp_path / "elsewhere"),)) as c:
            with pytest.raises(errors.MessageRefused, match=r"b \(slot 1\): it does not see the image"):
                await a.add(path, spare=False, force=False)
            for one in (a, b, c):
                assert places(one) == {"leg0": "in_sync", "leg1": "in_sync"}
                assert at_rest(one)
            assert Path(path).read_bytes()[4096:8192] == bytes(4096)
            await b.touch()
        await a.add(path, spare=False, force=False)
        assert places(a)["new"] == "spare"


async def test_an_image_that_holds_something_is_added_only_by_force(images: Images, lockd: str, tmp_path: Path) -> None:
    path = new_image(tmp_path / "new")
    with open(path, "r+b") as file:
        file.write(b"somebody's")
    short = tmp_path / "short"
    short.write_bytes(bytes(MIB))
    async with node(images, lockd) as a:
        with refused(errors.ImageHoldsData, path=path):
            await a.add(path, spare=False, force=False)
        with refused(errors.ImageTooSmall, path=str(short)):
            await a.add(str(short), spare=False, force=False)
        with refused(errors.ImageNotFound):
            await a.add(str(tmp_path / "nothing"), spare=False, force=False)
        assert Path(path).read_bytes()[:10] == b"somebody's"
        await a.add(path, spare=False, force=True)
        assert places(a)["new"] == "spare"
        assert at_rest(a)


async def test_only_a_leg_that_is_faulty_or_a_spare_is_removed(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        with refused(errors.LegInUse, path=images.paths[1]):
            await a.remove(images.paths[1])
        with refused(errors.NoSuchLeg):
            await a.remove("/nowhere")
        await b.fail(images.paths[1])
        assert places(a) == {"leg0": "in_sync", "leg1": "faulty"}
        await a.remove(images.paths[1])
        for one in (a, b):
            assert places(one) == {"leg0": "in_sync"}
        assert superblock(images.paths[0]).role_of(1) == ROLE_SPARE
        await b.volume.write(0, b"on one leg", durable=True)


async def test_a_spare_that_only_some_nodes_have_named_does_not_lose_its_number(lockd: str, tmp_path: Path) -> None:
    created = make_array(tmp_path, spares=1, chunk_bytes=CHUNK, assume_clean=True)
    paths = [image.path for image in created.images]
    async with node(Images(tuple(paths)), lockd, "a"), node(Images(tuple(paths[:2])), lockd, "b") as b:
        await b.add(new_image(tmp_path / "new"), spare=True, force=False)
        assert superblock(str(tmp_path / "new")).dev_number == 3


async def test_a_spare_that_was_removed_is_not_taken_for_the_one_that_has_its_number_now(
    lockd: str, tmp_path: Path
) -> None:
    created = make_array(tmp_path, spares=1, chunk_bytes=CHUNK, assume_clean=True)
    old = [image.path for image in created.images]
    async with node(Images(tuple(old)), lockd, "a") as a:
        await a.remove(old[2])
        await a.add(new_image(tmp_path / "new"), spare=True, force=False)
        assert superblock(str(tmp_path / "new")).dev_number == superblock(old[2]).dev_number
        async with node(Images(tuple(old)), lockd, "b") as b:  # with the command line of old
            await a.fail(old[0])
            for one in (a, b):
                await until(one, new="in_sync")
                assert os.path.basename(old[2]) not in places(one)
            await b.volume.write(0, b"where it belongs" * 256, durable=True)
            assert b"where it belongs" in Path(tmp_path / "new").read_bytes()


async def test_an_image_whose_adding_was_cut_off_is_added_again_without_force(
    images: Images, lockd: str, tmp_path: Path
) -> None:
    async with node(images, lockd) as a:
        slots = a.hot_add._new_slots()
        own = new_superblock(a.array.superblock, 2, bytes(range(16)), LENGTH)
        writes = [*slots, (SUPER_OFFSET_BYTES, own.encode())]  # in this order
        for done in range(1, len(writes) + 1):
            path = new_image(tmp_path / f"new{done}")
            with open(path, "r+b") as file:
                for offset, data in writes[:done]:
                    os.pwrite(file.fileno(), data, offset)
            if done < len(writes):
                assert isinstance(read_candidates([path])[0].superblock, errors.NoSuperblock)
            await a.add(path, spare=True, force=False)
            assert places(a)[f"new{done}"] == "spare"
            await a.remove(path)
        foreign = new_image(tmp_path / "foreign")
        with open(foreign, "r+b") as file:
            offset, data = slots[0]
            os.pwrite(file.fileno(), data[:16] + bytes(16) + data[32:], offset)
        with refused(errors.ImageHoldsData, path=foreign):
            await a.add(foreign, spare=True, force=False)

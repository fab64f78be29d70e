"""A node that joins an array whose `raidfs update` was cut off makes all slots tell the same, and loses no bit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.arrays import NOW_S
from support.nodes import Images, node, refused

from raidfs import errors
from raidfs.array.assemble import assemble
from raidfs.array.head import read_candidates
from raidfs.array.images import open_image
from raidfs.array.update import Step, UpdateRequest, plan_update, update_array


def cut_off(images: Images, request: UpdateRequest, skipped: Sequence[int]) -> None:
    """Carry a change out up to the heads of slots, of which those writes take place that are not ``skipped``."""
    with contextlib.ExitStack() as opened:
        held = {path: opened.enter_context(open_image(path, writable=True)) for path in images.paths}
        steps = plan_update(request, held, now_s=NOW_S).steps
        heads = next(number for number, step in enumerate(steps) if step.what.startswith("let "))
        done = [*steps[:heads], Step("", tuple(w for n, w in enumerate(steps[heads].writes) if n not in skipped))]
        for step in done:
            for write in step.writes:
                held[write.path].write(write.offset_bytes, write.data)


def half_updated(images: Images) -> bool:
    return assemble(read_candidates(images.paths), heals_bitmaps=True).half_updated


@pytest.mark.parametrize("skipped", [(7,), (0, 1), (0, 2, 4, 6), (1, 3, 5, 7)], ids=str)
@pytest.mark.parametrize(("nodes", "found"), [(6, 6), (2, 4)])
async def test_a_node_that_joins_makes_all_slots_alike(
    images: Images, lockd: str, nodes: int, found: int, skipped: tuple[int, ...]
) -> None:
    async with node(images, lockd):
        pass  # from here on set bits count
    images.set_bits(3, [5, 40])
    images.scribble(0, 40 * 65536, b"differs")
    skipped = tuple({n % (2 * min(4, nodes)) for n in skipped})
    cut_off(images, UpdateRequest(images.paths, nodes, "blue"), skipped)
    assert half_updated(images)
    async with node(images, lockd) as a:
        assert a.array.layout.nodes == found
        assert not half_updated(images)
        await a.wait_for_syncs()
        async with node(images, lockd, "b") as b:
            assert b.array.layout.nodes == found
    assert images.data(0) == images.data(1)
    assembly = assemble(read_candidates(images.paths))
    assert (assembly.nodes, len(read_candidates(images.paths)[1].slots)) == (found, found)


async def test_a_node_of_the_old_cluster_is_refused_only_when_slot_0_has_the_new_name(
    images: Images, lockd: str
) -> None:
    cut_off(images, UpdateRequest(images.paths, None, "blue"), (0,))
    async with node(images, lockd, cluster_name="raidfs") as a:
        assert a.array.assembly.cluster_name == "raidfs"
    assert not half_updated(images)
    with refused(errors.OtherCluster, found="raidfs", wanted="blue"):
        async with node(images, lockd, cluster_name="blue"):
            pass


async def test_a_read_only_node_leaves_the_slots_as_they_are(images: Images, lockd: str) -> None:
    cut_off(images, UpdateRequest(images.paths, 6), (0,))
    before = [Path(path).read_bytes() for path in images.paths]
    async with node(images, lockd, read_only=True) as a:
        assert a.array.layout.nodes == 6
    assert [Path(path).read_bytes() for path in images.paths] == before


async def test_an_array_that_is_mounted_is_not_updated(images: Images, lockd: str) -> None:
    async with node(images, lockd):
        with pytest.raises(errors.ImageInUse, match="raidfs umount"):
            update_array(UpdateRequest(images.paths, 6), now_s=NOW_S)
    update_array(UpdateRequest(images.paths, 6), now_s=NOW_S)
    async with node(images, lockd, slot=5) as a:
        assert a.membership.slot == 5

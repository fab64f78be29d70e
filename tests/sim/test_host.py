"""A simulated machine's disks are extended as `raidfs.array.extend` extends files, or refused as devices are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.sim_nodes import SimNode, SimNodes

from raidfs.array.images import OpenImage
from raidfs.errors import DeviceNotExtendable, ImageNotExtended
from raidfs.node_options import NodeOptions
from raidfs.units import KIB


@pytest.fixture
def cluster() -> Iterator[SimNodes]:
    yield SimNodes(1, clean=True)
    SimNodes.dispose_all()


def open_image(node: SimNode) -> OpenImage:
    outcome = node.ask(node.host.open_images(["disk0"], NodeOptions(images=(), client_name="m", lock="simulated")))
    node.cluster.until(lambda: outcome.done)
    [image] = outcome.value
    assert isinstance(image, OpenImage)
    return image


def test_a_disk_of_fixed_size_is_refused_as_a_device(cluster: SimNodes) -> None:
    node = cluster.join("a")
    image = open_image(node)
    node.do(node.host.extend(image, image.size_bytes))
    with pytest.raises(DeviceNotExtendable):
        node.do(node.host.extend(image, image.size_bytes + 1))


def test_a_disk_with_room_is_extended_and_every_machine_sees_it(cluster: SimNodes) -> None:
    node, other = cluster.join("a"), cluster.join("b")
    image, elsewhere = open_image(node), open_image(other)
    old = image.size_bytes
    cluster.disks[0].size_max_bytes = old + 8 * KIB
    node.do(node.host.extend(image, old + 4 * KIB))
    with pytest.raises(ImageNotExtended, match="No space left on device"):
        node.do(node.host.extend(image, old + 16 * KIB))
    outcome = other.ask(other.host.room_bytes(elsewhere))
    cluster.until(lambda: outcome.done)
    assert outcome.value == elsewhere.size_bytes == image.size_bytes == old + 4 * KIB
    assert cluster.disks[0].content[old:] == cluster.disks[0].durable[old:] == bytes(4 * KIB)

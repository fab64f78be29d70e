"""The golden images, for the tests of every layer."""

from __future__ import annotations

import dataclasses
import gzip
import re
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclasses.dataclass(frozen=True)
class GoldenImage:
    """One image: what is before its data area, and how long it is in full."""

    name: str
    head: bytes
    length_bytes: int

    def write_to(self, directory: Path) -> str:
        """Write the full image, sparse, and return its path."""
        path = directory / self.name.replace("/", "-")
        path.write_bytes(self.head)
        with path.open("r+b") as file:
            file.truncate(self.length_bytes)
        return str(path)


def golden_images(number: str = "") -> list[GoldenImage]:
    """Return the images of the directory whose name begins with ``number``, or all, sorted by name."""
    images = []
    for path in sorted(GOLDEN.glob(f"{number}*/member*.img.gz")):
        note = (path.parent / "NOTE.md").read_text()
        length = re.search(r"Length of an image: (\d+) bytes", note)
        assert length is not None, path.parent
        name = f"{path.parent.name}/{path.name.split('.')[0]}"
        images.append(GoldenImage(name, gzip.decompress(path.read_bytes()), int(length[1])))
    assert images, number
    return images

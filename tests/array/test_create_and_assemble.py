from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.arrays import SET_UUID, make_array

from raidfs.array.assemble import assemble
from raidfs.array.head import read_candidates
from raidfs.units import KIB


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    size_kib=st.integers(4, 100_000_000),
    chunk_shift=st.integers(16, 31),
    nodes=st.integers(2, 64),
    legs=st.integers(2, 16),
    spares=st.integers(0, 3),
    assume_clean=st.booleans(),
    name=st.text("abz-_. ä", min_size=1, max_size=15).filter(lambda name: name not in (".", "..")),
)
def test_whatever_is_created_is_assembled_as_it_was_asked_for(
    size_kib: int, chunk_shift: int, nodes: int, legs: int, spares: int, assume_clean: bool, name: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        created = make_array(
            Path(directory),
            size_bytes=size_kib * KIB,
            chunk_bytes=1 << chunk_shift,
            nodes=nodes,
            legs=legs,
            spares=spares,
            assume_clean=assume_clean,
            name=name,
        )
        assembly = assemble(read_candidates([image.path for image in created.images]), cluster_name="raidfs")
    assert assembly.layout == created.layout
    assert assembly.layout.size_bytes == size_kib // 4 * 4 * KIB
    assert (assembly.set_uuid, assembly.array_name, assembly.nodes) == (SET_UUID, name, nodes)
    assert [leg.role for leg in assembly.legs] == list(range(legs))
    assert len(assembly.spares) == spares
    assert assembly.superblock.is_clean == assume_clean
    assert not assembly.is_degraded
    assert not assembly.left_out

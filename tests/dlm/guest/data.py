"""What tests do with a block device or file inside a machine, past the page cache.

write FILE SEED OFFSET LENGTH     random bytes of that seed, the same for every length that reaches as far
sum FILE OFFSET LENGTH            their SHA-256
strike FILE CHUNK NUMBER...       write into these chunks over and over, until killed
stamp FILE FIRST COUNT            write these blocks of 4 KiB at random, each with its number and a generation that
                                  rises, and print both when the write has returned; until killed, or the input ends
stamps FILE FIRST COUNT           print number and generation of each; fail if a block is not of one piece
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import random
import struct
import sys
import threading
from collections.abc import Iterator

PIECE = 1 << 20
BLOCK = 4096
STAMP = struct.Struct("<QQ")


def pattern(seed: int, length: int) -> Iterator[bytes]:
    """Give the bytes of a seed, in pieces of 1 MiB."""
    rng = random.Random(seed)
    for start in range(0, length, PIECE):
        yield rng.randbytes(PIECE)[: length - start]


def _buffer(length: int) -> mmap.mmap:
    return mmap.mmap(-1, length)


def write(path: str, seed: int, offset: int, length: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    buffer = _buffer(PIECE)
    for piece in pattern(seed, length):
        buffer[: len(piece)] = piece
        assert os.pwrite(descriptor, memoryview(buffer)[: len(piece)], offset) == len(piece)
        offset += len(piece)
    os.fsync(descriptor)
    os.close(descriptor)


def checksum(path: str, offset: int, length: int) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer, found = _buffer(PIECE), hashlib.sha256()
    for at in range(offset, offset + length, PIECE):
        wanted = min(PIECE, offset + length - at)
        assert os.preadv(descriptor, [memoryview(buffer)[:wanted]], at) == wanted
        found.update(buffer[:wanted])
    os.close(descriptor)
    return found.hexdigest()


def strike(path: str, chunk: int, numbers: list[int]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    buffer, rng = _buffer(BLOCK), random.Random(chunk)
    for number in itertools.cycle(numbers):
        buffer[:] = rng.randbytes(BLOCK)
        os.pwrite(descriptor, buffer, number * chunk + rng.randrange(chunk // BLOCK) * BLOCK)


def _tell_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def stamp(path: str, first: int, count: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    buffer, rng, ended = _buffer(BLOCK), random.Random(first), threading.Event()
    threading.Thread(target=_tell_end, args=(ended,), daemon=True).start()
    for generation in itertools.count(1):
        block = first + rng.randrange(count)
        buffer[:] = STAMP.pack(block, generation) * (BLOCK // STAMP.size)
        os.pwrite(descriptor, buffer, block * BLOCK)
        print(block, generation, flush=True)
        if ended.is_set():
            return


def stamps(path: str, first: int, count: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = _buffer(BLOCK)
    for block in range(first, first + count):
        os.preadv(descriptor, [buffer], block * BLOCK)
        found, generation = STAMP.unpack_from(buffer)
        assert buffer[:] == STAMP.pack(found, generation) * (BLOCK // STAMP.size), f"block {block} is torn"
        assert found in (0, block), f"block {block} is {found}"
        print(block, generation)


if __name__ == "__main__":
    verb, file, *rest = sys.argv[1:]
    values = [int(word) for word in rest]
    if verb == "write":
        write(file, *values)
    elif verb == "sum":
        print(checksum(file, *values))
    elif verb == "strike":
        strike(file, values[0], values[1:])
    elif verb == "stamp":
        stamp(file, *values)
    else:
        stamps(file, *values)

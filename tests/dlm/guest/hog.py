"""Keep all memory of this machine but ARGV[1] MiB, until killed."""

import mmap
import sys
import time

MIB = 1 << 20
kept = []


def available_mib() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("MemAvailable"))


while True:
    while available_mib() > int(sys.argv[1]):
        block = mmap.mmap(-1, MIB)
        block.write(b"x" * MIB)
        kept.append(block)
    time.sleep(0.5)

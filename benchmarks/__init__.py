"""Benchmarks: fio over raidfs beside the raw leg and qemu-storage-daemon, in one interleaved run; results as JSON.

Start them with ``scripts/bench``. They are measurements and not tests: nothing fails because it is slow.
"""

"""A lab: virtual machines that share disks, a network, corosync and the DLM, to try raidfs on several hosts on one.

`scripts/lab` is its command line (`lab.__main__`), docs/lab.md tells how it is used. `lab.images` makes what machines
boot from, `lab.shape` says what a lab consists of, `lab.machine` is one virtual machine, `lab.agent` runs commands in
it, `lab.cluster` is all of them. `guest/` has what runs inside. Nothing here is part of the package raidfs.
"""

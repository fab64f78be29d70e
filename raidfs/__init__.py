"""raidfs: clustered RAID1 in user space, with the disk format and the protocol of Linux's md-cluster."""

__version__ = "0.1.0"

"""The FUSE side of a node: mount point, requests, the daemon and its start.

`raidfs.mount.launch` is light and may be used by the command line; the other modules need trio and pyfuse3.
"""

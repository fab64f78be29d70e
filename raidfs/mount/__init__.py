"""The FUSE side of a node: the block file, the daemon and how it is started."""

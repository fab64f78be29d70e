"""The control socket of a node: JSON documents between the command line and the daemon."""

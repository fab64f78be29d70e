"""The command line: one file per command; it imports neither trio nor pyfuse3."""

"""Pure codecs of md's on-disk format: bytes in, frozen value out, and back. No I/O, no clock."""

"""The control socket of a node: how other programs of the same owner ask it and tell it things."""

"""The crash enumerator: every short sequence of operations, cut at every write, in every way that storage may be left.

`raidfs.sim.crash.scenario` says what the sequences are, `recording` runs one with the real nodes and writes down what
reaches the legs, `states` cuts the recording, `reopened` opens what is left with the real node and judges it, and
`campaign` does that to all of them.
"""

"""A deterministic cluster in one process; nothing in production imports this package.

Everything that production takes from its machine is simulated, and everything else is production's own code: the node,
the channel, the membership, the array, the engine. From the bottom up:

* `stepper`, `scopes`, `policies`, `runtime`: coroutines run one switch at a time, in the order of a seed
* `disks`, `layout`: shared disks that reorder, fail, tear, come late and lose their power; the array on them
* `locks`: the lock machine of the embedded server, with members attached by function calls
* `legs`: legs in memory behind an engine that a test steps by hand
* `host`: a machine of these parts for ``open_node``
* `plan`, `draw`, `leg_plan`: what is asked and what goes wrong; `cluster`, `trace`: carried out, written down
* `checkers`, `leg_checker`, `sync_checker`, `message_checker`, `view_checker`, `disk_view`: what must always hold
* `campaign`, `shrink`, `planted`, ``python -m raidfs.sim``: many schedules; small failing ones; mistakes on purpose
"""

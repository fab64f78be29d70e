"""How long the channel waits, and for what: the only place that computes it.

The time line of one message, from the sender's side. Nothing has a fixed end as long as somebody makes progress; md's
30 s for every lock wait also hit busy peers, lock recovery with slow fencing and operators who took their time (W4).

* before: ``message`` is asked for in EX, which receivers hold that are not done with the message before. Whoever stands
  still there is waited for as below.
* 0 s: the message is published, ``ack`` is asked for in EX. Every receiver hears of it within the latency of the
  lock manager, applies the message and drops ``ack``; the grant is the acknowledgement of all.
* every PROGRESS_LOOK_S the sender looks who still holds ``ack``. If it is fewer than at the last look there is
  progress and the clock starts again. A node that dies drops out by itself as soon as the lock manager purges it; while
  the lock manager recovers from that (with fencing: for minutes) the clock does not run.
* NO_PROGRESS_S after the last progress the sender gives up: the conversion is cancelled and drained, all modes and
  flags are restored, and the error names the nodes that did not answer. What it has written to the superblocks
  stays; those nodes read it with the next message, or when somebody dies.
* when all have dropped ``ack`` the sender reads what each made of the message. Who has dropped it by dying is found
  dead at once, or a moment later: the DLM frees the locks of a process one by one. GONE_S is some hundred times that
  moment, and only a node that runs and does not speak costs it.

NO_PROGRESS_S is larger than anything that a healthy receiver does before it answers: reading 16 superblocks from a
slow disk (1 s each), and draining I/O in front of a leg that times out (30 s, the default of Linux' SCSI layer).
"""

from __future__ import annotations

PROGRESS_LOOK_S = 1.0
NO_PROGRESS_S = 60.0
GONE_S = 1.0
GONE_LOOK_S = 0.05

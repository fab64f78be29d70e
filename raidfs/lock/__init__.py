"""Lock managers with the semantics of the Linux DLM, behind one interface (`raidfs.lock.api`)."""

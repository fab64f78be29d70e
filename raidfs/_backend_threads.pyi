from raidfs._core import Engine

class ThreadBackend:
    """A pool of worker threads that carries out the leg operations of one engine with positioned system calls."""

    def __init__(self, engine: Engine) -> None: ...
    def attach(self, leg: int, fd: int) -> None:
        """Use ``fd`` for ``leg`` from now on; -1 takes the leg away (ENODEV). The caller keeps owning it."""

    def in_memory(self) -> bool:
        """Tell whether every leg that is attached is a file in memory, which never waits for a device."""

    def start(self, workers: int) -> None:
        """Start worker threads, so many more than there are."""

    def close(self) -> None:
        """Finish what is queued, stop and join the workers; a second call does nothing."""

def notify_eventfd(engine: Engine, fd: int) -> None:
    """Let the engine add 1 to eventfd ``fd`` when replies or events come to an empty queue; -1 ends that."""

def notify_ops_eventfd(engine: Engine, fd: int) -> None:
    """Let the engine add 1 to eventfd ``fd`` when there are new leg operations to take; -1 ends that."""

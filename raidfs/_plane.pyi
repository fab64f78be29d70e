from collections.abc import Sequence

from raidfs._backend_threads import ThreadBackend
from raidfs._core import Engine

class Plane:
    """Workers that serve the data requests of one mount over ``engine``.

    ``legs`` has the descriptors of the legs; None leaves all leg operations to whoever takes them from the engine.
    ``fuse_fd`` is the mounted ``/dev/fuse`` and ``pyfuse3_fd`` our end of the socket pair; the caller keeps owning
    both. 1 is added to the eventfd ``done_fd`` when no worker runs any more and every data request has its answer.
    With ``ring`` each worker has an io_uring for legs that are not in memory; without it the pool carries those out.
    With ``uring`` the workers take requests through io_uring, too, from `begin_uring` on. ``lifelines`` are descriptors
    that a ring keeps open, whatever becomes of this process, until the last operation in it has ended; at most 8.
    """

    def __init__(
        self,
        engine: Engine,
        legs: ThreadBackend | None,
        fuse_fd: int,
        pyfuse3_fd: int,
        done_fd: int,
        *,
        workers: int,
        ring: bool,
        uring: bool = False,
        lifelines: Sequence[int] = (),
    ) -> None: ...
    def prepare(self, number: int) -> bool:
        """Get ready to be worker ``number``, in its thread; return whether it has the ring that it was to have."""

    def begin_uring(self) -> None:
        """Take requests through io_uring from now on: the kernel has got the answer to INIT that allows it."""

    def work(self, number: int) -> None:
        """Be worker ``number`` until the mount is gone or `stop`; requests of its may still wait for something then."""

    def stop(self) -> None:
        """Make the workers end, whatever they wait for; call it again until they have."""

    def close(self) -> None:
        """Give up: answers that come later are dropped. The workers must have ended; a second call does nothing."""

    def waiting_for(self, unique: int) -> int:
        """Return the opcode of a request that was passed on to pyfuse3 and is not answered yet, or 0."""

    def answer(self, message: bytes) -> int:
        """Take an answer of pyfuse3's to where its request came from; returns 0 or the errno of the write."""

    @property
    def in_flight(self) -> int:
        """How many data requests have no answer yet."""

def lock_memory() -> int:
    """Keep what memory this process has and gets from now on (mlockall); return 0 or the errno of the refusal."""

class NullPlane(Plane):
    """A `Plane` that copies each request from or to ``legs_count`` areas of memory and asks no engine."""

    def __init__(
        self,
        engine: Engine,
        legs: None,
        fuse_fd: int,
        pyfuse3_fd: int,
        done_fd: int,
        *,
        workers: int,
        ring: bool,
        uring: bool = False,
        size_bytes: int,
        legs_count: int,
    ) -> None: ...

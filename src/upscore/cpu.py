"""What the engine runs on: instruction sets, threads, and how to force them.

The environment variables ``UPSCORE_FORCE_ISA`` and ``UPSCORE_NUM_THREADS`` are read once, on import.

>>> active() in available()
True
"""

from __future__ import annotations

import os

from upscore import _engine
from upscore.errors import ArgumentError
from upscore.geometry import per_axis

__all__ = ["active", "available", "force", "set_threads", "threads"]


def available() -> tuple[str, ...]:
    """The instruction sets that this build and this machine both have, narrowest first."""
    return tuple(_engine.available_isas())


def active() -> str:
    """The instruction set for which weights are packed from now on."""
    return _engine.active_isa()


def force(isa: str) -> None:
    """Use ``isa`` from now on; plans made before keep theirs.

    Raises:
        ArgumentError: if it is not in :func:`available`.
    """
    if isa not in available():
        raise ArgumentError("isa", f"one of {', '.join(available())}", repr(isa), f"isa={available()[-1]!r}")
    _engine.force_isa(isa)


def threads() -> int:
    """How many threads a call uses at most; by default the cores this process may run on."""
    return _engine.thread_count()


def set_threads(count: int) -> None:
    """Use at most ``count`` threads a call. The results do not depend on it, to the bit."""
    _engine.set_thread_count(min(per_axis("count", count, 1, least=1)[0], 1024))


def _read_environment() -> None:
    isa = os.environ.get("UPSCORE_FORCE_ISA")
    if isa:
        if isa not in available():
            raise ArgumentError("UPSCORE_FORCE_ISA", f"one of {', '.join(available())}", repr(isa), available()[-1])
        force(isa)
    count = os.environ.get("UPSCORE_NUM_THREADS")
    if count:
        if not count.isdecimal() or int(count) < 1:
            raise ArgumentError("UPSCORE_NUM_THREADS", "an integer of at least 1", repr(count), "UPSCORE_NUM_THREADS=2")
        set_threads(int(count))


_read_environment()

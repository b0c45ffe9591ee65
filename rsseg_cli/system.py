"""What becomes of memory that was freed, where the C library is glibc."""

from __future__ import annotations

import ctypes
import sys

KEPT = 1 << 30  # bytes


def give_back_memory() -> None:
    """What was freed goes back to the system (glibc keeps it otherwise): some 70 MB after a scene."""
    _glibc("malloc_trim", 0)


def keep_memory() -> None:
    """What is freed stays with this process, for one that soon needs as much again: asking the system for it
    takes up to a quarter of a block's time."""
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        _glibc("mallopt", parameter, KEPT)


def _glibc(name: str, *numbers: int) -> None:
    """Call a function of the C library where it has it."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*numbers)

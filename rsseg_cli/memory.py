"""Memory: whether a row of tiles can fit, told before it is read; what was freed given back."""

from __future__ import annotations

import ctypes
import os
import sys

from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import SceneError

KEPT = 1 << 30  # bytes


def check_memory(
    scene: str, height: int, width: int, config: PredictConfig, *, pixel_bytes: int, classes: int, layers: int
) -> None:
    """Refuse a scene so wide that what is carried from tile row to tile row is more than all memory.

    Args:
        scene: its name, for the message.
        height, width: px that the network sees.
        pixel_bytes: of all bands.
        classes: scores a pixel, float32, in the overlap.
        layers: of the finished rows, uint8.

    Raises:
        SceneError: what to do.
    """
    overlap = min(config.overlap, height)
    finished = min(config.tile_size, height) - overlap
    needed = width * (overlap * (pixel_bytes + 1 + 4 * classes) + finished * layers)
    there = physical_bytes()
    if there is not None and needed > there:
        raise SceneError(
            f"{scene}: {width} px wide, of which a row of tiles takes at least {needed / 1e9:.1f} GB; this "
            f"machine has {there / 1e9:.1f} GB of memory. Map parts of it by --bbox, or lower --overlap and "
            "--tile-size."
        )


def physical_bytes() -> int | None:
    """The machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


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

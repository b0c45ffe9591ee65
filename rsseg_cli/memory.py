"""Whether a row of tiles can fit into memory, before it is read."""

from __future__ import annotations

import os

from rsseg_cli.config import PredictConfig
from rsseg_cli.errors import SceneError


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

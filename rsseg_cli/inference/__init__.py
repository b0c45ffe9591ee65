"""A network over the tiles of a scene: what is run, on which device, and how its rows come together."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.inference import domain, export, passes, tiling, windows
    from rsseg_cli.inference.engine import Engine, Scaling
    from rsseg_cli.inference.refiner import RefinerEngine

__all__ = [
    "Engine",
    "RefinerEngine",
    "Scaling",
    "domain",
    "export",
    "passes",
    "tiling",
    "windows",
]
__getattr__ = lazy_names(__name__, engine="Engine Scaling", refiner="RefinerEngine")

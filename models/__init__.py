"""Networks: torch, timm and diffusers, and nothing of the rest of the program."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import diffusion, losses
    from .bicor_seg import BicorSeg, BicorSegConfig
    from .idgbr import Idgbr, IdgbrConfig
    from .idgbr_lite import LiteRefiner, LiteRefinerConfig

__all__ = [
    "BicorSeg",
    "BicorSegConfig",
    "Idgbr",
    "IdgbrConfig",
    "LiteRefiner",
    "LiteRefinerConfig",
    "diffusion",
    "losses",
]
_MODULES = {"BicorSeg": "bicor_seg", "Idgbr": "idgbr", "LiteRefiner": "idgbr_lite"}


def __getattr__(name: str) -> Any:
    """Load a network on first use: timm and diffusers take seconds."""
    module = _MODULES.get(name.removesuffix("Config"))
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)

"""Further looks at an image: the network's own at another size, and a partner's, which knows other classes.

Probabilities are averaged, as over an ensemble (arXiv 1612.01474).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

UNKNOWN = -1  # a class of the partner that is none of those it shares
TINY = 1e-7


class Looks(NamedTuple):
    """Logits of further looks (B, classes of each, H, W)."""

    own: Tensor | None
    partner: Tensor | None


def check_classes(partner_classes: Sequence[int], given: int, known: int) -> None:
    """Raise ValueError where `given` classes of a partner are not some of those `known`, or UNKNOWN."""
    shared = [index for index in partner_classes if index != UNKNOWN]
    if (
        len(partner_classes) != given
        or not shared
        or len(set(shared)) != len(shared)
        or not set(shared) <= set(range(known))
    ):
        raise ValueError(f"partner_classes {partner_classes!s:.80}: needs {given}, different ones of {known}")


def resized(image: Tensor, zoom: float, multiple: int) -> Tensor:
    """Enlarge an image to `zoom` times its sides, rounded down to multiples of a number of pixels."""
    ratio = Fraction(zoom).limit_denominator(multiple)
    # whole numbers alone: then a trace of the network holds for images of any size
    height, width = (
        side // multiple * ratio.numerator // ratio.denominator * multiple for side in image.shape[-2:]
    )
    return F.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)


def look(network: Callable[[Tensor], Tensor], image: Tensor, size: Sequence[int]) -> Tensor:
    """Run a network over an image and resize its logits."""
    logits = network(image)
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def mixed(logits: Tensor, looks: Looks, partner_classes: Sequence[int]) -> Tensor:
    """Return logarithms of probabilities (B, N, H, W): half the first look's, the rest of the others alike.

    Args:
        logits: of the first look (B, N, H, W).
        partner_classes: of each class of the partner, which of the N it is, or UNKNOWN.
    """
    first = logits.softmax(1)
    others = [] if looks.own is None else [looks.own.softmax(1)]
    if looks.partner is not None:
        others.append(completed(looks.partner.softmax(1), partner_classes, first))
    mean = (first + torch.stack(others).mean(0)) / 2
    return mean.clamp(min=TINY).log()


def completed(partner: Tensor, partner_classes: Sequence[int], first: Tensor) -> Tensor:
    """Spread a partner's probabilities over the N classes (B, N, H, W).

    What it gives to UNKNOWN goes to the classes that it does not know, in proportion to the first look's.
    """
    given, own = partner.split(1, 1), first.split(1, 1)
    known = {index: item for index, item in zip(partner_classes, given, strict=True) if index != UNKNOWN}
    left = [index for index in range(len(own)) if index not in known]
    unknown = [item for index, item in zip(partner_classes, given, strict=True) if index == UNKNOWN]
    if left and unknown:
        share = torch.cat(unknown, 1).sum(1, keepdim=True)
        share = share / torch.cat([own[index] for index in left], 1).sum(1, keepdim=True).clamp(min=TINY)
        known |= {index: own[index] * share for index in left}
    return torch.cat([known.get(index, torch.zeros_like(own[index])) for index in range(len(own))], 1)

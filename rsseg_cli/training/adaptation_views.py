"""What an adaptation learns from: the network's view of patches, and their pixels."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.data import LoadedScene
from rsseg_cli.errors import DataError
from rsseg_cli.inference import domain
from rsseg_cli.models import BicorSeg
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.adaptation_data import ScenePatches
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.training.crops import draw_training_scenes
from rsseg_cli.weights import ModelSpec

STRIDE = 4  # of the correction, px
MOST_PIXELS = 20_000  # of a class in a patch
TURNS = 8  # of a patch with labels, where there are few
UNLABELLED = 100_000  # pixels of random patches
DRAWN, CHECKS = 16, 6  # artificial scenes to learn from, and to see what is lost
DRAWN_PX = 384
RARE = 0.02  # share of labels below which they do not count


class View(NamedTuple):
    """A patch as the networks see it.

    Attributes:
        inputs: of the correction (h, w, C).
        logits: of the network without correction (N, H, W).
        before: of the model (N or fewer, H, W); the same without an earlier correction and new classes.
        described: see `inference.domain.descriptors`; of one tile.
    """

    inputs: Tensor
    logits: Tensor
    before: Tensor
    described: dict[str, Tensor]

    @property
    def pooled(self) -> Tensor:
        """Means of the encoder's deepest features (1, D)."""
        return self.described["features"]

    def classes(self, head: Any = None) -> Tensor:
        """Classes (H, W) with a correction; without one, those of the model."""
        if head is None:
            return self.before.max(0).indices  # faster than argmax
        share = head.share(self.pooled)
        return head(self.inputs[None], self.logits[None], share)[0].max(0).indices


class Pixels(NamedTuple):
    """Pixels of views: inputs (n, C) of their cells, logits (n, N), probabilities before (n, N), labels (n,),
    shares of the change that their tiles get (n,)."""

    inputs: Tensor
    logits: Tensor
    before: Tensor
    labels: Tensor
    share: Tensor

    def at(self, index: Tensor) -> Pixels:
        return Pixels(*(part[index] for part in self))

    def corrected(self, head: Any) -> Tensor:
        """Logits (n, N) with a correction."""
        return self.logits + head.change(self.inputs) * self.share[:, None]

    def refuted(self) -> Tensor:
        """Whether a class with labels of its own is wrong at most labels where the model gives it (N,)."""
        given, labels = self.before.argmax(1), self.labels
        count = self.before.shape[1]
        wrong = given[given != labels].bincount(minlength=count)
        return (2 * wrong > given.bincount(minlength=count)) & (labels.bincount(minlength=count) > 0)

    def confirmed(self, refuted: Tensor) -> Tensor:
        """Whether hardly a label where the model gives a class (rows) is of a `refuted` one (columns) (N, N).

        That is, at most RARE of the labels there, or of the refuted class's own.
        """
        count = self.before.shape[1]
        found = (self.before.argmax(1) * count + self.labels).bincount(minlength=count**2).view(count, count)
        few = found <= RARE * torch.maximum(found.sum(1, keepdim=True), found.sum(0))
        return few & refuted & ~torch.eye(count, dtype=torch.bool)

    def spread(self, head: Any, confirmed: Tensor) -> Tensor:
        """Cross-entropy of the classes that a pixel is not, by `confirmed`, with a head and of the model."""
        absent = confirmed[self.before.argmax(1)]
        after, before = (
            (part * absent).sum(1).clamp(max=1) for part in (self.corrected(head).softmax(1), self.before)
        )
        loss = F.binary_cross_entropy(after, before, reduction="none")
        return (loss * absent.any(1)).mean()

    @torch.no_grad()
    def sure(self, head: Any, probability: float, refuted: Tensor) -> Pixels:
        """Those to which a head gives a class with at least a probability, with that class.

        Left out are those to which the model gives the same class, if that is `refuted` (N,).
        """
        best = self.corrected(head).softmax(1).max(1)
        is_refuted = refuted[best.indices] & (best.indices == self.before.argmax(1))
        return self._replace(labels=best.indices).at((best.values >= probability) & ~is_refuted)

    def mixed(self, other: Pixels, weight: float) -> Pixels:
        """Mix with as many other pixels of a weight; labels (n, N) become shares of classes."""
        count = self.logits.shape[1]
        pairs = zip(
            *(part._replace(labels=F.one_hot(part.labels, count).float()) for part in (self, other)),
            strict=True,
        )
        return Pixels(*(torch.lerp(own, others, weight) for own, others in pairs))

    @classmethod
    def joined(cls, parts: Iterable[tuple[Pixels, Tensor]], head: Any) -> Pixels:
        """Join the pixels of views, given with the features (1, D) of each."""
        shared = (part._replace(share=head.share(pooled).expand(len(part.labels))) for part, pooled in parts)
        return cls(*(torch.cat(items) for items in zip(*shared, strict=True)))


class Balanced:
    """Draws pixels, each class by the root of its area."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self._weights = torch.bincount(pixels.labels).clamp(min=1).float().rsqrt()[pixels.labels]

    def draw(self, count: int) -> Pixels:
        return self._pixels.at(torch.multinomial(self._weights, count, replacement=True))


class Encoder:
    """The model and its network without correction, both frozen."""

    def __init__(self, model: BicorSeg, network: BicorSeg, spec: ModelSpec) -> None:
        self._model, self._head = model, cast(Any, network.correction)
        self._differ = model.correction is not None or model.config.classes != network.config.classes
        self._plain = BicorSeg(dataclasses.replace(network.config, correction=0, local=False)).eval()
        weights = network.state_dict()
        self._plain.load_state_dict({key: weights[key] for key in self._plain.state_dict()})
        self._mean, self._std = (torch.tensor(part).view(1, -1, 1, 1) for part in (spec.mean, spec.std))

    @torch.no_grad()
    def view(self, image: NDArray[np.uint8]) -> View:
        """Run the networks over an image (bands, H, W)."""
        pixels = (torch.from_numpy(image).float()[None] / 255 - self._mean) / self._std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        scales, again = self._plain.encoder(pixels), self._plain.look_again(pixels)
        plain = self._plain.decode(scales, again)
        before = self._model.decode(scales, again).logits if self._differ else plain.logits
        inputs = self._head.inputs(scales, plain.logits)
        return View(inputs[0], plain.logits[0], before[0], domain.descriptors(pixels, plain.pooled))


def pixels_of(view: View, labels: NDArray[np.uint8], rng: np.random.Generator) -> Pixels:
    """Return the labelled pixels of a view, of each class at most MOST_PIXELS."""
    chosen = []
    for index in np.unique(labels[labels != class_values.IGNORE]):
        members = np.argwhere(labels == index)
        chosen.append(members[rng.permutation(len(members))[:MOST_PIXELS]])
    rows, cols = torch.from_numpy(np.concatenate(chosen or [np.zeros((0, 2), np.int64)])).T
    before = F.pad(view.before[:, rows, cols].softmax(0), (0, 0, 0, len(view.logits) - len(view.before)))
    return Pixels(
        view.inputs[rows // STRIDE, cols // STRIDE],
        view.logits[:, rows, cols].T,
        before.T,
        torch.from_numpy(labels)[rows, cols].long(),
        torch.ones(len(rows)),
    )


def drawn_scenes(spec: ModelSpec, gsd_m: float) -> tuple[list[LoadedScene], list[LoadedScene]]:
    """Draw artificial scenes to learn from and to see what is lost; none for other bands and classes."""
    drawn: list[LoadedScene] = []
    if spec.bands == ("red", "green", "blue"):
        with contextlib.suppress(DataError):  # no class of the artificial scenes
            drawn = draw_training_scenes(spec, count=DRAWN + CHECKS, gsd_m=gsd_m, size=DRAWN_PX, seed=7000)
    return drawn[CHECKS:], drawn[:CHECKS]


class AdaptationData:
    """What a network, run over everything once, gives its head to learn.

    Attributes:
        labelled, everything: pixels with labels, without and with those held out; None where none are.
        kept: pixels where the model is to stay as it is; None for none.
        unlabelled: some pixels of random patches, their labels unknown; None where one class is drawn.
        scored: views with labels held out (H, W).
        samples: views of random patches.
        checks: views of artificial scenes with labels (H, W).
        areas_m2: drawn of each class by name.
    """

    def __init__(
        self,
        model: BicorSeg,
        network: BicorSeg,
        spec: ModelSpec,
        scenes: Sequence[ScenePatches],
        config: AdaptConfig,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        head = cast(Any, network.correction)
        rng = np.random.default_rng(config.seed)
        areas = np.sum([scene.areas_m2 for scene in scenes], axis=0)
        self.areas_m2 = {
            name: round(float(area), 1) for name, area in zip(spec.class_names, areas, strict=True)
        }
        labelled: list[tuple[Pixels, Tensor]] = []
        held_out: list[tuple[Pixels, Tensor]] = []
        self.scored: list[tuple[View, Tensor]] = []
        patches = [patch for scene in scenes for patch in scene.patches]
        random = [patch for scene in scenes for patch in scene.random] or patches
        drawn, checks = drawn_scenes(spec, scenes[0].gsd_m) if config.replay else ([], [])
        turns = min(TURNS, 1 + TURNS**2 // len(patches))
        total = turns * len(patches) + len(random) + len(drawn) + len(checks)
        encoder, counted = Encoder(model, network, spec), itertools.count(1)

        def view_of(image: NDArray[np.uint8]) -> View:
            view = encoder.view(image)
            if progress is not None:
                progress(next(counted), total)
            return view

        for patch in patches:
            is_scored = (patch.scored != class_values.IGNORE).any()
            for turned in patch.turned(turns):
                view = view_of(turned.image)
                labelled.append((pixels_of(view, turned.labels, rng), view.pooled))
                if is_scored:
                    held_out.append((pixels_of(view, turned.scored, rng), view.pooled))
                    if turned is patch:
                        self.scored.append((view, torch.from_numpy(patch.scored)))
        self.samples = [view_of(patch.image) for patch in random]
        if head.local:
            own = [*(pooled for _, pooled in labelled), *(view.pooled for view in self.samples)]
            _know_tiles(head, torch.cat(own), spec)
        self.labelled = Pixels.joined(labelled, head)
        self.everything = Pixels.joined([*labelled, *held_out], head) if held_out else None
        self.checks = [(view_of(scene.image), torch.from_numpy(scene.labels)) for scene in checks]
        kept = []
        for drawing in drawn:
            view = view_of(drawing.image)
            right = np.where(view.classes().numpy() == drawing.labels, drawing.labels, class_values.IGNORE)
            kept.append((pixels_of(view, right, rng), view.pooled))
        if self.has_one_class:  # which says nothing of the others
            for view in self.samples:
                kept.append((pixels_of(view, view.classes().to(torch.uint8).numpy(), rng), view.pooled))
        self.kept = Pixels.joined(kept, head) if kept else None
        self.unlabelled = None
        if not self.has_one_class:
            share = UNLABELLED / sum(patch.valid.size for patch in random)
            chosen = [patch.valid & (rng.random(patch.valid.shape) < share) for patch in random]
            parts = [
                (pixels_of(view, np.where(mask, 0, class_values.IGNORE).astype(np.uint8), rng), view.pooled)
                for view, mask in zip(self.samples, chosen, strict=True)
            ]
            self.unlabelled = Pixels.joined(parts, head)
        if not head.std.ne(1).any():  # of a model that was not adapted before
            inputs = torch.cat([view.inputs.flatten(0, 1) for view in self.samples])
            head.mean.copy_(inputs.mean(0))
            head.std.copy_(inputs.std(0) + 1e-3)

    @property
    def has_one_class(self) -> bool:
        return sum(area > 0 for area in self.areas_m2.values()) == 1


def _know_tiles(head: Any, pooled: Tensor, spec: ModelSpec) -> None:
    """Tell a local head which tiles are of its places, by features (n, D), and which of the training data."""
    statistics = spec.training_tiles["features"]
    mean, axes, others = (
        torch.tensor(values) for values in (statistics.mean, statistics.matrix, statistics.prototypes)
    )
    own, others = pooled @ axes.T, others + axes @ mean
    if head.axes.any():  # of a model that was adapted before
        own, others = torch.cat([head.own[:, : len(axes)], own]), head.others[:, : len(axes)]
    head.axes[: len(axes)] = axes
    for kept, tiles in ((head.own, own), (head.others, others)):
        kept.zero_()
        kept[:, : len(axes)] = tiles[torch.linspace(0, len(tiles) - 1, len(kept)).round().long()]

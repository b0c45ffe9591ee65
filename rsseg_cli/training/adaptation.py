"""Adapt a model to a place: a few drawn labels, and minutes.

A few labels must not ruin the rest. The encoder and the batch statistics stay as they are. Where nothing is
labelled, the network is held to what the model said before, a class that the labels contradict less than the
others; on artificial scenes it is held to the model where that was right and learns the labels where it was
wrong. Weights are averaged over steps, and of all states that with the best score on labels held out is kept.
At the end the weights go back towards those of the model (WiSE-FT, Wortsman et al., CVPR 2022,
arXiv:2109.01903) until little is lost on other artificial scenes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli import files
from rsseg_cli.errors import ModelError, UsageError
from rsseg_cli.evaluation import metrics
from rsseg_cli.models import BicorSeg
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.adaptation_data import Crops, ScenePatches
from rsseg_cli.training.adaptation_loss import adaptation_loss
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.training.runs import card_templates
from rsseg_cli.training.start import start_from_model
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, load_model, save_model

logger = logging.getLogger(__name__)
SCORE_EVERY_S = 40.0
SAVE_EVERY_S = 60.0
WARMUP = 20  # steps
DECAY_FROM = 0.7  # share of the time, from which the rate falls to nothing
AVERAGE = 0.99
STEPS_BACK = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)  # shares of the change that is kept
PRIOR = 0.02  # share of a patch in which each class is taken to be right
MOST_LOST = 0.02  # share of artificial pixels that the model has right and may get wrong
MOST_CHANGED = 0.2  # share of the scenes that labels of one class alone may change
Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class AdaptResult:
    """An adapted model.

    Attributes:
        labelled_m2: area drawn of each class, those held out included.
        before, after: on the held-out labels, of the model and of the adapted one: `overall_accuracy`, `miou`
            and `iou` by class; None without held-out labels.
        changed_share: of the scenes' pixels that are now mapped as another class, by sampled patches.
    """

    path: Path
    steps: int
    seconds: float
    labelled_m2: dict[str, float]
    held_out: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    changed_share: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "path": str(self.path), "notes": list(self.notes)}


@dataclass(kw_only=True)
class _State:
    """What a run is made of; stored in checkpoints."""

    step: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Any] | None = None


def adapt(
    scenes: Sequence[tuple[Path, Path]],
    output: Path,
    config: AdaptConfig,
    *,
    progress: Progress | None = None,
) -> AdaptResult:
    """Adapt `config.model` to scenes with drawn labels and write the model file with its card.

    Args:
        scenes: images and the labels drawn over each.

    Raises:
        UsageError, SceneError, DataError, ModelError, OutputError: nothing was written.
        KeyboardInterrupt: the best state so far was written.
    """
    files.check_target(output, overwrite=config.overwrite, inputs=[str(p) for pair in scenes for p in pair])
    start = load_model(config.model)
    if not isinstance(start.network, BicorSeg):
        raise ModelError(f"{config.model}: architecture {start.spec.architecture}; needs bicor-seg")
    spec = _with_classes(start.spec, config.new_classes)
    patches = [ScenePatches(image, labels, spec, config) for image, labels in scenes]
    run = _Run(start, spec, patches, output, config)
    try:
        run.train(progress)
    except KeyboardInterrupt as err:
        if run.state.step:
            run.save()
            result = run.finish()
            err.add_note(f"{result.path} holds the best state so far; --resume continues")
        raise
    return run.finish()


def _with_classes(spec: ModelSpec, new: Sequence[str]) -> ModelSpec:
    known = [class_values.plain(name) for name in spec.class_names]
    twice = [name for name in new if class_values.plain(name) in known]
    if twice:
        raise UsageError(f"--new-classes {', '.join(twice)}: the model has that class already")
    if not new:
        return spec
    return dataclasses.replace(spec, classes=ClassSpec.from_names([*spec.classes, *new]))


class _Run:
    """The network on its way, the model that it started from, and what it learns from."""

    def __init__(
        self,
        start: TrainedModel,
        spec: ModelSpec,
        patches: Sequence[ScenePatches],
        output: Path,
        config: AdaptConfig,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.output, self.patches = config, output, patches
        self.base = start.network.eval().requires_grad_(False)
        self.network, self.spec = start_from_model(start, spec, config.model)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.start = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.average = {key: value.clone() for key, value in self.start.items()}
        self.network.encoder.requires_grad_(False)
        learnt = [value for value in self.network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, lr=config.learning_rate, weight_decay=0.0)
        self._mean, self._std = (torch.tensor(part).view(1, -1, 1, 1) for part in (spec.mean, spec.std))
        self.crops = Crops(patches, spec, config)
        self._chooses = len(self.crops.scored_classes) > 1  # one class would choose what maps it most
        self.meaning = self._meaning()
        self.state = _State()
        self._checkpoint = output.with_name(f"{output.name}.ckpt")
        if config.resume:
            self._load()
        elif self._checkpoint.exists() and not config.overwrite:
            raise UsageError(
                f"{self._checkpoint}: is of a stopped run; pass --resume, or --overwrite to start over"
            )
        if self.state.before is None:
            self.state.before = self._score(self.base)

    def train(self, progress: Progress | None) -> None:
        """Train until the time is up."""
        began = time.monotonic() - self.state.seconds
        scored = saved = time.monotonic()
        self.network.eval()  # batch statistics stay as they are; there is no dropout
        while self.done < 1:
            self._step(self.done)
            now = time.monotonic()
            self.state.seconds = now - began
            if now - scored > min(SCORE_EVERY_S, self.config.minutes * 15) or self.done >= 1:
                self._keep_best()
                scored = time.monotonic()
            if now - saved > SAVE_EVERY_S or self.done >= 1:
                self.save()
                saved = time.monotonic()
            if progress is not None:
                progress(min(1.0, self.done), self._words())

    @property
    def done(self) -> float:
        """Share of the time, or of the steps, that is over."""
        if self.config.steps:
            return self.state.step / self.config.steps
        return self.state.seconds / (self.config.minutes * 60)

    def _words(self) -> str:
        before, best = self.state.before, self.state.best_score
        if before is None or not self._chooses:
            return f"step {self.state.step}"
        return f"held-out mIoU {before['miou']:.3f} -> {f'{best:.3f}' if best >= 0 else '-'}"

    def _step(self, done: float) -> None:
        rate = min(1.0, (self.state.step + 1) / WARMUP) * min(1.0, max(0.02, (1 - done) / (1 - DECAY_FROM)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate
        loss = self._loss(*self.crops.batch(self.state.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.state.step += 1
        decay = min(AVERAGE, (1 + self.state.step) / (10 + self.state.step))
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)

    def _loss(self, image: Tensor, labels: Tensor, is_drawn: Tensor) -> Tensor:
        with torch.no_grad():
            scales = self.network.encoder(self._normalised(image))
            before = cast(BicorSeg, self.base).decode(scales).logits.softmax(1)
        output = self.network.decode(scales)
        return adaptation_loss(output.logits, output.heatmaps, before, labels, is_drawn, self.meaning)

    def _meaning(self) -> Tensor:
        """What the labels say where the base model says a class, (classes, classes), rows of sum 1.

        A class that has no labels itself, or none beside those of one other class, means itself.
        """
        count = len(self.spec.classes)
        confusion = torch.zeros(count, count)
        for image, labels in (part for item in self.patches for part in item.labelled()):
            known = labels != class_values.IGNORE
            found = metrics.confusion_matrix(self._classes(self.base, image).long(), labels.long(), count)
            confusion += found.T / known.sum()
        labelled = confusion.sum(0) > 0
        confusion[~labelled] = 0
        return F.normalize(confusion + PRIOR * torch.eye(count), p=1, dim=1)

    def _normalised(self, image: Tensor) -> Tensor:
        return ((image - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _classes(self, network: Any, image: Tensor) -> Tensor:
        """Classes (H, W) of an image (bands, H, W) in [0, 1]."""
        return network(self._normalised(image[None]))[0].max(0).indices.to(torch.uint8)  # faster than argmax

    def _score(self, network: Any) -> dict[str, Any] | None:
        """Scores on the held-out labels; None where there are none."""
        count = len(self.spec.classes)
        confusion = torch.zeros(count, count, dtype=torch.int64)
        for image, labels in (part for item in self.patches for part in item.scored):
            classes = self._classes(network, image)
            confusion += metrics.confusion_matrix(classes.long(), labels.long(), count)
        if not confusion.any():
            return None
        scores = metrics.without_nan(metrics.scores_of(confusion))
        return {key: scores[key] for key in ("overall_accuracy", "miou", "iou")}

    def _keep_best(self) -> None:
        """Keep the averaged weights if they score as well as any before."""
        now = self._score(self._averaged()) if self._chooses else None
        score = now["miou"] if now is not None else float(self.state.step)
        if score >= self.state.best_score:
            self.state.best_score = score
            self.state.best = {key: value.clone() for key, value in self.average.items()}

    def _averaged(self, weights: dict[str, Tensor] | None = None) -> BicorSeg:
        network = BicorSeg(self.network.config)
        network.load_state_dict(weights or self.average)
        return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def save(self) -> None:
        """Write the checkpoint."""
        stored = {
            "state": dataclasses.asdict(self.state) | {"best": self.state.best},
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        with files.write_atomic(self._checkpoint) as part:
            torch.save(stored, part)

    def _load(self) -> None:
        try:
            stored = torch.load(self._checkpoint, weights_only=True)
            self.network.load_state_dict(stored["network"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.average, self.state = stored["average"], _State(**stored["state"])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as err:
            raise UsageError(f"{self._checkpoint}: cannot be resumed ({err!s:.200})") from err

    def finish(self) -> AdaptResult:
        """Write the best state, and remove the checkpoint of a run that is over."""
        if not self.state.best:
            self._keep_best()
        network = self._limited(self._averaged(self.state.best))
        after = self._score(network)
        result = AdaptResult(
            path=self.output,
            steps=self.state.step,
            seconds=round(self.state.seconds, 1),
            labelled_m2=self._areas(),
            held_out=sum(item.held_out for item in self.patches),
            before=self.state.before,
            after=after,
            changed_share=self._changed(network),
            notes=tuple(self._notes(after)),
        )
        self._write(network, result)
        if self.done >= 1:
            self._checkpoint.unlink(missing_ok=True)
        return result

    def _limited(self, network: BicorSeg) -> BicorSeg:
        """The network with as much of what it learnt as the limits of loss and change allow."""
        own, learnt = self.start, network.state_dict()
        one_class = sum(area > 0 for area in self._areas().values()) == 1
        for share in STEPS_BACK:
            weights = {
                key: torch.lerp(own[key], value, share) if value.is_floating_point() else value
                for key, value in learnt.items()
            }
            network.load_state_dict(weights)
            changed = self._changed(network) if one_class else 0.0
            if self._lost(network) <= MOST_LOST and changed <= MOST_CHANGED:
                break
        logger.info("%.0f %% of the change of the weights is kept", 100 * share)
        return network

    def _lost(self, network: BicorSeg) -> float:
        """Share of artificial pixels that the model has right and the network wrong."""
        lost = total = 0
        for image, labels in self.crops.checks():
            right = self._classes(self.base, image) == labels
            lost += int((right & (self._classes(network, image) != labels)).sum())
            total += int(right.sum())
        return lost / max(total, 1)

    def _notes(self, after: dict[str, Any] | None) -> list[str]:
        if after is None or self.state.before is None:
            return ["no class has three labels, so none were held out: the model is not scored"]
        if after["miou"] < self.state.before["miou"]:
            return ["the adapted model scores lower on held-out labels than the model before"]
        return []

    def _areas(self) -> dict[str, float]:
        totals = np.sum([item.areas_m2 for item in self.patches], axis=0)
        return {name: round(float(area), 1) for name, area in zip(self.spec.class_names, totals, strict=True)}

    def _changed(self, network: BicorSeg) -> float:
        changed = total = 0
        for image in (image for item in self.patches for image in item.samples()):
            before, after = self._classes(self.base, image), self._classes(network, image)
            changed, total = changed + int((before != after).sum()), total + before.numel()
        return changed / max(total, 1)

    def _write(self, network: BicorSeg, result: AdaptResult) -> None:
        training = {
            "adapted_from": self.spec.name,
            "scenes": [item.name for item in self.patches],
            "labelled_m2": result.labelled_m2,
            "steps": result.steps,
            "minutes": round(result.seconds / 60, 1),
            "seed": self.config.seed,
            "learning_rate": self.config.learning_rate,
            "changed_share": round(result.changed_share, 4),
        }
        scores = {
            key: value for key, value in (("before", result.before), ("held_out", result.after)) if value
        }
        spec = dataclasses.replace(
            self.spec, name=self.output.stem[:100], training=training, scores=scores,
            description=f"{self.spec.name}, adapted to {', '.join(item.name for item in self.patches)[:500]}",
        )  # fmt: skip
        save_model(self.output, network, spec, overwrite=True)
        template = card_templates().get_template("adapted.md.j2")
        card = template.render(spec=spec, result=result, base=self.spec.name)
        self.output.with_suffix(".md").write_text(card, encoding="utf-8")

"""Adapt a model to a place: a few drawn labels, and a minute.

The network stays as it is. A small head learns what to add to its logits, from the finest features of the
encoder and the logits themselves: what is drawn right, little elsewhere. It acts on tiles that are more like
these scenes than like the training data. On artificial scenes it is held to the model where that is right. At
the end it goes back towards nothing (as WiSE-FT, Wortsman et al., CVPR 2022, arXiv:2109.01903) until little
is lost on other artificial scenes. Where labels are held out, the head is trained twice: without them, to
score it, and with them.
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
from rsseg_cli.training.adaptation_data import ScenePatches
from rsseg_cli.training.adaptation_views import AdaptationData, Balanced, Pixels
from rsseg_cli.training.cards import card_templates
from rsseg_cli.training.config import AdaptConfig
from rsseg_cli.training.start import start_from_model
from rsseg_cli.weights import ClassSpec, ModelSpec, TrainedModel, load_model, save_model

logger = logging.getLogger(__name__)
SCORE_EVERY_S = 40.0
SAVE_EVERY_S = 60.0
HIDDEN = 64  # width of the head
BATCH = 4096  # labelled pixels a step
MIX = 0.3  # of the beta distribution of weights by which labelled pixels are mixed
SURE = 0.9  # probability from which the head teaches itself,
TEACH_FROM, TEACH_EVERY = 0.3, 100  # from this share of a training, with classes of this many steps
KEEP = 3.0  # weights beside that of the labels: of changes where the model is right,
SPREAD = 0.1  # of classes that labels refute where the model gives another,
WEIGHT_DECAY = 1e-3  # and of the head's weights
HALVINGS = 16  # of the share of the change that is kept
MOST_LOST = 0.02  # share of artificial pixels that the model has right and may get wrong
MOST_CHANGED = 0.2  # share of the scenes that labels of one class alone may change
Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class AdaptResult:
    """An adapted model.

    Attributes:
        labelled_m2: area drawn of each class, those held out included.
        before, after: on the held-out labels, of the model and of one adapted without them:
            `overall_accuracy`, `miou` and `iou` by class; None without held-out labels.
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
    after: dict[str, Any] | None = None  # of a head that is being trained again


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
    if start.spec.network.get("correction") and config.new_classes:
        raise UsageError(
            f"--new-classes: {config.model} is adapted already; pass the model that it came from"
        )
    spec = _with_classes(start.spec, config.new_classes)
    patches = [ScenePatches(image, labels, spec, config) for image, labels in scenes]
    run = _Run(start, spec, patches, output, config, progress)
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
    """The head on its way, the model that it corrects, and what it learns from."""

    def __init__(
        self,
        start: TrainedModel,
        spec: ModelSpec,
        patches: Sequence[ScenePatches],
        output: Path,
        config: AdaptConfig,
        progress: Progress | None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.output, self.patches = config, output, patches
        sizes = start.spec.network
        if not sizes.get("correction"):
            sizes = {**sizes, "correction": HIDDEN, "local": bool(start.spec.training_tiles)}
        wider = dataclasses.replace(start, spec=dataclasses.replace(start.spec, network=sizes))
        self.network, self.spec = start_from_model(wider, spec, config.model)
        self.network.eval().requires_grad_(False)
        self.head = cast(Any, self.network.correction)
        self.head.requires_grad_(True)
        shown = None if progress is None else lambda done, of: progress(0.0, f"patch {done} of {of}")
        self._data = AdaptationData(
            cast(BicorSeg, start.network.eval()), self.network, self.spec, patches, config, shown
        )
        self.start = {key: value.clone() for key, value in self.head.state_dict().items()}
        self._begin(self._data.labelled)
        scored_classes = {int(index) for _, labels in self._data.scored for index in labels.unique()}
        # one class would choose what maps it most
        self._chooses = len(scored_classes - {class_values.IGNORE}) > 1
        self._is_binary = len(self.spec.classes) == 2
        self.state = _State()
        self._checkpoint = output.with_name(f"{output.name}.ckpt")
        if config.resume:
            self._load()
        elif self._checkpoint.exists() and not config.overwrite:
            raise UsageError(
                f"{self._checkpoint}: is of a stopped run; pass --resume, or --overwrite to start over"
            )
        if self.state.before is None:
            self.state.before = self._score(None)

    def _begin(self, labelled: Pixels) -> None:
        """Start to train on labels."""
        self._learnt, self._refuted = Balanced(labelled), labelled.refuted()
        self._confirmed = labelled.confirmed(self._refuted)
        self._taught: Balanced | None = None
        self.head.load_state_dict(self.start)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=self.config.learning_rate)

    def train(self, progress: Progress | None) -> None:
        """Train until the time is up."""
        began = time.monotonic() - self.state.seconds
        scored = saved = time.monotonic()
        while self.done < 1:
            self._step()
            now = time.monotonic()
            self.state.seconds = now - began
            if now - scored > min(SCORE_EVERY_S, self.config.minutes * 15) or self.done >= 1:
                self._keep_best()
                scored = time.monotonic()
            if now - saved > SAVE_EVERY_S or self.done >= 1:
                self.save()
                saved = time.monotonic()
            if self._data.everything is not None and self.state.after is None and self.done >= 0.5:
                self._keep_best()
                self._limit()
                self.state.after = self._score(self.head)
                self._begin(self._data.everything)
            if progress is not None:
                progress(min(1.0, self.done), self._words())

    @property
    def done(self) -> float:
        """Share of the steps, or of the time, that is over."""
        return max(self.state.step / self.config.steps, self.state.seconds / (self.config.minutes * 60))

    @property
    def _done_of_training(self) -> float:
        """The same of one of two trainings, where labels are held out."""
        return (2 * self.done) % 1 if self._data.everything is not None else self.done

    def _words(self) -> str:
        before, best = self.state.before, self.state.best_score
        if before is None or not self._chooses:
            return f"step {self.state.step}"
        return f"held-out mIoU {before['miou']:.3f} -> {f'{best:.3f}' if best >= 0 else '-'}"

    def _step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * max(0.02, 1 - self._done_of_training)
        loss = self._loss(np.random.default_rng((self.config.seed, self.state.step)))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.state.step += 1

    def _loss(self, rng: np.random.Generator) -> Tensor:
        """Labels, mixed (Verma et al., ICML 2019, arXiv:1806.05236); classes elsewhere of which it is sure;
        changes where the model is right, of two classes all where nothing is labelled; size of weights.
        """
        part = self._learnt.draw(BATCH).mixed(self._learnt.draw(BATCH), float(rng.beta(MIX, MIX)))
        loss = F.cross_entropy(part.corrected(self.head), part.labels)
        unlabelled = self._data.unlabelled
        if unlabelled is not None and not self._is_binary and self._done_of_training >= TEACH_FROM:
            if self._taught is None or self.state.step % TEACH_EVERY == 0:
                sure = unlabelled.sure(self.head, SURE, self._refuted)
                self._taught = Balanced(sure) if len(sure.labels) else None
            if self._taught is not None:
                part = self._taught.draw(BATCH)
                loss = loss + F.cross_entropy(part.corrected(self.head), part.labels)
        if unlabelled is not None and self._confirmed.any():
            part = unlabelled.at(torch.from_numpy(rng.integers(0, len(unlabelled.labels), BATCH)))
            loss = loss + SPREAD * part.spread(self.head, self._confirmed)
        if unlabelled is not None and self._is_binary:  # a few mistakes of both would turn the map over
            part = unlabelled.at(torch.from_numpy(rng.integers(0, len(unlabelled.labels), BATCH)))
            loss = loss + KEEP * self._change(part)
        kept = self._data.kept
        if kept is not None:
            part = kept.at(torch.from_numpy(rng.integers(0, len(kept.labels), BATCH // 2)))
            loss = loss + KEEP * self._change(part)
        size = sum((value**2).sum() for value in self.head.parameters() if value.ndim > 1)
        return loss + WEIGHT_DECAY * size

    def _change(self, part: Pixels) -> Tensor:
        return F.kl_div(part.corrected(self.head).log_softmax(1), part.before, reduction="batchmean")

    def _score(self, head: Any) -> dict[str, Any] | None:
        """Scores on the held-out labels; None where there are none."""
        count = len(self.spec.classes)
        confusion = torch.zeros(count, count, dtype=torch.int64)
        for view, labels in self._data.scored:
            confusion += metrics.confusion_matrix(view.classes(head), labels.long(), count)
        if not confusion.any():
            return None
        scores = metrics.without_nan(metrics.scores_of(confusion))
        return {key: scores[key] for key in ("overall_accuracy", "miou", "iou")}

    @torch.no_grad()
    def _keep_best(self) -> None:
        """Keep the head if it scores as well as any before; one that learns every label at its end."""
        if self.state.after is not None and self.done < 1:
            return
        choose = self._chooses and self.state.after is None
        now = self._score(self.head) if choose else None
        score = now["miou"] if now is not None else float(self.state.step)
        if score >= self.state.best_score:
            self.state.best_score = score
            self.state.best = {key: value.clone() for key, value in self.head.state_dict().items()}

    def save(self) -> None:
        """Write the checkpoint."""
        stored = {
            "state": dataclasses.asdict(self.state) | {"best": self.state.best},
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with files.write_atomic(self._checkpoint) as part:
            torch.save(stored, part)

    def _load(self) -> None:
        try:
            stored = torch.load(self._checkpoint, weights_only=True)
            self.state = _State(**stored["state"])
            if self.state.after is not None and self._data.everything is not None:
                self._begin(self._data.everything)
            self.head.load_state_dict(stored["head"])
            self.optimizer.load_state_dict(stored["optimizer"])
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as err:
            raise UsageError(f"{self._checkpoint}: cannot be resumed ({err!s:.200})") from err

    @torch.no_grad()
    def finish(self) -> AdaptResult:
        """Write the best state, and remove the checkpoint of a run that is over."""
        if not self.state.best:
            self._keep_best()
        self._limit()
        after = self.state.after or self._score(self.head)
        result = AdaptResult(
            path=self.output,
            steps=self.state.step,
            seconds=round(self.state.seconds, 1),
            labelled_m2=self._data.areas_m2,
            held_out=sum(item.held_out for item in self.patches),
            before=self.state.before,
            after=after,
            changed_share=self._changed(),
            notes=tuple(self._notes(after)),
        )
        self._write(result)
        if self.done >= 1:
            self._checkpoint.unlink(missing_ok=True)
        return result

    def _limit(self) -> None:
        """Keep as much of what was learnt as the limits of loss and change allow."""
        share, step = 1.0, 0.5
        if not self._is_allowed(share):
            share = 0.0
            for _ in range(HALVINGS):
                share += step if self._is_allowed(share + step) else 0.0
                step /= 2
            self._is_allowed(share)
        logger.info("%.1f %% of the change of the weights is kept", 100 * share)

    def _is_allowed(self, share: float) -> bool:
        """Set the head to a share of its change; whether that stays within the limits."""
        weights = {key: torch.lerp(self.start[key], self.state.best[key], share) for key in self.start}
        self.head.load_state_dict(weights)
        return self._lost() <= MOST_LOST and not (self._data.has_one_class and self._changed() > MOST_CHANGED)

    def _lost(self) -> float:
        """Share of artificial pixels that the model has right and the correction makes wrong."""
        lost = total = 0
        for view, labels in self._data.checks:
            right = view.classes() == labels
            lost += int((right & (view.classes(self.head) != labels)).sum())
            total += int(right.sum())
        return lost / max(total, 1)

    def _notes(self, after: dict[str, Any] | None) -> list[str]:
        if after is None or self.state.before is None:
            return ["no class has three labels, so none were held out: the model is not scored"]
        learnt = "has since learned" if self.done >= 1 else "has not yet learned"
        notes = [f"the model {learnt} the labels that were held out"]
        if after["miou"] < self.state.before["miou"]:
            notes.append("the adapted model scores lower on held-out labels than the model before")
        return notes

    def _changed(self) -> float:
        changed = [(view.classes() != view.classes(self.head)).float().mean() for view in self._data.samples]
        return float(torch.stack(changed).mean()) if changed else 0.0

    def _write(self, result: AdaptResult) -> None:
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
        described = [view.described for view in self._data.samples]
        tiles = {
            kind: item.with_tiles(torch.cat([each[kind] for each in described]).double().numpy())
            for kind, item in self.spec.training_tiles.items()
        }
        spec = dataclasses.replace(
            self.spec, name=self.output.stem[:100], training_tiles=tiles, training=training, scores=scores,
            description=f"{self.spec.name}, adapted to {', '.join(item.name for item in self.patches)[:500]}",
        )  # fmt: skip
        save_model(self.output, self.network, spec, overwrite=True)
        template = card_templates().get_template("adapted.md.j2")
        card = template.render(spec=spec, result=result, base=self.spec.name)
        self.output.with_suffix(".md").write_text(card, encoding="utf-8")

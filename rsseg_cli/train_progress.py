"""What a run tells while it trains: a bar with the time left of all of it, or a line an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
from tqdm import tqdm

Show = Literal["bar", "lines", "none"]
REFRESH_S = 0.5


class TimeLeft:
    """Estimate of the time left of a whole run, from the steps and epochs that are done.

    Epochs done so far carry their validation with them; within the first one the pace of its steps counts.

    Args:
        epochs: of the whole run.
        done: epochs that an earlier part of the run has finished.
        clock: seconds.
    """

    def __init__(self, epochs: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.epochs, self.first, self.clock = epochs, done, clock
        self.finished = done
        self.started = self.epoch_started = clock()

    def epoch_done(self) -> None:
        self.finished += 1
        self.epoch_started = self.clock()

    def seconds(self, share: float) -> float | None:
        """Seconds left when `share` of the running epoch's steps is done; None before the first step."""
        now = self.clock()
        if self.finished > self.first:
            an_epoch = (self.epoch_started - self.started) / (self.finished - self.first)
            running = min(max(now - self.epoch_started, share * an_epoch), an_epoch) if share else 0.0
            return (self.epochs - self.finished) * an_epoch - running
        if share <= 0:
            return None
        return (now - self.started) / share * (self.epochs - self.first - share)


def hours_and_minutes(seconds: float | None) -> str:
    """h:mm, rounded up to whole minutes; "?" where nothing is known."""
    if seconds is None:
        return "?"
    minutes = max(0, -int(-seconds // 60))
    return f"{minutes // 60}:{minutes % 60:02d}"


class RunProgress(L.Callback):
    """Progress on stderr: loss, scores on validation (`TrainingModule.told`), time left of the whole run as
    h:mm.

    Args:
        show: "bar", one over all epochs; "lines", one line an epoch; "none".
        write: takes a line of "lines".
    """

    def __init__(self, show: Show, write: Callable[[str], None] | None = None) -> None:
        self.show = show
        self.write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self.bar: tqdm[Any] | None = None
        self.left = TimeLeft(1)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        epochs, batches = trainer.max_epochs or 1, int(trainer.num_training_batches)
        self.left = TimeLeft(epochs, trainer.current_epoch)
        if self.show == "bar" and trainer.is_global_zero:
            self.bar = tqdm(
                total=epochs * batches,
                initial=trainer.current_epoch * batches,
                file=sys.stderr,
                mininterval=REFRESH_S,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is not None:
            share = (batch_idx + 1) / int(trainer.num_training_batches)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.set_description_str(f"{epoch}  {self._told(module, share)}", False)
            self.bar.update()

    def _told(self, module: Any, share: float) -> str:
        scores, watch = "", module.watch
        if module.history:
            best = watch.best([item[watch.key] for item in module.history])
            scores = f"  {module.told(module.history[-1])} (best {best:.3f})"
        return f"loss {module.step_loss:.3f}{scores}  ETA {hours_and_minutes(self.left.seconds(share))}"

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.left.epoch_done()
        if self.show == "lines" and trainer.is_global_zero and module.history:
            last = module.history[-1]
            eta = hours_and_minutes(self.left.seconds(0))
            self.write(
                f"epoch {last['epoch']}/{trainer.max_epochs}  loss {last['loss']:.3f}  "
                f"{module.told(last)}  ETA {eta}"
            )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

"""Build Lightning's Trainer: devices, callbacks, logs, readable errors."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tqdm import tqdm

from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.inference import choose_device
from rsseg_cli.training.config import RunOptions, Show, TrainConfig
from rsseg_cli.training.optim import averaged_weights, mixed_precision

REFRESH_S = 0.5


class TimeLeft:
    """Estimate of the time left of a whole run, from the steps and epochs that are done.

    Epochs done so far carry their validation with them; within the first one the pace of its steps counts.

    Args:
        epochs: of the whole run.
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
    """Format as h:mm, rounded up to minutes; "?" if unknown."""
    if seconds is None:
        return "?"
    minutes = max(0, -int(-seconds // 60))
    return f"{minutes // 60}:{minutes % 60:02d}"


class RunProgress(L.Callback):
    """Progress on stderr: loss, validation scores, time left of the whole run as h:mm."""

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
            self.bar.set_description_str(f"{epoch}  {self._progress_text(module, share)}", False)
            self.bar.update()

    def _progress_text(self, module: Any, share: float) -> str:
        scores, monitored = "", module.monitored
        if module.history:
            best = monitored.best([item[monitored.key] for item in module.history])
            scores = f"  {module.progress_text(module.history[-1])} (best {best:.3f})"
        return f"loss {module.step_loss:.3f}{scores}  ETA {hours_and_minutes(self.left.seconds(share))}"

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.left.epoch_done()
        if self.show == "lines" and trainer.is_global_zero and module.history:
            last = module.history[-1]
            eta = hours_and_minutes(self.left.seconds(0))
            self.write(
                f"epoch {last['epoch']}/{trainer.max_epochs}  loss {last['loss']:.3f}  "
                f"{module.progress_text(last)}  ETA {eta}"
            )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


logger = logging.getLogger("rsseg_cli")


class _Patience(EarlyStopping):
    """Early stopping that holds on resume: a stopped run does not train another epoch."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def build_trainer(config: TrainConfig, run: RunOptions, best: ModelCheckpoint) -> L.Trainer:
    """Lightning's Trainer with the callbacks and logs of a run."""
    device = choose_device(run.device)
    last = ModelCheckpoint(run.run_dir, "last", every_n_epochs=1, enable_version_counter=False)
    callbacks: list[L.Callback] = [best, last, RunProgress(run.show)]
    if config.ema:
        callbacks.append(averaged_weights(config.ema))
    if config.patience:
        callbacks.append(_Patience(best.monitor or "", mode=best.mode, patience=config.patience))
    if run.resume:
        _keep_old_log(run.run_dir)
    try:
        return L.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=_devices(run.devices, device),
            num_nodes=run.num_nodes,
            strategy=run.strategy,
            precision=mixed_precision(config.precision, device),  # type: ignore[arg-type]
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            logger=[
                CSVLogger(run.run_dir, name="", version=""),
                TensorBoardLogger(run.run_dir, name="", version="tensorboard"),
            ],
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=config.clip or None,
            use_distributed_sampler=False,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as err:
        raise UsageError(
            f"--device {run.device}, --devices {run.devices}, --strategy {run.strategy}, "
            f"--precision {config.precision}: {err}"
        ) from err


def _devices(wanted: str, device: torch.device) -> Any:
    if device.index is not None and wanted in ("1", "auto"):
        return [device.index]
    try:
        return (
            wanted
            if wanted == "auto"
            else [int(part) for part in wanted.split(",")]
            if "," in wanted
            else int(wanted)
        )
    except ValueError as err:
        raise UsageError(f"--devices {wanted}: needs a number, numbers as in 0,2, or auto") from err


def checkpoint(run_dir: Path) -> Path:
    path = run_dir / "last.ckpt"
    if not path.exists():
        raise DataError(f"{path} does not exist; --resume needs a run that finished an epoch")
    return path


def _keep_old_log(run_dir: Path) -> None:
    """Keep the log of the resumed part as metrics-1.csv, -2, ...: Lightning overwrites `metrics.csv`."""
    old = run_dir / "metrics.csv"
    if old.exists() and environment_rank() == 0:
        number = 1 + len(list(run_dir.glob("metrics-*.csv")))
        old.rename(run_dir / f"metrics-{number}.csv")


def environment_rank() -> int:
    """Return this process's rank from its launcher's variables: 0 of the first or only one."""
    for key in ("RANK", "SLURM_PROCID"):
        if key in os.environ:
            return int(os.environ[key])
    node, local = (int(os.environ.get(key, "0")) for key in ("NODE_RANK", "LOCAL_RANK"))
    return node * 1000 + local


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence Lightning's tips for its own users."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step.*")
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
        yield


@contextlib.contextmanager
def readable_memory_errors(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as err:
        raise ModelError(_out_of_memory(config, "the GPU")) from err
    except MemoryError as err:
        raise ModelError(_out_of_memory(config, "the machine")) from err
    except RuntimeError as err:
        if "can't allocate memory" not in str(err) and "not enough memory" not in str(err):
            raise
        raise ModelError(_out_of_memory(config, "the machine")) from err


def _out_of_memory(config: TrainConfig, where: str) -> str:
    found = (
        f"{where} is out of memory with --batch-size {config.batch_size} and crops of {config.crop_size} px"
    )
    if config.batch_size == 1:
        smaller = max(64, config.crop_size // 2 // 64 * 64)
        return f"{found}; pass --crop-size {smaller}, or a smaller --arch"
    half = config.batch_size // 2
    more = -(-config.batch_size * config.accumulate // half)
    return f"{found}; pass --batch-size {half}, with --accumulate {more} for steps of as many crops"


@contextlib.contextmanager
def interrupts_raised(trainer: L.Trainer, run: RunOptions) -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning would exit the program and ignore the next interrupt."""
    try:
        yield
    except SystemExit as end:
        if trainer.state.status != "interrupted":
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if (run.run_dir / "last.ckpt").exists():
            logger.info("%s: pass --resume to continue from the last finished epoch", run.run_dir)
        raise KeyboardInterrupt from end


def device_name(trainer: L.Trainer) -> str:
    """Return the hardware of the run: "2 x NVIDIA H200", "CPU, 4 threads"."""
    if trainer.strategy.root_device.type == "cuda":
        name = torch.cuda.get_device_name(trainer.strategy.root_device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name


def _processor() -> str:
    """Return the processor's name, from /proc/cpuinfo if there."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

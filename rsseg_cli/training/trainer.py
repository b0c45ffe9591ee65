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
from rsseg_cli.inference import Engine
from rsseg_cli.training.config import RunOptions, Show, TrainConfig
from rsseg_cli.training.module import Averaging, mixed_precision

logger = logging.getLogger(__name__)
REFRESH_S = 0.5


def hours_and_minutes(seconds: float | None) -> str:
    """Format as h:mm, rounded up to minutes; "?" if unknown."""
    if seconds is None:
        return "?"
    minutes = max(0, -int(-seconds // 60))
    return f"{minutes // 60}:{minutes % 60:02d}"


class RunProgress(L.Callback):
    """Progress on stderr: loss, validation scores, time left of the whole run at the pace so far as h:mm."""

    def __init__(self, show: Show, clock: Callable[[], float] = time.monotonic) -> None:
        self.show, self.clock = show, clock
        self.bar: tqdm[Any] | None = None
        self.started, self.first = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started, self.first = self.clock(), trainer.current_epoch
        if self.show == "bar" and trainer.is_global_zero:
            batches = int(trainer.num_training_batches)
            self.bar = tqdm(
                total=(trainer.max_epochs or 1) * batches,
                initial=trainer.current_epoch * batches,
                file=sys.stderr,
                mininterval=REFRESH_S,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            )

    def _eta(self, trainer: L.Trainer, done: float) -> str:
        here = self.clock() - self.started, done - self.first
        left = (trainer.max_epochs or 1) - done
        return hours_and_minutes(here[0] / here[1] * left if here[1] > 0 else None)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        scores, monitored = "", module.monitored
        if module.history:
            best = monitored.best([item[monitored.key] for item in module.history])
            scores = f"  {module.progress_text(module.history[-1])} (best {best:.3f})"
        done = trainer.current_epoch + (batch_idx + 1) / int(trainer.num_training_batches)
        self.bar.set_description_str(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {module.step_loss:.3f}{scores}  "
            f"ETA {self._eta(trainer, done)}",
            False,
        )
        self.bar.update()

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if self.show == "lines" and trainer.is_global_zero and module.history:
            last = module.history[-1]
            print(
                f"epoch {last['epoch']}/{trainer.max_epochs}  loss {last['loss']:.3f}  "
                f"{module.progress_text(last)}  ETA {self._eta(trainer, trainer.current_epoch + 1)}",
                file=sys.stderr,
                flush=True,
            )

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")


class _Patience(EarlyStopping):
    """Early stopping that holds on resume: a stopped run does not train another epoch."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def build_trainer(config: TrainConfig, run: RunOptions, best: ModelCheckpoint) -> L.Trainer:
    device = Engine.choose_device(run.device)
    last = ModelCheckpoint(run.run_dir, "last", every_n_epochs=1, enable_version_counter=False)
    callbacks: list[L.Callback] = [best, last, RunProgress(run.show)]
    if config.ema:
        callbacks.append(Averaging(config.ema))
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
        numbers = [int(part) for part in wanted.split(",")] if wanted != "auto" else []
    except ValueError as err:
        raise UsageError(f"--devices {wanted}: needs a number, numbers as in 0,2, or auto") from err
    return numbers if len(numbers) > 1 else numbers[0] if numbers else wanted


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
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step.*")
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
        yield


@contextlib.contextmanager
def readable_memory_errors(config: TrainConfig) -> Iterator[None]:
    """Raise a ModelError that says what to change where torch or Python is out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as err:
        on_gpu = isinstance(err, torch.OutOfMemoryError)
        words = ("can't allocate memory", "not enough memory")
        if not (on_gpu or isinstance(err, MemoryError) or any(word in str(err) for word in words)):
            raise
        half, smaller = config.batch_size // 2, max(64, config.crop_size // 2 // 64 * 64)
        remedy = f"--crop-size {smaller}, or a smaller --arch"
        if half:
            more = -(-config.batch_size * config.accumulate // half)
            remedy = f"--batch-size {half}, with --accumulate {more} for steps of as many crops"
        raise ModelError(
            f"{'the GPU' if on_gpu else 'the machine'} is out of memory with --batch-size "
            f"{config.batch_size} and crops of {config.crop_size} px; pass {remedy}"
        ) from err


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
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

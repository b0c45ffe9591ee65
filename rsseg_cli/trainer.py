"""Lightning's Trainer as a run needs it: devices, callbacks, logs, and its faults in a user's words."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rsseg_cli.errors import DataError, ModelError, UsageError
from rsseg_cli.optim import averaged_weights, mixed_precision
from rsseg_cli.train_config import TrainConfig
from rsseg_cli.train_progress import RunProgress, Show

logger = logging.getLogger("rsseg_cli")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and on what a run computes; none of it changes the result on one device.

    Attributes:
        run_dir: checkpoints (`last.ckpt`, `best.ckpt`), `settings.toml`, `metrics.csv`, TensorBoard's events.
        device: auto, cpu, cuda, cuda:1, mps.
        devices: how many, or which ("0,2"), or "auto" for all; each takes `batch_size` crops a step.
        num_nodes: machines that take part.
        strategy: Lightning's, as "ddp".
        resume: go on from `last.ckpt`.
        show: progress on stderr.
    """

    run_dir: Path
    device: str = "auto"
    devices: str = "1"
    num_nodes: int = 1
    strategy: str = "auto"
    resume: bool = False
    show: Show = "none"


class _Patience(EarlyStopping):
    """Early stopping that a resumed run keeps to: one that had stopped does not train another epoch."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def build_trainer(config: TrainConfig, run: RunOptions, best: ModelCheckpoint) -> L.Trainer:
    """Lightning's Trainer with the callbacks and logs of a run.

    Raises:
        UsageError: devices, precision or strategy that Lightning or the machine does not have.
    """
    device = _torch_device(run.device)
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


def _torch_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise UsageError(f"--device {name}: needs auto, cpu, cuda, cuda:1 or mps") from err
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no CUDA device here; pass --device cpu")
    return device


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
        raise DataError(f"{path} does not exist; --resume goes on with a run that finished an epoch")
    return path


def _keep_old_log(run_dir: Path) -> None:
    """Lightning begins `metrics.csv` anew: that of the part before becomes metrics-1.csv, -2 and so on."""
    old = run_dir / "metrics.csv"
    if old.exists() and environment_rank() == 0:
        number = 1 + len(list(run_dir.glob("metrics-*.csv")))
        old.rename(run_dir / f"metrics-{number}.csv")


def environment_rank() -> int:
    """This process's place as launchers tell it before torch.distributed starts: 0 of the first or only one,
    different in all others."""
    for key in ("RANK", "SLURM_PROCID"):
        if key in os.environ:
            return int(os.environ[key])
    node, local = (int(os.environ.get(key, "0")) for key in ("NODE_RANK", "LOCAL_RANK"))
    return node * 1000 + local


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lightning's tips and its advice to its own users are no news to ours."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step.*")
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
        yield


@contextlib.contextmanager
def out_of_memory_told(config: TrainConfig) -> Iterator[None]:
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
def interruption_told(trainer: L.Trainer, run: RunOptions) -> Iterator[None]:
    """Lightning ends the program at an interrupt and ignores the next; here it becomes KeyboardInterrupt."""
    try:
        yield
    except SystemExit as end:
        if trainer.state.status != "interrupted":
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if (run.run_dir / "last.ckpt").exists():
            logger.info("%s: the same command with --resume goes on at the last finished epoch", run.run_dir)
        raise KeyboardInterrupt from end


def device_name(trainer: L.Trainer) -> str:
    """What the run computed on: "2 x NVIDIA H200", "CPU, 4 threads"."""
    if trainer.strategy.root_device.type == "cuda":
        name = torch.cuda.get_device_name(trainer.strategy.root_device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

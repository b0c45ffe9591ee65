"""A Ray cluster to work on: one that runs already, or one of this machine alone for the time of the work."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from rsseg_cli.errors import UsageError

CONNECT_S = 5.0
MAX_STARTS = (
    3  # tries: Ray gives its own processes 15 s, which is not much on a busy machine (ray issue 65983)
)
STORE_BYTES = 1 << 30  # of shared memory for finished rows, of a cluster of our own
FOLDER = "rsseg-ray-"
LOCK = "run.lock"  # held while the cluster of a folder lives
YOUNG_S = 60.0  # a folder may not have its lock yet
INSTALL = "pip install 'rsseg[ray]'"
# Before Ray is imported: no usage statistics, no lines of its own among the results on stdout. Its processes
# need 40 s to start on two busy processors.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "45",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_worker_niceness": "0",  # its default is 15: a busy machine would hardly let workers run
}


def ray_module() -> Any:
    """Ray, imported with settings that keep it quiet.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"--engine ray: Ray is not installed; {INSTALL}")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster. Where this process was connected before, that connection is used and kept.

    Args:
        address: "auto" for the cluster that this machine belongs to, or host:port of its head; None for what
            the environment variable RAY_ADDRESS says, and without it for a cluster of this machine alone.
        workers: processors of a cluster of this machine alone; None for all.

    Raises:
        UsageError: Ray is not installed, or there is no cluster.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    folder = lock = None
    try:
        with _own_signals():
            if address is None or address == "local":
                folder = _short_folder()
                lock = filelock.FileLock(folder / LOCK)
                lock.acquire()
                _start(ray, folder, workers)
            else:
                _join(ray, address)
        yield ray
    finally:
        with _own_signals():
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


def _start(ray: Any, folder: Path, workers: int | None) -> None:
    for start in range(MAX_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=str(folder),
                **_quiet(),
            )
            return
        except Exception as err:  # the class that Ray raises where its processes do not start
            ray.shutdown()
            if start + 1 == MAX_STARTS:
                raise UsageError(f"--engine ray: no cluster can be started on this machine ({err})") from err


def _join(ray: Any, address: str) -> None:
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: needs host:port of the head; run rsseg on a machine of the cluster: "
            "this process writes the outputs"
        )
    if address != "auto":
        _check_address(address)
    try:
        ray.init(address=address, **_quiet())
    except (ConnectionError, OSError, RuntimeError, ValueError) as err:
        if address == "auto":
            raise UsageError(
                "--ray-address auto: no Ray cluster runs on this machine; start one with `ray start --head`, "
                "join one with `ray start --address HOST:6379`, or leave --ray-address out"
            ) from err
        raise UsageError(f"--ray-address {address}: cannot be joined ({err})") from err


def _check_address(address: str) -> None:
    """Ray itself waits for over half a minute and then ends the process."""
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray-address {address}: needs auto or host:port, as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as err:
        raise UsageError(
            f"--ray-address {address}: nothing answers there ({err}); `ray start --head` on the head tells "
            "its address"
        ) from err


def _quiet() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": "CRITICAL"}


def _short_folder() -> Path:
    """For Ray's sockets, whose paths may have 107 characters."""
    parent = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    _remove_stale(parent)
    return Path(tempfile.mkdtemp(prefix=FOLDER, dir=parent))


def _remove_stale(parent: Path) -> None:
    """Folders of runs that were killed; nobody else removes them."""
    for folder in parent.glob(f"{FOLDER}*"):
        with suppress(OSError, filelock.Timeout):
            status = folder.lstat()
            mine = stat.S_ISDIR(status.st_mode) and status.st_uid == getattr(os, "getuid", int)()
            if mine and time.time() - status.st_mtime > YOUNG_S and (folder / LOCK).is_file():
                with filelock.FileLock(folder / LOCK, blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

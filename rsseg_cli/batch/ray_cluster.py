"""Connect to a Ray cluster: a running one, or one on this machine for the length of a run."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rsseg_cli.errors import UsageError

CONNECT_S = 5.0
MAX_STARTS = 3  # Ray gives its own processes 15 s, which is short on a busy machine (ray issue 65983)
STORE_BYTES = 1 << 30  # shared memory for finished rows, on a cluster of this machine
INSTALL = "pip install 'rsseg[ray]'"
QUIET = {"log_to_driver": False, "logging_level": "CRITICAL"}
# Set before Ray is imported: no usage statistics, no lines of Ray's among the results on stdout. Its
# processes need 40 s to start on two busy processors.
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
    """Import Ray with settings that keep it quiet."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"--engine ray: Ray is not installed; {INSTALL}")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connect to a cluster and yield Ray's module. An existing connection of this process is used and kept.

    Args:
        address: "auto" for this machine's cluster, or host:port of its head; None for $RAY_ADDRESS, else a
            cluster on this machine alone.
        workers: CPUs of a cluster on this machine alone; None for all.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        with _sigterm_kept():
            if address == "local":
                _start(ray, workers)
            else:
                _join(ray, address)
        yield ray
    finally:
        with _sigterm_kept():
            ray.shutdown()


def _start(ray: Any, workers: int | None) -> None:
    for attempt in range(1, MAX_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                **QUIET,
            )
            return
        except Exception as err:  # what Ray raises where its processes do not start
            ray.shutdown()
            if attempt == MAX_STARTS:
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
        ray.init(address=address, **QUIET)
    except (ConnectionError, OSError, RuntimeError, ValueError) as err:
        if address == "auto":
            raise UsageError(
                "--ray-address auto: no Ray cluster runs on this machine; start one with `ray start --head`, "
                "join one with `ray start --address HOST:6379`, or leave --ray-address out"
            ) from err
        raise UsageError(f"--ray-address {address}: cannot be joined ({err})") from err


def _check_address(address: str) -> None:
    """Check that something listens: Ray itself waits for over half a minute and then ends the process."""
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray-address {address}: needs auto or host:port, as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as err:
        raise UsageError(
            f"--ray-address {address}: nothing answers there ({err}); `ray start --head` prints the head's "
            "address"
        ) from err


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore this program's SIGTERM handler, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

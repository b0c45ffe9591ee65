"""Fixtures of all tests."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rasters import make_raster  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    """Networks that tests compile stay for the next run, apart from the user's own."""
    os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("compiled"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    own = own_address()

    def stay_here(event: str, args: tuple[object, ...]) -> None:
        address = args[1] if event == "socket.connect" else None
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1", own):
            raise PermissionError(f"tests stay on this machine; connecting to {address[0]}")

    sys.addaudithook(stay_here)


def own_address() -> str:
    """This machine's address in its network, which Ray uses; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """A command sets levels for its whole process; the next test begins without them."""
    yield
    for name, logger in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "rsseg_cli" and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(size) -> a folder on a disk of that many bytes."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("mounting a tmpfs is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def heed_interrupts() -> Callable[[], object]:
    """For a child process's `preexec_fn`: a shell that runs tests in the background lets them ignore Ctrl-C,
    and children inherit that."""
    return lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)

"""Fixtures of all tests."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rasters import make_raster  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    """Networks that tests compile stay for the next run, apart from the user's own."""
    os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("compiled"))


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

"""The machine: its cores and memory, memory that was freed (glibc), new processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

KEPT = 1 << 30  # bytes
MAX_FILES = 4096


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_bytes() -> int | None:
    """Return the machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def max_open_files() -> int:
    """Return how many files this process may have open at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def file_limit_advice() -> str:
    return f"This process may have {max_open_files()} files open; allow more: ulimit -n {MAX_FILES}"


def allow_open_files() -> None:
    """Raise the limit of open files to MAX_FILES, or as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def give_back_memory() -> None:
    """Return freed memory to the system, which glibc keeps otherwise: some 70 MB after a scene."""
    _glibc("malloc_trim", 0)


def keep_memory() -> None:
    """Keep freed memory in this process, which soon needs as much again: asking the system for it takes up to
    a quarter of a block's time."""
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        _glibc("mallopt", parameter, KEPT)


def _glibc(name: str, *numbers: int) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*numbers)


class Process:
    """A process that runs `function(connection)`, of a module's top level, at the other end of `connection`.

    It never imports the caller's `__main__`, as a process that multiprocessing spawns does: a plain script
    needs no main guard. It ignores Ctrl-C, and its connection ends when this process is gone.
    """

    def __init__(self, function: Callable[[Connection], None]) -> None:
        from multiprocessing.connection import Connection

        ours, theirs = socket.socketpair()
        # Forking saves a second of imports, but threads and torch do not survive it.
        forks = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
        with theirs:
            self._process = _forked(function, ours, theirs) if forks else _spawned(function, theirs)
        self.connection = Connection(ours.detach())

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, timeout_s: float | None = None) -> int:
        """Exit code, negative for a signal; a process that takes longer is killed."""
        if isinstance(self._process, subprocess.Popen):
            try:
                return self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
            return self._process.wait()
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        return self._process.exitcode or 0


def _forked(
    function: Callable[[Connection], None], ours: socket.socket, theirs: socket.socket
) -> ForkProcess:
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=_run, args=(function, ours, theirs))
    process.start()
    return process


def _run(function: Callable[[Connection], None], ours: socket.socket, theirs: socket.socket) -> None:
    from multiprocessing.connection import Connection

    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    function(Connection(theirs.detach()))


def _spawned(function: Callable[[Connection], None], theirs: socket.socket) -> subprocess.Popen[bytes]:
    name, handle = function.__name__, theirs.fileno()
    code = (
        f"import signal, sys; sys.path[:] = {[str(path) for path in sys.path]!r}\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "from multiprocessing.connection import Connection\n"
        f"from {function.__module__} import {name}; {name}(Connection({handle}))"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits it
    try:
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[handle])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

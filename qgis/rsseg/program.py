"""The rsseg program: where it is, and its runs in a process of their own. Nothing of QGIS is needed here."""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import IO, Any, Protocol

WINDOWS = "rsseg runs on Linux and macOS only, not on Windows. In WSL it runs from the command line."
INSTALL = (
    "Install it from its source folder by 'uv tool install .', or set the path of an installed one under "
    "Settings > Options > Processing > Providers > rsseg."
)
FOLDERS = (
    "~/.local/bin",
    "~/.cargo/bin",
    "/opt/homebrew/bin",
    "/usr/local/bin",
)  # desktop programs have a short PATH
QGIS_ONLY = {  # set by bundles of QGIS for their own libraries
    "LD_LIBRARY_PATH", "LD_PRELOAD", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_DATA", "PROJ_LIB", "VIRTUAL_ENV",
}  # fmt: skip
SIGNALS = ((0, "SIGINT"), (20, "SIGTERM"), (40, "SIGKILL"))  # seconds after the user cancels


class ProgramError(Exception):
    """rsseg is not there, or a run of it failed; the message is for the user."""


class Feedback(Protocol):
    """The part of QgsProcessingFeedback that is used."""

    def isCanceled(self) -> bool: ...
    def setProgress(self, percent: float) -> None: ...
    def setProgressText(self, text: str) -> None: ...
    def pushInfo(self, text: str) -> None: ...
    def pushWarning(self, text: str) -> None: ...
    def pushCommandInfo(self, text: str) -> None: ...
    def pushConsoleInfo(self, text: str) -> None: ...
    def reportError(self, text: str) -> None: ...


def environment() -> dict[str, str]:
    """This process's, without what QGIS sets for its own Python and libraries."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in QGIS_ONLY and not name.startswith(("PYTHON", "DYLD_"))
    }


def find_program(path: str = "") -> str:
    """Return the program at `path`, else of PATH, of the usual folders, or of uv's tools."""
    if sys.platform == "win32":
        raise ProgramError(WINDOWS)
    if path:
        chosen = shutil.which(os.path.expanduser(path))
        if chosen is None:
            raise ProgramError(f"{path}: there is no program. {INSTALL}")
        return chosen
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(os.path.expanduser, FOLDERS)])
    found = shutil.which("rsseg", path=folders)
    uv = shutil.which("uv", path=folders)
    if found is None and uv is not None:
        asked = [uv, "tool", "dir", "--bin"]
        with suppress(OSError, subprocess.SubprocessError):
            folder = subprocess.check_output(asked, text=True, env=environment(), timeout=20).strip()
            found = shutil.which("rsseg", path=folder)
    if found is None:
        raise ProgramError(f"The rsseg program is not installed, or not found. {INSTALL}")
    return found


def run(
    program: str,
    arguments: list[str],
    feedback: Feedback,
    signals: tuple[tuple[float, str], ...] = SIGNALS,
) -> str:
    """Run a command of rsseg, and return what it prints.

    Its progress and messages go to `feedback`. When the user cancels, it is interrupted, which ends it
    cleanly, and killed where that does not help; no process stays.

    Raises:
        ProgramError: it failed or was cancelled.
    """
    command = [program, "--progress", "json", *arguments]
    feedback.pushCommandInfo(shlex.join(command))
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.PIPE, env=environment()
            )
        except OSError as err:
            raise ProgramError(f"{program}: does not start: {err.strerror}. {INSTALL}") from err
        try:
            said = _follow(process, feedback, list(signals))
        finally:
            _end(process)
        if process.returncode != 0:
            code = process.returncode
            how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
            raise ProgramError(said or f"{program}: {how}")
        printed.seek(0)
        return printed.read().decode("utf-8", "replace")


def _follow(process: subprocess.Popen[bytes], feedback: Feedback, signals: list[tuple[float, str]]) -> str:
    """Show what the program says until it ends; return its last words."""
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
    reader.start()
    log, cancelled = _Log(feedback), None
    while process.poll() is None:
        if feedback.isCanceled():
            cancelled = cancelled or time.monotonic()
            if signals and time.monotonic() >= cancelled + signals[0][0]:
                process.send_signal(getattr(signal, signals.pop(0)[1]))
        with suppress(queue.Empty):
            log.show(lines.get(timeout=0.1))
    reader.join(timeout=5)  # longer where a child of the program still holds the pipe
    while not lines.empty():
        log.show(lines.get())
    return log.last_words


def _read(stream: IO[bytes], lines: queue.Queue[str]) -> None:
    with stream:
        for line in stream:
            lines.put(line.decode("utf-8", "replace").rstrip())


class _Log:
    """Shows lines of `rsseg --progress json`."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback
        self._stage = self._error = self._last = ""

    @property
    def last_words(self) -> str:
        return self._error or self._last

    def show(self, line: str) -> None:
        event = _event(line)
        kind = event.get("event")
        if kind == "progress":
            if event["stage"] != self._stage:
                self._stage = event["stage"]
                self._feedback.setProgressText(f"{self._stage} ...")
            self._feedback.setProgress(100 * event["done"] / max(1, event["total"]))
        elif kind == "log":
            show = {"warning": self._feedback.pushWarning, "error": self._feedback.reportError}
            show.get(event["level"], self._feedback.pushInfo)(event["message"])
        elif kind == "error":
            self._error = event["message"]
        elif kind != "done":  # of a library, or of another program
            self._last = line or self._last
            self._feedback.pushConsoleInfo(line)


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind where following it failed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

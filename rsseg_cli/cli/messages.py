"""Messages on stderr: text for people or, with `--progress json`, a line of JSON each (docs/progress.md)."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from typing import Any, Literal

import typer

from rsseg_cli.errors import one_line, redact

Form = Literal["bar", "json", "off"]
EVERY_S = 0.2  # between two lines of JSON about one stage
FAILED = 1
SOME_FAILED = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Messages(logging.Handler):
    """`rsseg: MESSAGE` on stderr, with the level's name from warning upwards; the log comes here too."""

    form: Form = "bar"

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        line = f"rsseg: {level}{one_line(redact(record.getMessage()))}"
        bars = sys.modules.get("tqdm")
        if bars is None or not sys.stderr.isatty():
            self.say(line)
        else:  # above the bars, not into one
            bars.tqdm.write(line, file=sys.stderr)

    def say(self, text: str, level: str = "info") -> None:
        """Print on stderr; where nobody reads that any more, the work goes on."""
        try:
            typer.echo(text, err=True)
        except OSError:
            _leave_stderr()

    def event(self, kind: str, **values: Any) -> None:
        """Tell a program; people have bars."""

    def end(self, code: int, message: str = "") -> None:
        """Say how the program ends."""
        if message:
            self.say(f"rsseg: {message}" if code == INTERRUPTED else f"rsseg: error: {message}")


class JsonMessages(Messages):
    """Lines of JSON; where their reader has gone, the program stops as by an interrupt."""

    form = "json"

    def emit(self, record: logging.LogRecord) -> None:
        self.say(redact(record.getMessage()), record.levelname.lower())

    def say(self, text: str, level: str = "info") -> None:
        self.event("log", level=level, message=text.removeprefix("rsseg: "))

    def event(self, kind: str, **values: Any) -> None:
        line = json.dumps({"event": kind, **{key: item for key, item in values.items() if item is not None}})
        try:
            typer.echo(line, err=True)
        except OSError as err:
            _leave_stderr()
            if isinstance(err, BrokenPipeError):
                os.kill(os.getpid(), signal.SIGTERM)

    def end(self, code: int, message: str = "") -> None:
        if code == 0:
            self.event("done")
        else:
            known = {SOME_FAILED: "some scenes failed; the manifest says why"}
            self.event("error", exit_code=code, message=message or known.get(code, "failed"))


def _leave_stderr() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stderr.fileno())
    os.close(null)


def messages() -> Messages:
    """Where the log goes, and with it all that is said on stderr."""
    for handler in logging.getLogger("rsseg_cli").handlers:
        if isinstance(handler, Messages):
            return handler
    return Messages()


def start(form: Form) -> None:
    logger = logging.getLogger("rsseg_cli")
    handler = JsonMessages() if form == "json" else Messages()
    handler.form = form
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


def say(text: str, level: str = "info") -> None:
    messages().say(text, level)


class Stage:
    """Lines of JSON about a part of the work; `eta`, in seconds, goes by what was done since the first."""

    def __init__(self, name: str, scene: str | None = None, every_s: float = EVERY_S) -> None:
        self._names, self._every_s = {"stage": name, "scene": scene}, every_s
        self._first: tuple[float, float] | None = None
        self._shown = 0.0

    def show(self, done: float, total: int, words: str = "") -> None:
        now = time.monotonic()
        start, before = self._first = self._first or (now, done)
        if start < now < self._shown + self._every_s and done < total:
            return
        self._shown = now
        eta = round((now - start) / (done - before) * (total - done), 1) if done > before else None
        messages().event("progress", **self._names, done=done, total=total, eta=eta, message=words or None)

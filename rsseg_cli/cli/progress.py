"""Progress on stderr: bars where that is a terminal, lines where it is not; lines of JSON for programs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rsseg_cli.cli.messages import Stage, messages, say
from rsseg_cli.cli.tables import size_text

if TYPE_CHECKING:
    from rsseg_cli.batch import run

SCENES = (
    "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} scenes{postfix}, {elapsed} elapsed, {remaining} left"
)


def _tqdm(**settings: Any) -> Any:
    """A bar that vanishes at its end; without tqdm's thread, so that the program may end quickly."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0
    return tqdm(leave=False, **settings)


class Bar:
    """Counts what is done at a stage such as "map", in units such as "tile"; `show` is a callback."""

    def __init__(self, stage: str, unit: str, *, hidden: bool) -> None:
        self._unit, self._hidden = unit, hidden or messages().form == "off"
        self._stage = Stage(stage) if messages().form == "json" and not hidden else None
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int, words: str = "") -> None:
        if self._stage is not None:
            self._stage.show(done, total, words)
            return
        if self._bar is None:  # disable=None: no bar where stderr is no terminal
            self._bar = _tqdm(total=total, unit=self._unit, disable=True if self._hidden else None)
        if words:
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(done - self._bar.n)


class StageBars:
    """One bar after another; `show` is a callback that gets the stage."""

    def __init__(self, units: Mapping[str, str], *, hidden: bool) -> None:
        self._units, self._hidden, self._open = units, hidden, ExitStack()
        self._bars: dict[str, Bar] = {}

    def __enter__(self) -> StageBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def show(self, stage: str, done: int, total: int) -> None:
        if stage not in self._bars:
            self._open.close()
            self._bars[stage] = self._open.enter_context(Bar(stage, self._units[stage], hidden=self._hidden))
        self._bars[stage].show(done, total)


class BatchProgress:
    """Progress of a batch: a bar for its scenes and one for each that runs; elsewhere, a line a scene."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._has_bars = not hidden and sys.stderr.isatty()
        self._names: Mapping[int, str] = {}
        self._start = time.monotonic()
        self._done = self._pixels = 0
        self._shares: dict[int, float] = {}  # of the running tasks, 0 to 1
        self._total: Any = None
        self._running: dict[int, Any] = {}

    def __enter__(self) -> BatchProgress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in [*self._running.values(), *([self._total] if self._total is not None else [])]:
            bar.close()

    def on_start(self, scenes: Mapping[int, str], skipped: int) -> None:
        self._names = dict(zip(scenes, short_names(list(scenes.values())), strict=True))
        self._start = time.monotonic()
        if self._has_bars and scenes:
            self._total = _tqdm(total=len(scenes), bar_format=SCENES, desc="batch", smoothing=0)

    def on_tiles(self, task: int, done: int, total: int) -> None:
        if not self._has_bars:
            return
        if task not in self._running:
            taken = {-bar.pos for bar in self._running.values()}
            row = min(set(range(1, len(taken) + 2)) - taken)
            self._running[task] = _tqdm(total=total, unit="tile", desc=self._names[task], position=row)
        bar = self._running[task]
        bar.update(done - bar.n)
        self._shares[task] = done / max(1, total)
        self._move()

    def on_scene_end(self, task: int, report: run.SceneReport) -> None:
        self._done += 1
        self._pixels += report.details.get("pixels", 0)
        self._shares.pop(task, None)
        if task in self._running:
            self._running.pop(task).close()
        if self._has_bars:
            self._move()
            if report.error:
                self._total.write(self._line(task, report), file=sys.stderr)
        elif not self._hidden:
            say(self._line(task, report))

    def _move(self) -> None:
        if self._pixels:
            self._total.set_postfix_str(self._rate(), refresh=False)
        self._total.update(self._done + sum(self._shares.values()) - self._total.n)

    def _rate(self) -> str:
        return rate_text(self._pixels, time.monotonic() - self._start)

    def _line(self, task: int, report: run.SceneReport) -> str:
        """`[3/60] north.tif: 4.0 Mpx in 5.2 s; 0.77 Mpx/s, 5 min left`."""
        details, total = report.details, len(self._names)
        start = f"[{self._done}/{total}] {self._names[task]}"
        if report.error or report.reason:
            return f"{start}: {report.reason or f'failed: {report.error}'}"
        left = (time.monotonic() - self._start) / self._done * (total - self._done)
        remaining = f", {_duration(left)} left" if self._done < total else ""
        size = f"{size_text(details.get('pixels', 0))} in {details.get('seconds', 0):.1f} s"
        return f"{start}: {size}; {self._rate()}{remaining}"


class BatchStages:
    """Progress of a batch as lines of JSON: of all scenes, and of each that runs."""

    def on_start(self, scenes: Mapping[int, str], skipped: int) -> None:
        self._names = dict(zip(scenes, short_names(list(scenes.values())), strict=True))
        self._running = {task: Stage("map", name) for task, name in self._names.items()}
        self._scenes, self._done = Stage("scenes", every_s=0.0), 0
        self._scenes.show(0, len(scenes))

    def on_tiles(self, task: int, done: int, total: int) -> None:
        self._running[task].show(done, total)

    def on_scene_end(self, task: int, report: run.SceneReport) -> None:
        if report.error or report.reason:
            say(f"{self._names[task]}: {report.reason or report.error}", "error" if report.error else "info")
        self._done += 1
        self._scenes.show(self._done, len(self._names))


def batch_progress(*, hidden: bool) -> AbstractContextManager[run.BatchCallback]:
    if messages().form == "json" and not hidden:
        return nullcontext(BatchStages())
    return BatchProgress(hidden=hidden or messages().form == "off")


def short_names(scenes: Sequence[str]) -> list[str]:
    """Names of scenes, with folders only where they are needed to distinguish them."""
    names = [PurePath(scene).name for scene in scenes]
    if len(set(names)) == len(names):
        return names
    try:
        shared = os.path.commonpath([os.path.dirname(scene) for scene in scenes])
    except ValueError:  # paths and addresses, or several drives
        return list(scenes)
    return [scene.removeprefix(shared).lstrip(os.sep) for scene in scenes]


def rate_text(pixels: int, seconds: float) -> str:
    """`0.77 Mpx/s`, `120 Mpx/s`."""
    rate = pixels / 1e6 / max(1e-3, seconds)
    return f"{rate:.2g} Mpx/s" if rate < 10 else f"{rate:.0f} Mpx/s"


def _duration(seconds: float) -> str:
    size, unit = (1, "s") if seconds < 100 else (60, "min") if seconds < 6000 else (3600, "h")
    return f"{seconds / size:.0f} {unit}"

"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

from typing import Any


class Bar:
    """Counts what is done; `show` is a callback for the library.

    Args:
        unit: what is counted, as "tile".
        hidden: show nothing at all.
    """

    def __init__(self, unit: str, *, hidden: bool) -> None:
        self._unit = unit
        self._hidden = hidden
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            # disable=None: no bar where stderr is no terminal
            self._bar = tqdm(
                total=total, unit=self._unit, disable=True if self._hidden else None, leave=False
            )
        self._bar.update(done - self._bar.n)

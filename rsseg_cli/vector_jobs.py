"""Blocks in worker processes, results in order."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any

from rsseg_cli.errors import OutputError
from rsseg_cli.heap import keep_memory

AHEAD = 1  # results beyond those being made that may wait for their turn
_shared: Any = None


def in_order_of(
    function: Callable[..., Any], shared: Any, arguments: Iterable[tuple[Any, ...]], jobs: int
) -> Iterator[Any]:
    """Yield function(shared, *item) for each item, in order.

    Args:
        function: of a module's top level.
        arguments: taken as workers come to them.
        shared: sent once to each process.
        jobs: worker processes; with one the work is done in this process.
    """
    rest = iter(arguments)
    first = list(islice(rest, max(jobs, 1)))
    rest = chain(first, rest)
    if len(first) <= 1:
        for item in rest:
            yield function(shared, *item)
        return
    pool = ProcessPoolExecutor(len(first), mp_context=_context(), initializer=_start, initargs=(shared,))
    waiting: deque[Future[Any]] = deque()
    try:
        for item in rest:
            waiting.append(pool.submit(_run, function, item))
            if len(waiting) >= jobs + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            result = waiting.popleft().result()
            if not waiting:
                pool.shutdown()  # what the workers hold is free while the last result is used
            yield result
    except BrokenProcessPool as err:
        raise OutputError(
            "a worker process was ended from outside, perhaps for want of memory. Use --jobs 1."
        ) from err
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    """Forked workers start at once, but not from a process with threads or torch in it."""
    plain = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    return multiprocessing.get_context("fork" if plain else "spawn")


def _start(shared: Any) -> None:
    global _shared
    _shared = shared
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    return function(_shared, *item)

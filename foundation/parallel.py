"""Independent pieces of work over the cores of one machine, their results in the order of the work."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

from foundation.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # pieces per process that are handed out before the first result is taken: enough that none of them waits


def in_order(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """`map`, by that many processes. Items are drawn as they are needed, so that there may be millions of them.

    Every process computes with one thread: sums over threads may differ in the last bit, and what is written must not.
    """
    if processes < 1:
        raise InputError("the work is done by processes", got=processes, remedy="Ask for one at least.")
    if processes == 1:
        with one_thread():
            yield from map(function, items)
        return
    # Spawned, not forked: a fork of a process that holds threads may wait for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Result]] = deque()
        items = iter(items)
        try:
            waiting.extend(pool.submit(function, item) for item in islice(items, AHEAD * processes))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(items, 1))
                yield result
        except BrokenProcessPool:
            got = "one of them was killed"
            remedy = "Most often memory ran out: ask for fewer processes. The same command continues."
            raise InputError("every process lives until its work is done", got=got, remedy=remedy) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Independent pieces of work side by side: the orders of an échelle spectrum.

Does not live here: the pieces of work (`fitting`, `model.echelle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_WORKERS: ContextVar[int] = ContextVar("workers", default=1)
"""Threads on which `each` may work; those threads themselves have one."""


@contextmanager
def side_by_side(n_piece: int) -> Iterator[None]:
    """Within, `each` works on as many threads as torch may use; torch's own have one each.

    Orders in parallel use two cores to four fifths, torch's own threads within an order to little more than a half. For
    the functions that a user calls: nothing below them changes how many threads there are.

    Parameters
    ----------
    n_piece : int
        Pieces of work that there will be; for a single one nothing changes.
    """
    n_thread = torch.get_num_threads()
    if n_thread == 1 or n_piece < 2:
        yield
        return
    token = _WORKERS.set(n_thread)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_thread)
        _WORKERS.reset(token)


def each(work: Callable[[Item], Outcome], items: Iterable[Item]) -> list[Outcome]:
    """`work` of every item, side by side where `side_by_side` allows it.

    Gradient mode, which torch keeps for every thread, is the caller's.
    """
    items = list(items)
    n_thread = min(_WORKERS.get(), len(items))
    if n_thread < 2:
        return [work(item) for item in items]
    recording = torch.is_grad_enabled()

    def alike(item: Item) -> Outcome:
        with torch.set_grad_enabled(recording):
            return work(item)

    with ThreadPoolExecutor(n_thread) as pool:
        return list(pool.map(alike, items))

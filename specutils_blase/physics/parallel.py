"""Independent pieces of work side by side: the orders of an échelle spectrum.

Does not live here: the pieces of work (`fitting`, `model.echelle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Outcome = TypeVar("Item"), TypeVar("Outcome")


def each(work: Callable[[Item], Outcome], items: Iterable[Item]) -> list[Outcome]:
    """`work` of every item, on as many Python threads as torch may use, each then with one thread of torch's.

    Orders in parallel use two cores to four fifths, torch's own threads within an order to little more than a half.
    Gradient mode, which torch keeps for every thread, is the caller's.
    """
    items = list(items)
    n_thread = torch.get_num_threads()
    if n_thread == 1 or len(items) < 2:
        return [work(item) for item in items]
    recording = torch.is_grad_enabled()

    def alike(item: Item) -> Outcome:
        with torch.set_grad_enabled(recording):
            return work(item)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(n_thread, len(items))) as pool:
            return list(pool.map(alike, items))
    finally:
        torch.set_num_threads(n_thread)

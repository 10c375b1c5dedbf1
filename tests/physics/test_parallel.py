"""Pieces of work side by side: their order, their errors, and torch's settings afterwards."""

import threading

import pytest
import torch

from specutils_blase.physics.parallel import each, side_by_side


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_in_order_and_side_by_side(threads):
    with side_by_side(20):
        seen = each(lambda item: (item, threading.get_ident(), torch.get_num_threads()), range(20))
    assert [item for item, _, _ in seen] == list(range(20))
    assert {n for _, _, n in seen} == {1}
    assert (threading.get_ident() in {ident for _, ident, _ in seen}) == (threads == 1)
    assert torch.get_num_threads() == threads
    assert each(abs, []) == [] and each(abs, [-3]) == [3]


def test_nothing_changes_threads_unasked(threads):
    """Outside `side_by_side`, and within it for one piece, work stays on the caller's thread with all of torch's."""
    for n_piece in (0, 1):
        with side_by_side(n_piece):
            seen = each(lambda item: (threading.get_ident(), torch.get_num_threads()), range(4))
            assert set(seen) == {(threading.get_ident(), threads)}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("recording", [True, False])
def test_gradient_mode_is_the_callers(threads, recording):
    with torch.set_grad_enabled(recording):
        with side_by_side(4):
            assert each(lambda _: torch.is_grad_enabled(), range(4)) == [recording] * 4


def test_errors_arrive_and_settings_come_back(threads):
    def work(item):
        if item == 2:
            raise ZeroDivisionError("two")
        return item

    with pytest.raises(ZeroDivisionError, match="two"), side_by_side(4):
        each(work, range(4))
    assert torch.get_num_threads() == threads

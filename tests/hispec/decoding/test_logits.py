"""Logits over some tokens: the argmax is one of them, and all others have no probability."""

import pytest
import torch

from hispec.decoding.logits import Logits, to_host

INF = float("inf")


@pytest.mark.parametrize(
    ("values", "ids", "vocab_size", "best", "full"),
    [
        ([[1.0, 3.0, 2.0]], None, 0, [1], [[1, 3, 2]]),
        ([[1.0, 3.0, 2.0]], None, 5, [1], [[1, 3, 2, -INF, -INF]]),
        ([[1.0, 2.0, 3.0]], None, 2, [1], [[1, 2]]),
        ([[1.0, 3.0], [4.0, 3.0]], [1, 4], 5, [4, 1], [[-INF, 1, -INF, -INF, 3], [-INF, 4, -INF, -INF, 3]]),
        ([[2.0, 2.0]], [0, 3], 4, [0], [[2, -INF, -INF, 2]]),
    ],
)
def test_best_and_full(values, ids, vocab_size, best, full):
    logits = Logits(torch.tensor(values), None if ids is None else torch.tensor(ids), vocab_size)
    assert logits.argmax() == best
    assert logits.full().tolist() == full


def test_another_device_is_waited_for_once(monkeypatch):
    """Both tensors come in one copy, numbers and ids to the last bit."""
    copies, cpu = [], torch.Tensor.cpu

    class Elsewhere(torch.Tensor):
        """Pretends to be on a device."""

        @property
        def device(self):
            return torch.device("meta")

    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(1) or cpu(tensor.as_subclass(torch.Tensor)))
    numbers = torch.tensor([0.1, -torch.inf, 3.0], dtype=torch.float32)
    ids = torch.tensor([2**24 + 1, 0, 2**40 + 3])
    assert to_host(numbers.as_subclass(Elsewhere), ids) == (numbers.tolist(), ids.tolist())
    assert copies == [1]

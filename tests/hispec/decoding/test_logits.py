"""Logits over some words: the best is found among them, and the rest has no chance."""

import pytest
import torch

from hispec.decoding.logits import Logits

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
    assert logits.best() == best
    assert logits.full().tolist() == full

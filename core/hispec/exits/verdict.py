"""A verdict whether an exit is good enough to draft: the gain from its agreement, against the cost of its layers."""

MAX_DRAFTED = 16
"""Tokens in a row that are considered."""
WORTH = 1.05
"""Times the target's own speed from which drafting counts as paying."""


def best_speedup(agreement: float, exit_layer: int, num_layers: int) -> float:
    """Return how many times the target's speed an exit can reach as the draft, at its best number of drafted tokens.

    A cycle drafts k tokens, each for the exit's share c of the layers, and the target validates them in one pass. It
    yields 1 + a + ... + a^k tokens at an agreement of a (Leviathan et al., arXiv 2211.17192, theorem 3.8). Heads and
    the loop around them are free in this account, so it is an upper bound.

    Args:
        agreement: share of tokens on which exit and target agree.
        exit_layer: layers that draft.
        num_layers: the number of the target's layers.
    """
    share = exit_layer / num_layers
    return max(
        sum(agreement**power for power in range(drafted + 1)) / (1 + drafted * share)
        for drafted in range(1, MAX_DRAFTED + 1)
    )

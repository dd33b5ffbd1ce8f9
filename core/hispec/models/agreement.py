"""Random weights whose exits agree with the whole model as often as asked: real costs meet a chosen acceptance.

Every matrix keeps its size and stays dense. Only their scales change: what the layers between two exits add to the
hidden state shrinks until it changes the likeliest token at the wanted share of positions. Which positions these are
depends on how close the two best tokens are there, hence on the whole text.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log, log2

import torch
from torch import Tensor

from hispec.errors import UsageError
from hispec.models.stack import LayerStack
from hispec.precedence import check_agreement

POSITIONS = 2048
"""Positions of the texts that agreement is set on: their sampling error is some 0.015."""
LONGEST = 128
"""Positions of one such text, where the context holds as many; those of one text have something in common."""
TOLERANCE = 0.05
"""How far the agreement on other text may be from the one asked for; decoding shows what it is."""
FREQUENT = 256
"""About so many words make up most of what such a model writes."""
CHUNK = 128
"""Rows of logits at a time."""
CLOSE = 0.004
"""A share that is as close as this to the wanted one needs no further trial."""
START = 2.0**-4
"""Scale of a segment at first."""
SMALLEST, LARGEST = -16.0, 4.0
"""Of the binary logarithm of scales."""
STEPS = 16
"""The most trials for one exit."""


@torch.inference_mode()
def set_agreement(
    stack: LayerStack, parts: Mapping[str, Tensor], exits: Sequence[int], agreement: Sequence[float]
) -> list[float]:
    """Scale random weights in place until exits name the whole model's likeliest token as often as asked.

    The head's rows are scaled too, so that the words that are ever likeliest are about as unequally distributed as
    those of a language: word t comes about as often as Zipf's law has it, in the order of ids, and reduced heads have
    something to leave out.

    Args:
        stack: of random weights.
        parts: its weights by their names in a checkpoint.
        exits: ascending, without the last layer.
        agreement: for each exit, the share of positions.

    Returns:
        The shares that were reached, on texts that were not used to set them.

    Raises:
        UsageError: see `hispec.precedence.check_agreement`; shares that this model cannot have.
    """
    check_agreement(agreement, exits)
    _flatten_head(parts)
    length = min(LONGEST, stack.context)
    stack.reserve(length)
    texts = _texts(2 * -(-POSITIONS // length), length, stack.vocab_size)
    half = len(texts) // 2
    segments = _Segments(stack, parts, exits)
    for at in range(len(exits)):  # near what comes out: a large segment would make those after it look small
        segments.scale(at, START)
    for _ in range(2):  # a shallower segment changes what a deeper one adds to, a little
        for at in reversed(range(len(exits))):
            segments.tune(at, agreement[at], texts[:half])
    reached = segments.agreements(texts[half:])
    for share, wanted in zip(reached, agreement, strict=True):
        if abs(share - wanted) > TOLERANCE:
            raise UsageError(
                f"the exits of {stack.name} agree with it on {share:.2f} of the positions, not on {wanted:g}",
                "choose a share closer to that, or a wider model",
            )
    return reached


class _Segments:
    """The layers between neighbouring exits, and the scales of what they add."""

    def __init__(self, stack: LayerStack, parts: Mapping[str, Tensor], exits: Sequence[int]) -> None:
        self._stack = stack
        self._ends = [*exits, stack.num_layers]
        self._branches: list[list[Tensor]] = [[] for _ in exits]
        for name, part in parts.items():
            if name.endswith(("o_proj.weight", "o_proj.bias", "down_proj.weight", "down_proj.bias")):
                layer = int(name.removeprefix("model.layers.").split(".")[0])
                above = sum(layer >= exit_layer for exit_layer in exits)
                if above:
                    self._branches[above - 1].append(part)
        self._scales = [1.0] * len(exits)

    def scale(self, at: int, to: float) -> None:
        """Let the layers after exit `at` add `to` times what they were drawn to add."""
        for part in self._branches[at]:
            part.mul_(to / self._scales[at])
        self._scales[at] = to

    def tune(self, at: int, wanted: float, texts: Sequence[Tensor]) -> None:
        """Find the scale after exit `at` at which it agrees with the last layer on the wanted share of positions."""
        exit_layer = self._ends[at]
        states = [self._run(self._stack.embed(text.tolist()), 0, exit_layer) for text in texts]
        guesses = [self._best(state) for state in states]

        def excess(log_scale: float) -> float:
            self.scale(at, 2.0**log_scale)
            same = [
                self._best(self._run(state, exit_layer, self._ends[-1])) == guess
                for state, guess in zip(states, guesses, strict=True)
            ]
            return _share(same) - wanted

        self.scale(at, 2.0 ** _root(excess, log2(self._scales[at])))

    def agreements(self, texts: Sequence[Tensor]) -> list[float]:
        """For each exit, the share of positions at which it and the last layer have the same likeliest token."""
        same: list[list[Tensor]] = [[] for _ in self._branches]
        for text in texts:
            hidden, begin, best = self._stack.embed(text.tolist()), 0, []
            for end in self._ends:
                hidden, begin = self._run(hidden, begin, end), end
                best.append(self._best(hidden))
            for at, own in enumerate(best[:-1]):
                same[at].append(own == best[-1])
        return [_share(tensors) for tensors in same]

    def _run(self, hidden: Tensor, begin: int, end: int) -> Tensor:
        return self._stack.run(hidden, begin, end, 0)

    def _best(self, hidden: Tensor) -> Tensor:
        """The likeliest token of each row."""
        return torch.cat([self._stack.head(hidden[at : at + CHUNK]).argmax(-1) for at in range(0, len(hidden), CHUNK)])


def _root(excess: Callable[[float], float], start: float) -> float:
    """Where a falling function is about 0: steps that double until its sign changes, then interpolation."""
    at, step = start, 0.25
    below: tuple[float, float] | None = None
    beyond: tuple[float, float] | None = None
    for _ in range(STEPS):
        value = excess(at)
        if abs(value) < CLOSE:
            break
        if value > 0:
            below = at, value
        else:
            beyond = at, value
        if below is None or beyond is None:
            if at in (SMALLEST, LARGEST):
                break
            at = min(LARGEST, max(SMALLEST, at + (step if value > 0 else -step)))
            step *= 2
        else:
            (low, over), (high, under) = below, beyond
            at = low + (high - low) * over / (over - under)
    return at


def _flatten_head(parts: Mapping[str, Tensor]) -> None:
    """Scale the head's rows so that word t is likeliest about (1 + t / FREQUENT) ** -2 times as often as the first.

    Logits are about normal. A row with deviation s exceeds m, about what the likeliest token has, at odds that fall as
    exp(-m^2 / 2 s^2): hence s = (1 + 4 ln(1 + t / FREQUENT) / m^2) ** -1/2, with m the largest of FREQUENT draws.
    """
    head = parts.get("lm_head.weight", parts["model.embed_tokens.weight"])
    ranks = torch.arange(len(head), device=head.device)
    largest_squared = 2 * log(FREQUENT)
    head.mul_((1 + 4 * torch.log1p(ranks / FREQUENT) / largest_squared).rsqrt().to(head.dtype)[:, None])


def _texts(count: int, length: int, words: int) -> list[Tensor]:
    """Texts of random words, distributed as such a model writes them: [length] each."""
    dice = torch.Generator().manual_seed(0)
    weights = (1 + torch.arange(words) / FREQUENT) ** -2
    return list(torch.multinomial(weights, count * length, replacement=True, generator=dice).view(count, length))


def _share(same: Sequence[Tensor]) -> float:
    return torch.cat(list(same)).float().mean().item()

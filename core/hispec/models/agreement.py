"""Random weights whose exits and copies agree with the whole model at a chosen rate: real costs with chosen acceptance.

Every matrix keeps its size and stays dense.

- For exits, only scales change. The contribution of the layers between two exits to the hidden state is scaled down until
  it changes the argmax token at the wanted share of positions.
- For a quantized copy, the weights are moved towards numbers that the copy can represent, until it agrees often enough.
- If no exit determines the scale of the layers, all layers together contribute about as much as the first one. With the
  scale that they are drawn with, rounding errors would decide the output of a deep model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import log, log2, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.models.dtypes import GROUP, heads_in_8_bits
from hispec.models.quantized import TINY, rounded
from hispec.models.stack import LayerStack
from hispec.precedence import Agreement
from hispec.settings import Quantization

POSITIONS = 2048
"""Positions of the texts that agreement is set on: their sampling error is some 0.015."""
LONGEST = 128
"""The largest number of positions of one text: positions of different texts are more independent."""
TOLERANCE = 0.05
"""The accepted difference between the agreement on other text and the requested one; decoding reports the actual
one.
"""
FREQUENT = 256
"""The number of token ids that make up most of such a model's text."""
CHUNK = 128
"""The number of rows of logits that are computed at a time."""
ROUGHLY = 4
"""Agreement is first set on one of so many texts, then on all."""
COPY_TOLERANCE = 0.015
"""The tolerance of copies, which rarely disagree."""
PIECE = 1 << 20
"""The number of weights that are rounded together: few enough for a processor's cache, which takes a fifth of the time."""
CLOSE = 0.5
"""The distance from the wanted share, in standard errors, at which no further trial is needed."""
START = 2.0**-4
"""The first scale that is tried for a segment."""
SMALLEST, LARGEST = -16.0, 4.0
"""The bounds of the search, in the binary logarithm of scales."""
STEPS, COPY_STEPS = 16, 6
"""The maximum number of trials for one exit, and for one copy."""


@torch.inference_mode()
def set_agreement(stack: LayerStack, parts: Mapping[str, Tensor], wanted: Agreement) -> Agreement:
    """Change random weights in place until exits and copies predict the whole model's argmax token as often as asked.

    The head's rows are scaled too, so that the frequencies of argmax tokens follow Zipf's law, as in a language: reduced
    heads need frequent tokens.

    Args:
        stack: a stack of random weights.
        parts: its weights by their names in a checkpoint.
        wanted: the shares of positions at which exits and copies shall agree.

    Returns:
        The shares that were reached, on texts that were not used to set them.

    Raises:
        UsageError: exits, copies or shares that this model cannot have.
    """
    exits, shares = list(wanted.exits), list(wanted.exits.values())
    if exits and exits[-1] >= stack.num_layers:
        raise UsageError(
            f"--dummy-agreement names exit {exits[-1]}, and {stack.name} has {counted(stack.num_layers, 'layer')}",
            f"name exits from 1 to {stack.num_layers - 1}",
        )
    if wanted.copies and stack.kind != "fused":
        raise UsageError(
            f"--dummy-agreement names {next(iter(wanted.copies))}, and {stack.name} has no copies on this stack",
            "leave it out, or what keeps the model from the fused stack",
        )
    _flatten_head(parts)
    length = min(LONGEST, stack.context)
    stack.reserve(length)
    texts = _texts(2 * -(-POSITIONS // length), length, stack.vocab_size)
    half = len(texts) // 2
    segments = _Segments(stack, parts, exits)
    for at in range(len(exits)):  # near what comes out: a large segment would make those after it look small
        segments.scale(at, START)
    if not exits:
        _Segments(stack, parts, [1]).scale(0, stack.num_layers**-0.5)
    copies = _Copies(stack, parts)
    for part in (
        max(1, half // ROUGHLY),
        half,
    ):  # twice: a shallower segment changes what a deeper one adds to, and so do copies
        for at in reversed(range(len(exits))):
            segments.tune(at, shares[at], texts[:part])
        for quantization, share in wanted.copies.items():
            copies.tune(quantization, share, texts[:part])
    reached = Agreement(
        dict(zip(exits, segments.agreements(texts[half:]), strict=True)),
        {quantization: copies.agreement(quantization, texts[half:]) for quantization in wanted.copies},
    )
    for exit_layer, share in reached.exits.items():
        _check("exits", stack.name, share, wanted.exits[exit_layer], TOLERANCE)
    for quantization, share in reached.copies.items():
        _check(f"{quantization} copy", stack.name, share, wanted.copies[quantization], COPY_TOLERANCE)
    return reached


def _check(what: str, model: str, share: float, wanted: float, tolerance: float) -> None:
    if abs(share - wanted) > tolerance:
        verb = "agree" if what == "exits" else "agrees"
        digits = 2 if what == "exits" else 3
        raise UsageError(
            f"the {what} of {model} {verb} with it on {share:.{digits}f} of the positions, not on {wanted:g}",
            "choose a share closer to that, or a wider model",
        )


class _Segments:
    """The layers between neighbouring exits, and the scales of their contributions."""

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
        """Scale the contribution of the layers after exit `at` to `to` times its original size."""
        for part in self._branches[at]:
            part.mul_(to / self._scales[at])
        self._scales[at] = to

    def tune(self, at: int, wanted: float, texts: Sequence[Tensor]) -> None:
        """Find the scale after exit `at` at which it agrees with the last layer on the wanted share of positions."""
        exit_layer = self._ends[at]
        states = [self._run(self._stack.embed(text.tolist()), 0, exit_layer) for text in texts]
        full = [self._argmax(state) for state in states]

        def excess(log_scale: float) -> float:
            self.scale(at, 2.0**log_scale)
            same = [
                self._argmax(self._run(state, exit_layer, self._ends[-1])) == whole
                for state, whole in zip(states, full, strict=True)
            ]
            return _share(same) - wanted

        self.scale(at, 2.0 ** _root(excess, log2(self._scales[at]), _close(wanted, texts)))

    def agreements(self, texts: Sequence[Tensor]) -> list[float]:
        """Return for each exit the share of positions at which it and the last layer have the same argmax."""
        same: list[list[Tensor]] = [[] for _ in self._branches]
        for text in texts:
            hidden, begin, best = self._stack.embed(text.tolist()), 0, []
            for end in self._ends:
                hidden, begin = self._run(hidden, begin, end), end
                best.append(self._argmax(hidden))
            for at, own in enumerate(best[:-1]):
                same[at].append(own == best[-1])
        return [_share(tensors) for tensors in same]

    def _run(self, hidden: Tensor, begin: int, end: int) -> Tensor:
        return self._stack.run(hidden, begin, end, 0)

    def _argmax(self, hidden: Tensor) -> Tensor:
        return _argmax(self._stack, hidden)


class _Copies:
    """The quantized copies of the layers, and perhaps of the head, that the full weights would give.

    A copy is evaluated by replacing one full layer after the other by its quantized values.
    """

    def __init__(self, stack: LayerStack, parts: Mapping[str, Tensor]) -> None:
        self._stack = stack
        self._layers: list[list[Tensor]] = [[] for _ in range(stack.num_layers)]
        for name, part in parts.items():
            if name.startswith("model.layers.") and part.dim() == 2:
                self._layers[int(name.split(".")[2])].append(part)
        self._head = [_head_of(parts)] if heads_in_8_bits(stack.device.type) else []

    def tune(self, quantization: Quantization, wanted: float, texts: Sequence[Tensor]) -> None:
        """Move the weights towards values that a copy can represent until it agrees on the wanted share.

        The share of disagreement grows less than in proportion to their distance from such values.
        """
        distance, share = 1.0, self.agreement(quantization, texts)
        for _ in range(COPY_STEPS):
            to = min(1.0, distance * ((1 - wanted) / max(1 - share, TINY)) ** 1.5)
            if to == distance or abs(share - wanted) < _close(wanted, texts):
                break
            self._move(quantization, to / distance)
            distance, share = to, self.agreement(quantization, texts)

    def agreement(self, quantization: Quantization, texts: Sequence[Tensor]) -> float:
        """Return the share of positions at which a copy and the full weights have the same most probable token."""
        begun = [self._stack.embed(text.tolist()) for text in texts]
        own = [_argmax(self._stack, self._stack.run(states, 0, self._stack.num_layers, 0)) for states in begun]
        states = begun
        for layer, parts in enumerate(self._layers):
            with _in_place(parts, quantization):
                states = [self._stack.run(each, layer, layer + 1, 0) for each in states]
        with _in_place(self._head, "int8"):
            return _share([_argmax(self._stack, each) == best for each, best in zip(states, own, strict=True)])

    def _move(self, quantization: Quantization, to: float) -> None:
        """Scale the distance of each weight from a number that the copy can represent."""
        for part in chain.from_iterable(self._layers):
            for piece in _pieces(part):
                held = _holdable(piece) if quantization == "int4" else rounded(piece, quantization)
                piece.copy_(held + to * (piece - held))


@contextmanager
def _in_place(parts: Sequence[Tensor], quantization: Quantization) -> Iterator[None]:
    """Replace matrices by the values of their quantized copies within the context."""
    kept = [part.clone() for part in parts]
    for part in parts:
        for piece in _pieces(part):
            piece.copy_(rounded(piece, quantization))
    yield
    for part, own in zip(parts, kept, strict=True):
        part.copy_(own)


def _holdable(weights: Tensor) -> Tensor:
    """Return numbers near some weights [out, in] that a 4-bit copy of them represents exactly, float32.

    They are multiples of a scale of 4 significant bits, which bfloat16 represents exactly too. The least and the largest
    weight of each group become the least and the largest of its 16 numbers, so that the copy finds the same grid.
    """
    outputs, inputs = weights.shape
    groups = F.pad(weights.float(), (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    steps = ((high - low) / 15).clamp_(min=TINY)
    units = torch.exp2(steps.log2().floor_() - 3)
    scales = (steps / units).round_().mul_(units)
    least = (low / scales).round_()
    codes = (groups / scales).round_().clamp_(least, least + 15)
    codes.scatter_(-1, groups.argmin(-1, keepdim=True), least)
    codes.scatter_(-1, groups.argmax(-1, keepdim=True), least + 15)
    return codes.mul_(scales).flatten(1)[:, :inputs]


def _pieces(part: Tensor) -> Iterable[Tensor]:
    return torch.split(part, max(1, PIECE // part.shape[1]))


def _argmax(stack: LayerStack, hidden: Tensor) -> Tensor:
    """Return the most probable token of each row."""
    return torch.cat([stack.head(hidden[at : at + CHUNK]).argmax(-1) for at in range(0, len(hidden), CHUNK)])


def _root(excess: Callable[[float], float], start: float, close: float) -> float:
    """Return an approximate zero of a falling function: by doubling steps until its sign changes, then by interpolation."""
    at, step = start, 0.25
    below: tuple[float, float] | None = None
    beyond: tuple[float, float] | None = None
    for _ in range(STEPS):
        value = excess(at)
        if abs(value) < close:
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
    """Scale the head's rows so that token id t is the argmax about (1 + t / FREQUENT) ** -2 times as often as the first.

    Logits are about normal. A logit of standard deviation s exceeds m, the typical largest logit, with a probability that
    falls as exp(-m^2 / 2 s^2). Hence s = (1 + 4 ln(1 + t / FREQUENT) / m^2) ** -1/2, with m the largest of FREQUENT draws.
    """
    head = _head_of(parts)
    ranks = torch.arange(len(head), device=head.device)
    largest_squared = 2 * log(FREQUENT)
    head.mul_((1 + 4 * torch.log1p(ranks / FREQUENT) / largest_squared).rsqrt().to(head.dtype)[:, None])


def _head_of(parts: Mapping[str, Tensor]) -> Tensor:
    return parts.get("lm_head.weight", parts["model.embed_tokens.weight"])


def _texts(count: int, length: int, vocab_size: int) -> list[Tensor]:
    """Return texts of random token ids with the frequencies of such a model's text: [length] each."""
    rng = torch.Generator().manual_seed(0)
    weights = (1 + torch.arange(vocab_size) / FREQUENT) ** -2
    return list(torch.multinomial(weights, count * length, replacement=True, generator=rng).view(count, length))


def _close(wanted: float, texts: Sequence[Tensor]) -> float:
    """Return the accepted distance from the wanted share, given the number of positions."""
    return CLOSE * sqrt(wanted * (1 - wanted) / sum(len(text) for text in texts))


def _share(same: Sequence[Tensor]) -> float:
    return torch.cat(list(same)).float().mean().item()

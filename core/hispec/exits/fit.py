"""Fits translators: exits learn to predict the distribution of the model's last layer (arXiv 2303.08112, section 3).

The model is not touched. A row of text is run through it once, span by span; its hidden states at the exits and its
final distribution are used at once and forgotten, so memory holds one row however long the text is. The loss is the
Kullback-Leibler divergence of an exit's distribution from the final one, KL(final || exit), in nats per token.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.budget import Budget
from hispec.errors import UnavailableError
from hispec.models.transformers_stack import TransformersStack
from hispec.models.translator import Translator

LOOK_SHARE = 0.1
"""The share of the remaining time that the first evaluation may take."""

RATE = 0.5
"""The learning rate times the hidden size: a step of Adam changes the result for a row in proportion to its width."""

UPDATE_COST = 3
"""The approximate time of an update of a row, in evaluations of a row."""

WARM_UP = 10


@dataclass(frozen=True)
class FitSettings:
    """The options of a fit.

    Attributes:
        steps: the most updates; the learning rate falls linearly to 0 over them, or over the time if that ends sooner.
        batch_rows: rows of text in an update.
        evaluate_every: the number of updates between two evaluations on the held-out text.
        patience: looks without an improvement of any exit before it is given up.
        learning_rate: peak of AdamW's; None is `RATE` over the hidden size.
        seed: decides the order of the rows.
    """

    steps: int = 250
    batch_rows: int = 8
    evaluate_every: int = 25
    patience: int = 3
    learning_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Quality:
    """The agreement of an exit with the whole model on some text.

    Attributes:
        kl: KL(final || exit), nats per token.
        agreement: share of the positions where both have the same most probable token.
    """

    kl: float
    agreement: float


@dataclass
class Fit:
    """The result of a fit so far; it is complete after every evaluation on the held-out text.

    Attributes:
        before: quality of the plain exits on held-out text; empty until the first look is over.
        after: the best quality seen, by exit.
        translators: those that reached it, float32.
        looks_at: rows of held-out text that a look takes in: as many as there is time for.
        looked: rows that the look under way has taken in, None where there is none under way.
        least: the approximate seconds that the smallest effort with a result still takes; known from the first row on.
        step: updates so far.
        seconds: time spent.
        ended: the reason for the end: steps, budget, no improvement or interrupted; None while the fit runs.
    """

    before: dict[int, Quality] = field(default_factory=dict)
    after: dict[int, Quality] = field(default_factory=dict)
    translators: dict[int, Translator] = field(default_factory=dict)
    looks_at: int = 0
    looked: int | None = None
    least: float = 0.0
    step: int = 0
    seconds: float = 0.0
    ended: str | None = None
    losses: dict[int, float] = field(default_factory=dict)
    """KL of the last update's own rows, by exit."""

    def share_of(self, budget: Budget) -> float:
        """Return the share of the fit's time in a budget that is over; 0 without a limit."""
        left = max(0.0, budget.left)
        return 0.0 if math.isinf(left) or not self.seconds else self.seconds / (self.seconds + left)


def fit_exits(
    stack: TransformersStack,
    exits: Sequence[int],
    rows: Tensor,
    held_out: Tensor,
    settings: FitSettings,
    see: Callable[[Fit], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
    budget: Budget | None = None,
) -> Fit:
    """Fit one translator for each exit, and keep the version of each that did best on the held-out text.

    Args:
        stack: the model; nothing of it is changed.
        exits: ascending, below the whole depth.
        rows: text, [rows, tokens].
        held_out: other text, likewise.
        settings: the options of the fit.
        see: called after every update, and after every row of an evaluation.
        interrupted: whether to end after the row under way; asked after each.
        budget: the time budget of the command. Even if it is spent, there is an update of one row, and two evaluations
            on one.

    Returns:
        The finished fit. An exit that nothing improved keeps the identity.

    Raises:
        KeyboardInterrupt: interrupted before there was anything to keep.
        UnavailableError: no memory for it, or a loss that is not a number.
    """
    budget = budget or Budget()
    began = time.monotonic()
    hidden_size = stack.model.config.hidden_size
    stack.reserve(rows.shape[1])
    for parameter in stack.model.parameters():
        parameter.requires_grad_(False)
    fitted = {exit_: _Fitted(hidden_size, stack.device) for exit_ in exits}
    optimizer = torch.optim.AdamW([part for one in fitted.values() for part in one.parts], weight_decay=0.0)
    peak = settings.learning_rate or RATE / hidden_size
    order, idle = _endless(len(rows), settings.seed), 0
    fit = Fit(looks_at=len(held_out))
    try:
        fit.before = _first_look(stack, fitted, held_out, fit, see, interrupted, budget)
        _guard(fit.before)
        held_out, a_look = held_out[: fit.looks_at], time.monotonic() - began
        fit.after, fit.translators = dict(fit.before), {exit_: one.copy() for exit_, one in fitted.items()}

        def out_of_time() -> bool:
            return budget.left <= a_look  # the last look needs that much

        while fit.ended is None:
            for group in optimizer.param_groups:
                group["lr"] = peak * min((fit.step + 1) / WARM_UP, 1.0) * (1 - _share_done(fit, settings, budget))
            batch = [rows[next(order)] for _ in range(settings.batch_rows)]
            fit.losses = _update(stack, fitted, batch, lambda: interrupted() or out_of_time())
            for one in fitted.values():  # apart: the exits are independent of one another
                torch.nn.utils.clip_grad_norm_(one.parts, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            fit.step, fit.seconds = fit.step + 1, time.monotonic() - began
            see(fit)
            end = _reason_to_end(fit, settings, interrupted(), out_of_time())
            if end is not None or fit.step % settings.evaluate_every == 0:
                found = _evaluate(stack, fitted, held_out, lambda looked: _tell(fit, looked, see))
                idle = 0 if _keep_better(fit, fitted, found) else idle + 1
                fit.looked, fit.seconds = None, time.monotonic() - began
                idle_too_long = "no improvement" if idle >= settings.patience else None
                fit.ended = "interrupted" if interrupted() else end or idle_too_long
        see(fit)
    except torch.OutOfMemoryError:
        raise UnavailableError(
            f"not enough memory to fit exits of {stack.name}", "lower --row-tokens, or choose a smaller --dtype"
        ) from None
    return fit


def _first_look(
    stack: TransformersStack,
    fitted: Mapping[int, "_Fitted"],
    held_out: Tensor,
    fit: Fit,
    see: Callable[[Fit], None],
    interrupted: Callable[[], bool],
    budget: Budget,
) -> dict[int, Quality]:
    """Evaluate the plain exits on as much of the held-out text as the budget allows, at least one row."""
    began, max_seconds = time.monotonic(), LOOK_SHARE * budget.left

    def goes_on(looked: int) -> bool:
        if interrupted():
            raise KeyboardInterrupt
        taken = time.monotonic() - began
        if looked == 1:
            fit.least = UPDATE_COST * taken + taken
        if looked and taken / looked * (looked + 1) > max_seconds:
            fit.looks_at = looked
        _tell(fit, looked, see)
        return looked < fit.looks_at

    goes_on(0)
    qualities = _evaluate(stack, fitted, held_out, goes_on)
    fit.looked = None
    return qualities


def _tell(fit: Fit, looked: int, see: Callable[[Fit], None]) -> bool:
    fit.looked = looked
    see(fit)
    return True


def _reason_to_end(fit: Fit, settings: FitSettings, interrupted: bool, out_of_time: bool) -> str | None:
    if interrupted:
        return "interrupted"
    if fit.step == settings.steps:
        return "steps"
    return "budget" if out_of_time else None


class _Fitted:
    """One exit's translator while it is fitted, in float32."""

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        self.weight = torch.zeros(hidden_size, hidden_size, device=device, requires_grad=True)
        self.bias = torch.zeros(hidden_size, device=device, requires_grad=True)

    @property
    def parts(self) -> list[Tensor]:
        return [self.weight, self.bias]

    def logits(self, stack: TransformersStack, hidden: Tensor) -> Tensor:
        """Return logits [n, vocab] in float32 of states [n, hidden], differentiable with regard to the translator."""
        states = hidden.float()
        translated = torch.addmm(states, states, self.weight) + self.bias
        return stack.logits(translated.to(hidden.dtype)).float()

    def copy(self) -> Translator:
        return Translator(self.weight.detach().clone(), self.bias.detach().clone())


def _run(stack: TransformersStack, row: Tensor, exits: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
    """Return a row's hidden states at each exit, and the final log-probabilities [tokens, vocab] in float32."""
    hidden, layer = stack.embed(row.tolist()), 0
    states = {}
    for exit_ in [*exits, stack.num_layers]:
        hidden, layer = stack.run(hidden, layer, exit_, 0), exit_
        states[exit_] = hidden.clone()  # a clone of a tensor made in inference mode may be used in training
    final = stack.head(states.pop(stack.num_layers)).clone().float()
    return states, final.log_softmax(-1)


def _update(
    stack: TransformersStack, fitted: Mapping[int, _Fitted], batch: Sequence[Tensor], ends: Callable[[], bool]
) -> dict[int, float]:
    """Add up the gradients of a batch, of its first rows where it `ends` after one; returns the KL by exit."""
    tokens = sum(len(row) for row in batch)
    total, done = dict.fromkeys(fitted, 0.0), 0
    for row in batch:
        states, final = _run(stack, row, list(fitted))
        for exit_, one in fitted.items():
            logits = one.logits(stack, states[exit_]).log_softmax(-1)
            loss = F.kl_div(logits, final, log_target=True, reduction="sum") / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total[exit_] += loss.item()
        done += len(row)
        if ends():
            break
    _guard({exit_: Quality(kl, 0.0) for exit_, kl in total.items()})
    return {exit_: kl * tokens / done for exit_, kl in total.items()}


@torch.no_grad()
def _evaluate(
    stack: TransformersStack, fitted: Mapping[int, _Fitted], held_out: Tensor, goes_on: Callable[[int], bool]
) -> dict[int, Quality]:
    """Return the quality of every exit on the held-out text; `goes_on` is called with the number of rows after each."""
    kl, agreed = dict.fromkeys(fitted, 0.0), dict.fromkeys(fitted, 0)
    count = 0
    for number, row in enumerate(held_out, start=1):
        states, final = _run(stack, row, list(fitted))
        best = final.argmax(-1)
        for exit_, one in fitted.items():
            logits = one.logits(stack, states[exit_]).log_softmax(-1)
            kl[exit_] += float(F.kl_div(logits, final, log_target=True, reduction="sum"))
            agreed[exit_] += int((logits.argmax(-1) == best).sum())
        count += len(row)
        if not goes_on(number):
            break
    return {exit_: Quality(kl[exit_] / count, agreed[exit_] / count) for exit_ in fitted}


def _keep_better(fit: Fit, fitted: Mapping[int, _Fitted], qualities: Mapping[int, Quality]) -> bool:
    """Keep the translators that are better than before, and return whether any is."""
    better = [exit_ for exit_, quality in qualities.items() if quality.kl < fit.after[exit_].kl]
    for exit_ in better:
        fit.after[exit_], fit.translators[exit_] = qualities[exit_], fitted[exit_].copy()
    return bool(better)


def _guard(qualities: Mapping[int, Quality]) -> None:
    """Raise if a loss is not a finite number."""
    for exit_, quality in qualities.items():
        if not math.isfinite(quality.kl):
            raise UnavailableError(
                f"the divergence of exit {exit_} is not a number: its states leave the range of the dtype",
                "use --dtype bfloat16 or float32",
            )


def _share_done(fit: Fit, settings: FitSettings, budget: Budget) -> float:
    """Return how much of the fit is over, by updates or by time."""
    return max(fit.step / settings.steps, fit.share_of(budget))


def _endless(count: int, seed: int) -> Iterator[int]:
    """Return numbers below `count` in random order, all of them before any comes again."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=rng).tolist()

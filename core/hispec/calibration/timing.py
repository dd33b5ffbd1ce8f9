"""Timed decoding of the configurations that replay liked best, interleaved prompt by prompt."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Protocol
from zlib import crc32

import numpy as np

from hispec.bench.processes import Processes
from hispec.bench.statistics import interval95, resampled_sums
from hispec.calibration.search import Configuration, HierarchyBuilder
from hispec.decoding.decoder import Decoder
from hispec.policies.base import Policy
from hispec.step_timing import synchronize

RESAMPLES = 2000


@dataclass(frozen=True)
class TimedAnswer:
    """One answer.

    Attributes:
        configuration: the index of its configuration among those that are timed.
        prompt: the index of its prompt.
        repeat: the number of earlier answers to the prompt.
        tokens: the number of tokens in the answer.
        seconds: the time from ids to the last id, the prompt included.
        digest: the digest of the token ids.
    """

    configuration: int
    prompt: int
    repeat: int
    tokens: int
    seconds: float
    digest: int


class Policies(Protocol):
    """A factory of policies for configurations."""

    def policy(self, configuration: Configuration) -> Callable[[], Policy]:
        """Return a maker of fresh policies."""
        ...


@dataclass
class Timer:
    """Answers prompts with configurations.

    Attributes:
        builder: makes the hierarchies of configurations.
        policies: the factory of policies.
        eos_ids: the token ids that end answers.
        max_new_tokens: tokens of an answer.
        context: the context length of the target.
    """

    builder: HierarchyBuilder
    policies: Policies
    eos_ids: Collection[int]
    max_new_tokens: int
    context: int

    def answer(self, configuration: Configuration, prompt: Sequence[int]) -> tuple[list[int], float]:
        """Return one answer: (token ids, seconds)."""
        decoder = Decoder(
            self.builder.hierarchy(configuration), self.policies.policy(configuration), eos_ids=self.eos_ids
        )
        device = decoder.hierarchy.stack_of(-1).device
        synchronize(device)
        begin = perf_counter()
        ids = decoder.token_ids(prompt, min(self.max_new_tokens, self.context - len(prompt)))
        synchronize(device)
        return ids, perf_counter() - begin


@dataclass(frozen=True)
class Speed:
    """Pooled tokens per second of a configuration.

    Attributes:
        value: over all its answers.
        ci95: over prompts and repeats; None with fewer than two prompts.
    """

    value: float
    ci95: tuple[float, float] | None


@dataclass
class Timings:
    """Answers of several configurations to the same prompts.

    Attributes:
        configurations: the configurations that are timed.
        answers: so far.
    """

    configurations: list[Configuration]
    answers: list[TimedAnswer] = field(default_factory=list)

    def speed(self, configuration: int) -> Speed:
        """Return the tokens per second of one of the configurations."""
        own = self._table([configuration])
        sums = own.sum(axis=(0, 1))
        if len(own) < 2:
            return Speed(float(sums[0] / sums[1]), None)
        drawn = resampled_sums(own, RESAMPLES)
        return Speed(float(sums[0] / sums[1]), interval95(drawn[:, 0] / drawn[:, 1]))

    def ratio(self, one: int, other: int) -> Speed:
        """Return how many times as fast one is as the other, on the answers that both have."""
        if one == other:
            return Speed(1.0, (1.0, 1.0))
        both = self._table([one, other])
        sums = both.sum(axis=(0, 1))
        value = float(sums[0] * sums[3] / sums[1] / sums[2])
        if len(both) < 2:
            return Speed(value, None)
        drawn = resampled_sums(both, RESAMPLES)
        return Speed(value, interval95(drawn[:, 0] * drawn[:, 3] / drawn[:, 1] / drawn[:, 2]))

    def fastest(self, among: Iterable[int]) -> list[int]:
        """Return the configurations, the fastest first."""
        return sorted(among, key=lambda configuration: -self.speed(configuration).value)

    def ties(self, best: int, among: Iterable[int]) -> list[int]:
        """Return the configurations that may be as fast as the best: the interval of the ratio contains 1."""
        return [other for other in among if other != best and self.may_be_as_fast(other, best)]

    def may_be_as_fast(self, one: int, other: int) -> bool:
        """Return whether the interval of the ratio reaches 1; True where there is no interval yet."""
        ci95 = self.ratio(one, other).ci95
        return ci95 is None or ci95[1] >= 1

    def differing(self) -> int:
        """Return the prompts with differing answers, which only ties of the target's logits may cause."""
        digests: dict[int, set[int]] = {}
        for answer in self.answers:
            digests.setdefault(answer.prompt, set()).add(answer.digest)
        return sum(len(found) > 1 for found in digests.values())

    def _table(self, configurations: Sequence[int]) -> "np.ndarray[tuple[int, int, int], np.dtype[np.float64]]":
        """Return (prompts, repeats, tokens and seconds of each) of the answers that all of them have."""
        found: dict[tuple[int, int], dict[int, TimedAnswer]] = {}
        for answer in self.answers:
            if answer.configuration in configurations:
                found.setdefault((answer.prompt, answer.repeat), {})[answer.configuration] = answer
        shared = {key: answers for key, answers in found.items() if len(answers) == len(configurations)}
        prompts, repeats = (sorted({key[place] for key in shared}) for place in (0, 1))
        table = np.zeros((len(prompts), len(repeats), 2 * len(configurations)))
        for (prompt, repeat), answers in shared.items():
            row = [figure for one in configurations for figure in (answers[one].tokens, answers[one].seconds)]
            table[prompts.index(prompt), repeats.index(repeat)] = row
        # Repeats that not every prompt has cannot be resampled.
        return table if len(shared) == len(prompts) * len(repeats) else table.sum(axis=1, keepdims=True)


def halving(
    timer: Timer,
    timings: Timings,
    prompts: Sequence[Sequence[int]],
    keep: Sequence[int],
    each: int,
    rng: Random,
    out_of_time: Callable[[], bool],
    done: Callable[[TimedAnswer], None] = lambda answer: None,
    processes: Processes | None = None,
) -> Iterator[list[int]]:
    """Time all configurations on some prompts, drop the slower half, and so on; yield the rest after each round.

    This is successive halving (Jamieson & Talwalkar, arXiv 1502.07943), except that ties are kept: no configuration is
    dropped that may be as fast as the best. Several processes share the prompts of a round and merge their answers
    after it.

    Args:
        timer: answers prompts.
        timings: the timings so far; answers are added to it.
        prompts: token ids.
        keep: configurations that are never dropped, for comparison.
        each: prompts of a round.
        rng: draws the order within each prompt.
        out_of_time: called before every prompt but the first two.
        done: called with each answer.
        processes: the processes that take part.
    """
    together = processes or Processes()
    alive = list(range(len(timings.configurations)))
    known = {(answer.configuration, answer.prompt, answer.repeat) for answer in timings.answers}
    place = 0
    while True:
        own: list[TimedAnswer] = []
        for at in together.share_of(range(place, place + each)):
            if at >= 2 and out_of_time():
                break
            prompt, repeat = at % len(prompts), at // len(prompts)
            wanted = [one for one in alive if (one, prompt, repeat) not in known]
            for one in rng.sample(wanted, len(wanted)):
                ids, seconds = timer.answer(timings.configurations[one], prompts[prompt])
                own.append(TimedAnswer(one, prompt, repeat, len(ids), seconds, digest_of_ids(ids)))
                if together.count == 1:
                    timings.answers.append(own[-1])
                done(own[-1])
        if together.count > 1:
            timings.answers += together.agree(together.gather(own))
        place += each
        ranked = timings.fastest(alive)
        spared = {*ranked[: -(-len(ranked) // 2)], *keep, *timings.ties(ranked[0], ranked)}
        alive = [one for one in ranked if one in spared]
        yield alive
        if together.agree(out_of_time()) or len([one for one in alive if one not in keep or one == ranked[0]]) <= 1:
            return


def digest_of_ids(ids: Sequence[int]) -> int:
    """Return a digest that is equal for equal answers."""
    return crc32(json.dumps([*ids]).encode())

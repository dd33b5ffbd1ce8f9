"""Turns measurements into figures: pooled, with bootstrap intervals over prompts and repeats.

Speed is pooled, all tokens over all seconds, so that a long answer counts for its length; a mean of per-prompt speeds
would be dominated by the shortest. Two things vary from run to run: the prompts, and the other load of the machine. So
intervals come from resampling prompts (Efron & Tibshirani, *An Introduction to the Bootstrap*, 1993, ch. 13) and,
independently, repeats: a repeat is one pass over all prompts, and a machine that drifts makes passes differ (both
factors drawn, cells multiplied: Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 1, 2007). A speed-up
draws the same prompts and repeats for both arms, which cancels what makes them slow for both. Percentile intervals are
somewhat too narrow below about ten prompts or, as far as drift goes, ten repeats; one prompt gives no interval, and one
repeat says nothing about drift.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from math import fsum

import numpy as np
from numpy.typing import NDArray

from hispec.bench.caveats import caveats_of
from hispec.bench.names import BASELINES
from hispec.bench.record import (
    Accuracy,
    ArmFigures,
    Estimate,
    Interval,
    LevelCounts,
    LevelFigures,
    Losslessness,
    Measurement,
    Percentiles,
    Report,
    Setup,
)

RESAMPLES = 10_000
SEED = 0
_BLOCK = 1 << 22
"""Numbers drawn at once: bounds the memory of a bootstrap over very many prompts."""

Key = tuple[str, int]
"""A row and a repeat: what two arms must share to be compared."""
Floats = NDArray[np.float64]


def summarize(
    setup: Setup,
    arms: Sequence[str],
    measurements: Iterable[Measurement],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Report:
    """Turn the measurements of a run into its report.

    Args:
        setup: the conditions of the run.
        arms: names of all arms of the run, the one under test first. One without measurements gets no figures.
        measurements: the measurements in any order, without warm-up.
        resamples: the number of bootstrap resamples.
        seed: the seed of the bootstrap; equal measurements give equal reports.

    Raises:
        ValueError: a measurement of an unknown arm, or two of the same arm, row and repeat.
    """
    answers: dict[str, dict[Key, Measurement]] = {arm: {} for arm in arms}
    for measurement in measurements:
        key = measurement.row, measurement.repeat
        if measurement.arm not in answers:
            raise ValueError(f"arm {measurement.arm} is not one of the run's")
        if key in answers[measurement.arm]:
            raise ValueError(f"arm {measurement.arm} has row {key[0]}, repeat {key[1]}, twice")
        answers[measurement.arm][key] = measurement
    speeds, metric = _Speeds(answers, resamples, seed), setup.dataset.metric
    # In one order, whichever the measurements came in, so that equal runs give equal reports to the last digit.
    figures = [_figures(arm, [answers[arm][key] for key in sorted(answers[arm])], speeds, metric) for arm in arms]
    return Report(
        **{name: getattr(setup, name) for name in Setup.model_fields},
        schema_version="hispec.bench/1",
        arms=figures,
        caveats=list(caveats_of(setup, figures)),
    )


class _Speeds:
    """Pooled speeds of arms and their ratios, resampled together so that arms are compared prompt by prompt."""

    def __init__(self, answers: Mapping[str, Mapping[Key, Measurement]], resamples: int, seed: int) -> None:
        self._answers, self._resamples, self._seed = answers, resamples, seed
        self._drawn: dict[frozenset[Key], dict[str, Floats]] = {}

    def of(self, arm: str) -> Estimate | None:
        """Return the tokens per second of an arm, over all its answers."""
        keys = frozenset(self._answers[arm])
        value = self._pooled(arm, keys)
        return None if value is None else Estimate(value=value, ci95=self._interval(keys, arm))

    def ratios(self, arm: str) -> dict[str, Estimate]:
        """Return the speed-up over each baseline of the run, where the two have answers in common."""
        ratios = {}
        for baseline in BASELINES:
            if baseline == arm or baseline not in self._answers:
                continue
            keys = self._answers[arm].keys() & self._answers[baseline].keys()
            own, other = self._pooled(arm, keys), self._pooled(baseline, keys)
            if own is not None and other:
                ratios[baseline] = Estimate(value=own / other, ci95=self._interval(frozenset(keys), arm, baseline))
        return ratios

    def _pooled(self, arm: str, keys: Iterable[Key]) -> float | None:
        chosen = [self._answers[arm][key] for key in keys]
        return ratio(sum(len(answer.token_ids) for answer in chosen), fsum(answer.seconds for answer in chosen))

    def _interval(self, keys: frozenset[Key], arm: str, baseline: str | None = None) -> Interval | None:
        if len({row for row, _ in keys}) < 2:
            return None
        drawn = self._drawn.get(keys) or self._drawn.setdefault(keys, self._resample(keys))
        with np.errstate(divide="ignore", invalid="ignore"):
            return interval95(drawn[arm] if baseline is None else drawn[arm] / drawn[baseline])

    def _resample(self, keys: frozenset[Key]) -> dict[str, Floats]:
        """Return pooled speed of every arm over the same resampled prompts and repeats."""
        rows, repeats = ({name: at for at, name in enumerate(sorted(set(names)))} for names in zip(*keys, strict=True))
        values = np.zeros((len(rows), len(repeats), len(self._answers), 2))
        for column, answers in enumerate(self._answers.values()):
            for key in keys & answers.keys():
                place = rows[key[0]], repeats[key[1]], column
                values[place] = len(answers[key].token_ids), answers[key].seconds
        sums = resampled_sums(values.reshape(len(rows), len(repeats), -1), self._resamples, self._seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            speeds = sums[:, 0::2] / sums[:, 1::2]
        return {arm: speeds[:, column] for column, arm in enumerate(self._answers)}


def resampled_sums(values: Floats, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Return column sums over prompts and repeats, each drawn with replacement.

    Args:
        values: (prompts, repeats, columns). All columns share the draws.
        resamples: the number of times that as many prompts, and as many repeats, as there are, are drawn.
        seed: the seed of the draws.

    Returns:
        (resamples, columns).
    """
    prompts, repeats, columns = values.shape
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, columns))
    block = max(1, _BLOCK // (prompts + repeats * columns))
    for begin in range(0, resamples, block):
        count = min(block, resamples - begin)
        by_repeat = _times_drawn(rng, count, prompts) @ values.reshape(prompts, -1)
        weights = _times_drawn(rng, count, repeats)
        sums[begin : begin + count] = np.einsum("br,brc->bc", weights, by_repeat.reshape(count, repeats, columns))
    return sums


def _times_drawn(rng: np.random.Generator, draws: int, items: int) -> Floats:
    """Return how often each item came out when as many as there are were drawn with replacement, (draws, items)."""
    drawn = rng.integers(items, size=(draws, items)) + items * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * items).reshape(draws, items).astype(np.float64)


def interval95(samples: Floats) -> Interval | None:
    """Return the middle 95 % of bootstrap samples; None where some resample has no value."""
    if not np.isfinite(samples).all():
        return None
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)


def ratio(part: float, whole: float) -> float | None:
    """Return part over whole, None if the whole is 0 or None."""
    return part / whole if whole else None


def _figures(arm: str, answers: Sequence[Measurement], speeds: _Speeds, metric: str | None) -> ArmFigures:
    speed = speeds.of(arm)
    levels = _levels(answers)
    memory = [answer.peak_memory_bytes for answer in answers if answer.peak_memory_bytes is not None]
    phases: Counter[str] = Counter()
    for answer in answers:
        phases.update(answer.phase_seconds)
    return ArmFigures(
        name=arm,
        answers=len(answers),
        prompts=len({answer.row for answer in answers}),
        tokens=sum(len(answer.token_ids) for answer in answers),
        seconds=fsum(answer.seconds for answer in answers),
        tokens_per_second=speed.value if speed else None,
        ci95=speed.ci95 if speed else None,
        speedup=speeds.ratios(arm),
        tokens_per_target_pass=_tokens_per_target_pass(answers),
        mean_acceptance_length=_mean_acceptance_length(answers),
        draft_acceptance_rate=levels[0].acceptance_rate if levels else None,
        levels=levels,
        phase_seconds=dict(phases),
        time_to_first_token_s=_percentiles([answer.time_to_first_token_s for answer in answers]),
        inter_token_s=_percentiles(list(chain.from_iterable(answer.inter_token_s for answer in answers))),
        peak_memory_bytes=max(memory, default=None),
        accuracy=_accuracy(answers, metric),
        lossless=_losslessness(answers),
    )


def _tokens_per_target_pass(answers: Sequence[Measurement]) -> float | None:
    told = [answer for answer in answers if answer.target_passes is not None]
    return ratio(sum(len(answer.token_ids) for answer in told), sum(answer.target_passes or 0 for answer in told))


def _mean_acceptance_length(answers: Sequence[Measurement]) -> float | None:
    """Return tokens for each verification by the target; see `ArmFigures.mean_acceptance_length`."""
    verifications = committed = 0
    for answer in answers:
        if answer.target_passes is not None and answer.levels:
            verified = answer.levels[-1].verifications
            verifications += verified
            committed += len(answer.token_ids) - (answer.target_passes - verified)
    return ratio(committed, verifications)


def _levels(answers: Sequence[Measurement]) -> list[LevelFigures]:
    """Return the sums of the counts of each level, in the order of the hierarchy."""
    by_name: dict[str, list[LevelCounts]] = {}
    for level in chain.from_iterable(answer.levels for answer in answers):
        by_name.setdefault(level.name, []).append(level)
    figures = []
    for name, counts in by_name.items():
        proposed, accepted = sum(level.proposed for level in counts), sum(level.accepted for level in counts)
        figures.append(
            LevelFigures(
                name=name,
                model=counts[0].model,
                exit_layer=counts[0].exit_layer,
                weights=counts[0].weights,
                proposed=proposed,
                accepted=accepted,
                acceptance_rate=ratio(accepted, proposed),
                accepted_lengths=_added(level.accepted_lengths for level in counts),
                proposed_at=_added(level.proposed_at for level in counts),
                accepted_at=_added(level.accepted_at for level in counts),
            )
        )
    return figures


def _added(lists: Iterable[list[int]]) -> list[int]:
    """Return the sums of lists, item by item; the items that a shorter list lacks count as zeros."""
    return [sum(items) for items in zip_longest(*lists, fillvalue=0)]


def _percentiles(seconds: Sequence[float]) -> Percentiles | None:
    if not seconds:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return Percentiles(p50=p50, p90=p90, p99=p99)


def _accuracy(answers: Sequence[Measurement], metric: str | None) -> Accuracy | None:
    scores = [answer.score for answer in answers if answer.score is not None]
    if metric is None or not scores:
        return None
    whole = all(score in (0, 1) for score in scores)
    return Accuracy(
        metric=metric,
        value=fsum(scores) / len(scores),
        correct=int(sum(scores)) if whole else None,
        of=len(scores),
    )


def _losslessness(answers: Sequence[Measurement]) -> Losslessness | None:
    compared = [answer.lossless for answer in answers if answer.lossless is not None]
    if not compared:
        return None
    kinds = Counter(comparison.kind for comparison in compared)
    return Losslessness(identical=kinds[None], of=len(compared), ties=kinds["tie"], errors=kinds["error"])

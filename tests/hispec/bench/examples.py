"""Runs made up for tests: answers like those of the shipped model, small enough to check by hand or large by chance."""

import numpy as np

from hispec.bench.record import DatasetInfo, LevelCounts, Measurement, Setup, TokenComparison
from hispec.bench.statistics import summarize


def setup(**changes):
    """The circumstances of a run."""
    values = {
        "status": "complete",
        "profile": "tiny",
        "dataset": DatasetInfo(
            name="sample", rows=40, sha256="ab" * 32, source="package hispec 0.1.0", metric="exact_match"
        ),
        "repeats": 1,
        "warmup": 3,
        "synthetic_weights": False,
        "environment": {"device": "cpu", "dtype": "float32", "threads": 1, "torch": "2.13.0", "transformers": "5.24.0"},
        "config": {"draft_tokens": 2, "validate_every": 12, "max_new_tokens": 200, "sampling": {"temperature": 0.0}},
        "config_hash": "0123456789abcdef",
    }
    return Setup(**values | changes)


def measurement(**changes):
    """One answer of four tokens in two seconds, from an arm that tells nothing but that."""
    values = {
        "arm": "autoregressive",
        "row": "0",
        "repeat": 0,
        "prompt_tokens": 9,
        "token_ids": [5, 6, 7, 2],
        "text": "#### 7",
        "finish_reason": "eos",
        "seconds": 2.0,
        "time_to_first_token_s": 0.5,
        "inter_token_s": [0.5, 0.5, 0.5],
        "phase_seconds": {},
        "target_passes": None,
        "levels": [],
        "peak_memory_bytes": None,
        "score": None,
        "lossless": None,
    }
    return Measurement(**values | changes)


def level(name, exit_layer, lengths, run):
    """Counts of a level whose runs of up to `run` tokens were verified: `lengths[k]` of them had k tokens accepted."""
    verifications = sum(lengths)
    return LevelCounts(
        name=name,
        model="builtin:tiny",
        exit_layer=exit_layer,
        proposed=verifications * run,
        accepted=sum(k * times for k, times in enumerate(lengths)),
        accepted_lengths=lengths,
        proposed_at=[verifications] * run,
        accepted_at=[sum(lengths[at + 1 :]) for at in range(run)],
    )


SHARES = {"hispec": 0.38, "single-layer": 0.36, "autoregressive": 1.0, "hf": 2.1, "prompt-lookup": 0.7}
"""Seconds of each arm as a share of plain decoding's."""


def run(arms=("hispec", "single-layer", "autoregressive", "hf"), rows=40, repeats=1, seed=0):
    """Measurements of a whole run. How slow a prompt is it shares between arms; a little noise is each arm's own."""
    rng = np.random.default_rng(seed)
    measurements = []
    for row in range(rows):
        tokens, slow = int(rng.integers(15, 80)), rng.lognormal(0, 0.3)
        for repeat in range(repeats):
            for arm in arms:
                seconds = tokens * 0.011 * slow * SHARES.get(arm, 1.0) * rng.lognormal(0, 0.05)
                measurements.append(_answer(rng, arm, row, repeat, tokens, seconds))
    return measurements


def report(arms=("hispec", "single-layer", "autoregressive", "hf"), rows=40, repeats=1, seed=0, **changes):
    """The report of such a run."""
    setup_changes = {"repeats": repeats} | changes
    return summarize(setup(**setup_changes), arms, run(arms, rows, repeats, seed), resamples=500)


def _answer(rng, arm, row, repeat, tokens, seconds):
    levels, passes, phases = [], tokens, {"prefill": 0.1, "target": 0.9}
    step = 1
    if arm in ("hispec", "single-layer", "prompt-lookup"):
        step = 6
        verifications = max(1, tokens // step)
        passes = 1 + verifications
        lengths = rng.multinomial(verifications, [0.05, 0.05, 0.05, 0.1, 0.1, 0.15, 0.5]).tolist()
        phases = {"prefill": 0.1, "draft": 0.5, "target": 0.4}
        levels = [level("draft", 2, lengths, 6)]
    if arm == "hispec":
        drafts = rng.multinomial(3 * verifications, [0.2, 0.2, 0.6]).tolist()
        levels = [level("draft", 1, drafts, 2), level("intermediate", 2, lengths, 6)]
        phases = {"prefill": 0.1, "draft": 0.3, "intermediate": 0.25, "target": 0.35}
    ids = list(range(tokens))
    gaps = [0.9 * seconds / tokens * step if at % step == 0 else 0.0 for at in range(tokens - 1)]
    lossless = TokenComparison(identical=True)
    if row == 7 and arm == "single-layer":
        lossless = TokenComparison(identical=False, at=3, gap=1e-6, kind="tie")
    return measurement(
        arm=arm,
        row=f"{row}",
        repeat=repeat,
        token_ids=ids,
        seconds=seconds,
        time_to_first_token_s=0.1 * seconds,
        inter_token_s=gaps,
        phase_seconds={} if arm == "hf" else {name: share * seconds for name, share in phases.items()},
        target_passes=None if arm == "hf" else passes,
        levels=levels,
        peak_memory_bytes=290_000_000 + 1000 * row,
        score=float(row % 7 != 0),
        lossless=None if arm == "autoregressive" else lossless,
    )

"""Measures tokens per second of every way of decoding, the bytes that it reads, and the speed that the memory allows.

Every prompt is answered by all arms one after the other, in an order drawn for it, and by each of them once. All arms
have the same weights in the same dtype. The lengths of hispec and the exit and length of single-layer speculation are
the fastest of a grid, timed on prompts of their own. A run that is cut off (budget, Ctrl-C, SIGTERM) reports what it has.

    python benchmarks/engine.py                                   # the shipped model, here
    python benchmarks/engine.py --profile layerskip-llama3-8b --load-format dummy --agreement 0.55,0.75 --heads 8192
"""

import argparse
import os
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import torch
from common import RESULTS, environment, gsm8k_questions, held_out_questions, interval95, save
from engine_report import draw, table
from limits import Meter, Sizes, Traffic, limit, read_bandwidth

from hispec import Engine
from hispec.api import unprofiled
from hispec.bench.arms import Arm, TransformersArm, make_arms
from hispec.errors import HispecError
from hispec.events import Committed
from hispec.frequencies import write_frequencies
from hispec.models.checkpoint import Checkpoint
from hispec.models.transformers_stack import TransformersStack
from hispec.profile import Profile, SingleLayerSection, load_profile, with_exits
from hispec.text import encode_prompt

AUTOREGRESSIVE = "autoregressive"
BASELINES = (AUTOREGRESSIVE, "hf")


@dataclass
class Sample:
    """One answer of one arm."""

    token_ids: list[int]
    seconds: float
    first_seconds: float
    first_tokens: int
    meter: Meter | None = None
    peak_memory: int = 0

    @property
    def decoding(self) -> tuple[int, float]:
        """Return the number of tokens after the first, and their seconds."""
        return len(self.token_ids) - self.first_tokens, self.seconds - self.first_seconds


@dataclass
class Own:
    """An arm that decodes with HiSpec's engine."""

    name: str
    engine: Engine
    sizes: Sizes
    tried: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, prompt: list[int], count: int) -> Sample:
        """Decode `count` tokens, and count the work of every level."""
        engine = self.engine
        ids: list[int] = []
        moments: list[tuple[float, int]] = []
        meter = Meter(engine.hierarchy, self.sizes)
        began = perf_counter()
        for event in engine.decoder().decode(prompt, count):
            meter.see(event)
            if isinstance(event, Committed):
                ids += event.token_ids
                moments.append((perf_counter() - began, len(event.token_ids)))
        return Sample(ids, perf_counter() - began, *moments[0], meter)


@dataclass
class Theirs:
    """An arm that decodes with `transformers`."""

    name: str
    arm: Arm

    def answer(self, prompt: list[int], count: int) -> Sample:
        """Decode `count` tokens."""
        answer = self.arm.answer(prompt, count, (), 0)
        return Sample(answer.token_ids, answer.seconds, *answer.moments[0])


def rate(rows: Sequence[tuple[int, float]]) -> float:
    """Return pooled tokens per second."""
    seconds = sum(seconds for _, seconds in rows)
    return sum(tokens for tokens, _ in rows) / seconds if seconds else 0.0


def estimate(rows: Sequence[tuple[int, float]]) -> dict[str, Any]:
    return {"value": rate(rows), "ci95": interval95(rows, rate)}


def with_heads(profile: Profile, head_size: int | None, frequencies: Path | None) -> Profile:
    """Return the profile with heads of that size at its draft and intermediate exits."""
    data = profile.model_dump(by_alias=True, exclude_unset=True)
    for level in ("draft", "intermediate"):
        if data.get(level):
            data[level]["head"] = head_size
    if frequencies is not None:
        data["frequencies"] = str(frequencies)
    return Profile.model_validate(data)


def fastest(candidates: Sequence[Own], prompts: Sequence[list[int]], count: int) -> Own:
    """Return the candidate with the most tokens per second on some prompts; what was tried is kept with it."""
    rows: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        for at in Random(number).sample(range(len(candidates)), len(candidates)):
            rows[at].append(candidates[at].answer(prompt, count).decoding)
    best = max(range(len(candidates)), key=lambda at: rate(rows[at]))
    told = [describe(own) | {"tokens_per_second": rate(rows[at])} for at, own in enumerate(candidates)]
    candidates[best].tried = told if len(told) > 1 else []
    return candidates[best]


def describe(own: Own) -> dict[str, Any]:
    """Return the exits, heads and lengths of an arm."""
    levels, settings = own.engine.hierarchy.levels, own.engine.settings
    lengths = [settings.validate_every] if len(levels) == 2 else [settings.draft_tokens, settings.validate_every]
    lengths = [] if len(levels) == 1 or settings.policy == "adaptive" else lengths
    return {
        "stack": own.engine.hierarchy.stack_of(-1).kind,
        "exits": [level.exit_layer for level in levels],
        "heads": [None if level.reduced is None else len(level.reduced.ids) for level in levels],
        "policy": settings.policy,
        "lengths": lengths,
    }


class Bench:
    """The arms of one model.

    Args:
        args: the command-line arguments.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        dummy = args.load_format == "dummy"
        self._folder = tempfile.TemporaryDirectory()
        profile = (
            unprofiled(args.model, args.draft_exit, args.intermediate_exit, dummy=dummy)
            if args.model
            else with_exits(load_profile(args.profile), args.draft_exit, args.intermediate_exit)
        )
        assert profile.draft and profile.draft.exit_layer and profile.intermediate, "hispec needs two exits"
        assert not profile.draft.model and not profile.intermediate.model, "all levels must read one model"
        self.profile = with_heads(profile, None, self._frequencies(profile, dummy))
        options = {"load_format": args.load_format, "dtype": args.dtype, "device": args.device, "policy": "static"}
        self.engine = Engine.from_profile(
            self.profile, dummy_agreement=args.agreement, max_new_tokens=args.max_new_tokens, **options
        )
        target = self.profile.target
        config = Checkpoint(target.model, target.revision, dummy).config
        self.sizes = Sizes.of(config, self.engine.hierarchy.stack_of(-1).dtype.itemsize)
        prompts = self._prompts(args.warm_up + args.tune + args.prompts)
        self.warm_up, rest = prompts[: args.warm_up], prompts[args.warm_up :]
        self.tune, self.prompts = rest[: args.tune], rest[args.tune :]

    def _frequencies(self, profile: Profile, dummy: bool) -> Path | None:
        """Write frequencies for random weights: those with a chosen agreement favour low ids, so low ids are frequent."""
        if not dummy:
            return None
        path = Path(self._folder.name) / "frequencies.json"
        vocab_size = Checkpoint(profile.target.model, dummy=True).config.vocab_size
        write_frequencies(path, Counter({id_: vocab_size - id_ for id_ in range(vocab_size)}))
        return path

    def _prompts(self, count: int) -> list[list[int]]:
        """Return token ids, no prompt twice; random ones for random weights."""
        args = self.args
        if args.load_format == "dummy":
            ids = range(self.sizes.vocab_size)
            return [Random(number).choices(ids, k=args.prompt_tokens) for number in range(count)]
        questions = gsm8k_questions(args.gsm8k, count) if args.gsm8k else held_out_questions(count)
        assert len(set(questions)) == count, "there are not so many prompts"
        return [encode_prompt(self.engine.tokenizer, question) for question in questions]

    def arms(self) -> list[Own | Theirs]:
        """Return all arms, with tuned lengths."""
        found: list[Own | Theirs] = []
        for head_size in (None, *self.args.heads):
            if head_size is None or head_size < self.sizes.vocab_size:
                shown = "" if head_size is None else f", heads {head_size}"
                found.append(fastest(self._hispec("hispec" + shown, head_size), self.tune, self.args.tune_tokens))
                single = self._single_layer("single-layer" + shown, head_size)
                found.append(fastest(single, self.tune, self.args.tune_tokens))
        if self.args.adaptive:
            found.append(Own("hispec, adaptive", self.engine.with_settings(policy="adaptive"), self.sizes))
        found.append(Own(AUTOREGRESSIVE, self.engine.with_settings(mode=AUTOREGRESSIVE), self.sizes))
        if self.args.transformers:
            found += self._transformers(found)
        return found

    def _hispec(self, name: str, head_size: int | None) -> list[Own]:
        base = self.engine.with_profile(with_heads(self.profile, head_size, None))
        return [
            Own(name, base.with_settings(draft_tokens=own, validate_every=every), self.sizes)
            for own in self.args.draft_tokens
            for every in self.args.validate_every
        ]

    def _single_layer(self, name: str, head_size: int | None) -> list[Own]:
        draft, intermediate = self.profile.draft, self.profile.intermediate
        assert draft is not None and intermediate is not None
        found = []
        for exit_layer in (draft.exit_layer, intermediate.exit_layer):
            data = self.profile.model_dump(by_alias=True, exclude_unset=True, exclude={"intermediate", "single_layer"})
            data["draft"] = {"exit_layer": exit_layer, "head": head_size}
            engine = self.engine.with_profile(Profile.model_validate(data))
            found += [
                Own(name, engine.with_settings(mode="single-layer", validate_every=tokens), self.sizes)
                for tokens in self.args.single_layer_tokens
            ]
        return found

    def _transformers(self, found: Sequence[Own | Theirs]) -> list[Own | Theirs]:
        """Return the arms of `transformers`, with the exit that tuned single-layer speculation has, and ours on its layers."""
        single = next(own for own in found if own.name == "single-layer" and isinstance(own, Own))
        exit_layer, tokens = single.engine.hierarchy.levels[0].exit_layer, single.engine.settings.validate_every
        tuned = SingleLayerSection(exit_layer=exit_layer, draft_tokens=tokens)
        engine = self.engine.with_profile(self.profile.model_copy(update={"single_layer": tuned}))
        theirs: list[Own | Theirs] = [
            Theirs(arm.name, arm) for arm in make_arms(["hf", "hf-early-exit", "prompt-lookup"], engine)
        ]
        if self.engine.hierarchy.stack_of(-1).kind == "transformers" or not self.args.both_stacks:
            return theirs
        assert isinstance(theirs[0], Theirs) and isinstance(theirs[0].arm, TransformersArm)
        stack = TransformersStack(theirs[0].arm.model, self.engine.hierarchy.stack_of(-1).name)
        ours = []
        for own in found:
            if isinstance(own, Own) and own.name in ("hispec", "single-layer", AUTOREGRESSIVE):
                other = own.engine
                models = replace(other.models, stacks={other.profile.target.model: stack})
                slow = Engine(other.profile, other.settings, models)
                ours.append(Own(f"{own.name}, transformers stack", slow, self.sizes))
        return [*ours, *theirs]

    def measure(self, arms: Sequence[Own | Theirs], until: float) -> Iterator[dict[str, Sample]]:
        """Decode prompts until the time is up, at least one, and return a row for each."""
        for number, prompt in enumerate([*self.warm_up, *self.prompts]):
            if number > len(self.warm_up) and perf_counter() > until:
                return
            row = {}
            for arm in Random(number).sample(arms, len(arms)):
                if self.engine.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.engine.device)
                row[arm.name] = arm.answer(prompt, self.args.max_new_tokens)
                if self.engine.device.type == "cuda":
                    row[arm.name].peak_memory = torch.cuda.max_memory_allocated(self.engine.device)
            if number >= len(self.warm_up):
                yield row


def summarize(bench: Bench, arms: Sequence[Own | Theirs], rows: Sequence[dict[str, Sample]], bandwidth: float) -> Any:
    """Return the figures of every arm."""
    plain = [row[AUTOREGRESSIVE] for row in rows]
    found = {}
    for arm in arms:
        samples = [row[arm.name] for row in rows]
        decoding = [sample.decoding for sample in samples]
        record: dict[str, Any] = {
            "tokens": sum(len(sample.token_ids) for sample in samples),
            "seconds": sum(sample.seconds for sample in samples),
            "tokens_per_second": estimate([(len(sample.token_ids), sample.seconds) for sample in samples]),
            "decoding_tokens_per_second": estimate(decoding),
            "first_token_ms": 1e3 * sum(sample.first_seconds for sample in samples) / len(samples),
            "speedup": {name: ratio(rows, arm.name, name) for name in BASELINES if name in rows[0]},
            "lossless": compare(bench, samples, plain),
        }
        if samples[0].peak_memory:
            record["peak_memory_bytes"] = max(sample.peak_memory for sample in samples)
            record["memory_over_autoregressive"] = (
                record["peak_memory_bytes"] / max(sample.peak_memory for sample in plain) - 1
            )
        tokens, seconds = sum(tokens for tokens, _ in decoding), sum(seconds for _, seconds in decoding)
        if isinstance(arm, Own):
            record |= describe(arm) | {"tuned_on": arm.tried}
            record |= of_levels(arm, samples, tokens, seconds, bandwidth)
        elif arm.name == "hf":  # every token is one pass through everything
            record |= {"bytes_per_token": bench.sizes.total, "limit_tokens_per_second": bandwidth / bench.sizes.total}
            record["share_of_bandwidth"] = bench.sizes.total * tokens / seconds / bandwidth
            record["share_of_limit"] = record["share_of_bandwidth"]
        found[arm.name] = record
    return found


def of_levels(arm: Own, samples: Sequence[Sample], tokens: int, seconds: float, bandwidth: float) -> dict[str, Any]:
    """Return the figures by level, and the speed that the memory allows."""
    names = [level.name for level in arm.engine.hierarchy.levels]
    traffic = {name: Traffic() for name in names}
    for sample in samples:
        assert sample.meter is not None
        for name in names:
            traffic[name].add(sample.meter.levels[name])
    described, read = describe(arm), sum(own.bytes for own in traffic.values())
    verified = [traffic[name].acceptance for name in names[1:]]
    best = None
    if all(share is not None for share in verified) and described["policy"] == "static":
        shares = [share for share in verified if share is not None]
        best = limit(bandwidth, arm.sizes, described["exits"], described["heads"], described["lengths"], shares)
    return {
        "levels": {
            name: {
                "passes": own.passes,
                "rows_per_pass": own.rows / own.passes if own.passes else None,
                "ms_per_pass": 1e3 * own.seconds / own.passes if own.passes else None,
                "ms_per_token": 1e3 * own.seconds / tokens,
                "bytes_per_pass": own.bytes / own.passes if own.passes else None,
                "share_of_bandwidth": own.bytes / own.seconds / bandwidth if own.seconds else None,
                "acceptance": own.acceptance,
            }
            for name, own in traffic.items()
        },
        "tokens_per_target_pass": tokens / traffic[names[-1]].passes if traffic[names[-1]].passes else None,
        "bytes_per_token": read / tokens,
        "share_of_bandwidth": read / seconds / bandwidth,
        "limit_tokens_per_second": best,
        "share_of_limit": tokens / seconds / best if best else None,
    }


def ratio(rows: Sequence[dict[str, Sample]], own: str, other: str) -> dict[str, Any]:
    """Return the ratio of an arm's decoding speed to another's, prompt by prompt."""
    pairs = [(row[own].decoding, row[other].decoding) for row in rows]

    def statistic(some: Any) -> float:
        return float(rate([pair[0] for pair in some]) / rate([pair[1] for pair in some]))

    return {"value": statistic(pairs), "ci95": interval95(pairs, statistic)}


def compare(bench: Bench, samples: Sequence[Sample], plain: Sequence[Sample]) -> dict[str, int]:
    """Return the number of answers with the ids of plain decoding; others differ by a tie, or are wrong."""
    counts = {"identical": 0, "of": len(samples), "ties": 0, "errors": 0}
    for prompt, sample, reference in zip(bench.prompts, samples, plain, strict=False):
        difference = bench.engine.examine(prompt, sample.token_ids, reference.token_ids)
        key = "identical" if difference is None else "ties" if difference.kind == "tie" else "errors"
        counts[key] += 1
    return counts


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--model", help="a folder or hub id in place of a profile")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="auto")
    parser.add_argument("--agreement", metavar="SHARE,SHARE", help="of dummy weights; see hispec bench --help")
    parser.add_argument("--draft-exit", type=int)
    parser.add_argument("--intermediate-exit", type=int)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[1, 2, 3], help="of hispec, to choose from")
    parser.add_argument("--validate-every", type=int, nargs="+", default=[4, 6, 8, 12], help="likewise")
    parser.add_argument("--single-layer-tokens", type=int, nargs="+", default=[2, 3, 4, 6, 8, 12], help="likewise")
    parser.add_argument("--heads", type=int, nargs="*", default=[], help="sizes of reduced heads, arms of their own")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--transformers", action=switch, default=True, help="its own ways of decoding")
    parser.add_argument("--adaptive", action=switch, default=True, help="hispec by its adaptive policy, too")
    parser.add_argument("--both-stacks", action=switch, default=True, help="ours on its layers, beside --transformers")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=2, help="prompts that are not measured")
    parser.add_argument("--tune", type=int, default=3, help="prompts that lengths are tuned on")
    parser.add_argument("--tune-tokens", type=int, default=96, help="tokens of each answer there")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="of random prompts, for dummy weights")
    parser.add_argument("--gsm8k", type=Path, help="a GSM8K file to take questions from")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no prompt is begun")
    parser.add_argument("--name", default="engine", help="of the result: NAME.json and NAME.svg")
    parser.add_argument("--output", type=Path, default=RESULTS, help="its folder")
    return parser.parse_args()


def main() -> None:
    args, began, load = parse(), perf_counter(), os.getloadavg()
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bench = Bench(args)
    device, dtype = bench.engine.device, bench.engine.hierarchy.stack_of(-1).dtype
    before = read_bandwidth(bench.sizes.total, dtype, device)
    loaded = perf_counter() - began
    arms, rows = bench.arms(), []
    with suppress(KeyboardInterrupt):
        for row in bench.measure(arms, began + args.budget):
            rows.append(row)
    if not rows:
        raise SystemExit("cut off before the first prompt was answered")
    after = read_bandwidth(bench.sizes.total, dtype, device)
    record = {
        "what": "tokens per second beside bytes read and the limit that memory sets; one interleaved run",
        "profile": bench.profile.name,
        "model": bench.profile.target.model,
        "synthetic_weights": args.load_format == "dummy",
        "weight_bytes": bench.sizes.total,
        "read_bandwidth": {"bytes_per_second": max(before, after), "before": before, "after": after},
        "prompts": len(rows),
        "prompts_asked_for": args.prompts,
        "status": "complete" if len(rows) == args.prompts else "cut off",
        "seconds_to_load": loaded,
        "arms": summarize(bench, arms, rows, max(before, after)),
        "load_average": {"before": load, "after": os.getloadavg()},
        "environment": environment(args.threads) | bench.engine.environment,
    }
    save(args.name, record, args.output, show=False)
    draw(record, args.output / f"{args.name}.svg")
    print(table(record))


if __name__ == "__main__":
    try:
        main()
    except HispecError as error:
        raise SystemExit(f"error: {error.message}\nhint: {error.hint}") from None

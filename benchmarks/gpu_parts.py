"""The parts of `gpu.py`, each a process, with the expected results."""

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import predict
import torch
from cards import CARDS
from common import environment, save
from small_model import write_config
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from hispec import Engine
from hispec.api import unprofiled
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.hierarchy import Level as HierarchyLevel
from hispec.events import Committed, Prefilled, Verified
from hispec.models.checkpoint import Checkpoint
from hispec.models.config import ModelConfig
from hispec.models.kernels import quantize
from hispec.models.linear import Linear, right_factor
from hispec.models.passes import without_cudnn
from hispec.models.quantized import Int8WeightLinear
from hispec.models.stack import LayerStack
from hispec.policies.static import StaticPolicy

ROWS = (1, 4, 8, 16)
LARGER_THAN_CACHES = 300_000_000
"""Bytes of matrices that are read in turn."""
READ_BYTES = 4 << 30
"""Bytes by whose reading the memory is measured."""
MATRIX, SMALL = (
    "products: Linear, or a kernel of our own for few rows",
    "small kernels: fuse norms, rope and cache write",
)


@dataclass
class Part:
    """The time, device and results of a part."""

    name: str
    output: Path
    smoke: bool
    until: float
    record: dict[str, Any] = field(default_factory=lambda: {"compare": []})

    @property
    def device(self) -> torch.device:
        """Return the device, after preparing it."""
        return torch.device("cpu" if self.smoke else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights that are not quantized."""
        return torch.float32 if self.smoke else torch.bfloat16

    @property
    def card(self) -> predict.Machine:
        """Return the expected figures of this card."""
        name = "" if self.smoke else torch.cuda.get_device_name()
        return predict.Machine(next((card.read_tb_s for kind, card in CARDS.items() if kind in name), 3.0))

    def left(self, share: float = 0.0) -> bool:
        """Return whether more than a share of the time is left."""
        return perf_counter() < self.until - share

    def note(self, key: str, value: Any) -> None:
        """Write a result to the file at once."""
        self.record[key] = value
        save(self.name, self.record, self.output, show=False)

    def compare(self, what: str, expected: float, measured: float, unit: str, first: str) -> None:
        """Record a measurement with its expectation; `first` is the first thing to change where they differ."""
        row = {"what": what, "expected": expected, "measured": measured, "unit": unit, "first": first}
        self.note("compare", [*self.record["compare"], row])

    def seconds(self, work: Callable[[int], object], calls: int = 1, repeats: int = 7) -> float:
        """Return the median seconds of one call; calls are recorded as one graph, so that starting them does not count."""
        for at in range(min(calls, 3)):
            work(at)
        times = []
        if self.device.type == "cpu":
            for at in range(3):
                begin = perf_counter()
                work(at)
                times.append(perf_counter() - begin)
            return sorted(times)[1]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for at in range(calls):
                work(at)
        for _ in range(repeats):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            graph.replay()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / 1e3 / calls)
        return sorted(times)[repeats // 2]


def random_numbers(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return random numbers, as some memories read zeros, or the same number again and again, faster."""
    return torch.empty(count, dtype=dtype, device=device).normal_()


def _multiply(numbers: Tensor, _: int) -> None:
    numbers.mul_(1.0)


def _product(copies: Sequence[Linear], rows: Tensor, call: int) -> None:
    copies[call % len(copies)](rows)


def _call(work: Callable[[], object], _: int) -> None:
    work()


def machine(part: Part) -> None:
    """Measure the memory bandwidth, and the time of small kernels, waits and captures."""
    count = 1 << 20 if part.smoke else READ_BYTES // part.dtype.itemsize
    numbers = random_numbers(count, part.dtype, part.device).view(-1, 4096)
    vector = torch.ones(4096, 1, dtype=part.dtype, device=part.device)
    product, total = part.seconds(lambda _: numbers @ vector), part.seconds(lambda _: numbers.sum())
    found = {"product": numbers.nbytes / product / 1e12, "sum": numbers.nbytes / total / 1e12}
    part.note("read_tb_s", found)
    part.compare(
        "memory read", part.card.read, max(found.values()), "TB/s", "CARDS in cards.py: everything follows from it"
    )
    costs = predict.Costs()
    for count in (4096, 131072):
        x = torch.randn(count, device=part.device).to(part.dtype)
        took = part.seconds(partial(_multiply, x), 8 if part.smoke else 400)
        part.compare(f"small kernel of {count} numbers", costs.small, 1e6 * took, "us", SMALL)
    begin = perf_counter()
    for _ in range(100):
        x[:1].tolist()
    part.note("tolist_us", 1e4 * (perf_counter() - begin))


def matrices(part: Part) -> None:
    """Check and time products of all shapes and formats."""
    shapes = {"8B": predict.config_of("8B"), "70B": predict.config_of("70B")}
    found: list[dict[str, Any]] = []
    for model, config in shapes.items():
        sizes = ((96, 64), (64, 128)) if part.smoke else config.layer_shapes
        for inputs, outputs in sizes:
            copies = 1 if part.smoke else max(1, LARGER_THAN_CACHES // (inputs * outputs))
            full = [
                Linear(right_factor(inputs, outputs, part.dtype, part.device).normal_(0, inputs**-0.5))
                for _ in range(copies)
            ]
            for form in ("full", "int4", "int8"):
                if not part.left(5):
                    return
                try:
                    own = full if form == "full" else [quantize(one, form) for one in full]  # type: ignore[arg-type]
                    timed = {}
                    for rows in ROWS:
                        x = torch.randn(rows, inputs, device=part.device).to(part.dtype)
                        timed[rows] = part.seconds(partial(_product, own, x), max(4, copies))
                    wanted = x.float() @ own[0].dense().float()
                    error = ((own[0](x).float() - wanted).norm() / wanted.norm()).item()
                except Exception as problem:  # what one format cannot do says nothing of the others
                    found.append(
                        {"model": model, "shape": [inputs, outputs], "weights": form, "error": str(problem)[:200]}
                    )
                    continue
                kernel = getattr(own[0], "kernel", "mm")
                line = {"model": model, "shape": [inputs, outputs], "weights": form, "kernel": kernel}
                found.append(line | {"us": {rows: 1e6 * took for rows, took in timed.items()}, "relative_error": error})
                if isinstance(own[0], Int8WeightLinear) or form == "int8":
                    continue  # nothing is expected of it: it has no kernel there that reads 8 bits fast
                for rows in (1, 8):
                    expected = part.card.matrix(inputs, outputs, form)
                    what = f"{model} {inputs} x {outputs} {form}, {rows} rows"
                    part.compare(what, expected, 1e6 * timed[rows], "us", MATRIX)
            part.note("products", found)


def attention(part: Part) -> None:
    """Time the attention of an 8B with few rows, by backend and length."""
    heads, shared, size = (8, 2, 32) if part.smoke else (32, 8, 128)
    found = []
    for length in (64,) if part.smoke else (256, 1024, 4096, 16384):
        keys, values = torch.randn(2, 1, shared, length, size, device=part.device).to(part.dtype).unbind()
        for rows in (1, 4, 8):
            queries = torch.randn(1, shared, rows * heads // shared, size, device=part.device).to(part.dtype)
            mask = torch.zeros(rows * heads // shared, length, dtype=part.dtype, device=part.device)
            line: dict[str, Any] = {"length": length, "rows": rows}
            for name in ("as it is",) if part.smoke else ("as it is", "CUDNN", "EFFICIENT", "MATH"):
                attend = partial(F.scaled_dot_product_attention, queries, keys, values, attn_mask=mask)
                try:
                    if name == "as it is":
                        with without_cudnn(part.device):
                            line[name] = 1e6 * part.seconds(partial(_call, attend), 20)
                    else:
                        with sdpa_kernel([getattr(SDPBackend, f"{name}_ATTENTION" if name != "MATH" else name)]):
                            line[name] = 1e6 * part.seconds(partial(_call, attend), 20)
                except RuntimeError as problem:
                    line[name] = str(problem)[:100]
            found.append(line)
            part.note("attention_us", found)
            if rows == 1 and isinstance(line["as it is"], float):
                costs = predict.Costs()
                expected = costs.attention + costs.attention_per_position * length
                what = f"attention, {length} positions, 1 row"
                part.compare(what, expected, line["as it is"], "us", "attention: split along the text")


def capture(part: Part) -> None:
    """Check that graphs are captured, and that with and without them all modes write the same token ids at one width."""
    prompts = [Random(at).choices(range(3, 250), k=40) for at in range(1 if part.smoke else 4)]
    models = {"tiny": "tiny", "1B": "layerskip-llama3.2-1b"} if not part.smoke else {"tiny": "tiny"}
    for name, profile in models.items():
        kind = "auto" if name == "tiny" else "dummy"
        options: dict[str, Any] = {"load_format": kind, "device": part.device.type, "force": True}
        dtype = str(part.dtype).removeprefix("torch.")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            engine = Engine.from_profile(profile, dtype=dtype, graphs="on", **options)
            arms = {
                mode: engine.with_settings(mode=mode, policy="static")
                for mode in ("autoregressive", "single-layer", "hispec")
            }
            arms["adaptive"] = engine.with_settings(policy="adaptive")
            ids = {
                mode: [own.decoder().token_ids(p, 24 if part.smoke else 96) for p in prompts]
                for mode, own in arms.items()
            }
        stack: Any = engine.hierarchy.stack_of(-1)
        plain = Engine.from_profile(profile, dtype=dtype, graphs="off", mode="autoregressive", **options)
        alone = [plain.decoder().token_ids(p, len(own)) for p, own in zip(prompts, ids["autoregressive"], strict=True)]
        note = {
            "width": engine.environment["width"],
            "recorded": sum(work is not None for work in stack._recorded.values()),
            "still_in_fixed_shapes": stack._fixed,
            "warnings": [str(one.message)[:300] for one in told if issubclass(one.category, RuntimeWarning)],
            "modes_equal": {mode: sum(map(list.__eq__, own, ids["autoregressive"])) for mode, own in ids.items()},
            "equal_without_graphs": sum(map(list.__eq__, alone, ids["autoregressive"])),
            "of": len(prompts),
        }
        part.note(name, note)
        for mode, equal in note["modes_equal"].items():
            first = "graphs.py: whether all passes of the target have the one width"
            part.compare(f"{name}: answers of {mode} that are plain decoding's", len(prompts), equal, "", first)


def cuda_check(part: Part) -> None:
    """Compare the CUDA path in float32 with the CPU, by `cuda_check.py`, within the time of the part."""
    if part.smoke:
        part.note("left_out", "on a CPU it compares the CPU with itself")
        return
    script, output = Path(__file__).with_name("cuda_check.py"), ["--name", "cuda-check", "--output", str(part.output)]
    options = ["--device", "cuda", "--prompts", "1", "--questions", "6", "--max-new-tokens", "48"]
    subprocess.run([sys.executable, script, *options, *output], check=True, timeout=part.until - perf_counter())


def model_of(part: Part, name: str) -> tuple[Any, ModelConfig, tempfile.TemporaryDirectory[str] | None]:
    """Return a model's profile and configuration; a small one with as many layers as lab-ee on a CPU."""
    if not part.smoke:
        config = predict.config_of(name)
        return unprofiled(predict.MODELS[name], None, None, dummy=True), config, None
    folder = tempfile.TemporaryDirectory()
    profile = unprofiled(str(write_config(Path(folder.name), "llama", 16)), None, None, dummy=True)
    return profile, Checkpoint(profile.target.model, dummy=True).config, folder


def levels(part: Part, name: str) -> None:
    """Measure a model plain and with all kinds of levels, on random weights that agree as lab-ee's do."""
    profile, config, _folder = model_of(part, name)
    sixteenth = config.num_layers // 16
    agreement = None if part.smoke else f"{sixteenth}=0.68,{4 * sixteenth}=0.80,int4=0.976"
    begin = perf_counter()
    engine = Engine.from_profile(
        without_levels(profile),
        load_format="dummy",
        dtype=str(part.dtype).removeprefix("torch."),
        device=part.device.type,
        dummy_agreement=agreement,
        force=True,
        policy="static",
        mode="autoregressive",
    )
    part.note("loading", {"seconds": perf_counter() - begin, **engine.environment})
    target = engine.hierarchy.stack_of(-1)
    passes(part, name, target, config, "full")
    texts = [Random(at).choices(range(config.vocab_size), k=64) for at in range(1 if part.smoke else 6)]
    count = 12 if part.smoke else 128
    decoder = engine.decoder()
    expected = [decoder.token_ids(text, count) for text in texts]
    reduced = target.reduce_head(torch.arange(min(predict.HEAD_SIZE, config.vocab_size // 2)))
    last = HierarchyLevel("target", target, config.num_layers)
    found = {}
    for kind, wanted in predict.kinds(config):
        if not part.left(10):
            break
        best = predict.best(part.card, config, wanted, "full", 64 + count)
        lower = []
        for at, level in enumerate(wanted):
            stack: LayerStack = target if level.weights == "full" else target.quantized("int4")
            lower.append(
                HierarchyLevel(
                    f"level {at}",
                    stack,
                    int(level.layers),
                    reduced if level.head_size else None,
                    weights=None if level.weights == "full" else "int4",
                )
            )
        policy = partial(StaticPolicy, (1, *best["lengths"]))
        arm = replace(decoder, hierarchy=Hierarchy([*lower, last]), policy=policy)
        rows, equal = [], 0
        verified: dict[str, list[int]] = {}
        for turn, (text, answer) in enumerate(zip([texts[0], *texts], [expected[0], *expected], strict=True)):
            events = list(arm.decode(text, count))
            if not turn:
                continue  # it records
            seconds = events[-1].t - sum(event.seconds for event in events if isinstance(event, Prefilled))
            ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
            rows.append(len(ids) / seconds)
            equal += ids == answer
            for event in events:
                if isinstance(event, Verified):
                    known = verified.setdefault(event.level, [0, 0, 0])
                    verified[event.level] = [known[0] + event.accepted, known[1] + event.proposed, known[2] + 1]
        speed = sorted(rows)[len(rows) // 2]
        found[kind] = {
            "tokens_per_second": speed,
            "lengths": best["lengths"],
            "identical": equal,
            "of": len(texts),
            "verified": verified,
        }
        part.note("levels", found)
        first = "acceptance (verified) first, then the passes above, then the wait of the host"
        part.compare(f"{name} {kind} {best['lengths']}", best["tokens_per_second"], speed, "tok/s", first)
    if part.left(20) and not part.smoke:
        part.note("kernels", kernels(target))


def without_levels(profile: Any) -> Any:
    """Return a profile without the levels that are assumed for it: the copies are made when they are asked for."""
    return profile.model_copy(update={"draft": None, "intermediate": None})


def passes(part: Part, name: str, target: LayerStack, config: ModelConfig, weights: str) -> None:
    """Time whole passes, replayed from graphs, by their number of rows."""
    target.cache.lease = None
    target.reserve(256)
    found = {}
    with torch.inference_mode():
        for rows in ROWS[:3]:
            hidden = target.embed([5] * rows)
            times = []
            for turn in range(4 if part.smoke else 12):
                begin = perf_counter()
                target.head(target.run(hidden, 0, config.num_layers, 100)).argmax(-1).tolist()
                times += [perf_counter() - begin] * (turn > 2)
            found[rows] = 1e6 * min(times)
            expected = (
                part.card.span(config, config.num_layers, weights, rows, 128)
                + part.card.head(config, weights, None)
                + predict.Costs().wait
            )
            part.compare(
                f"{name} {weights}: a pass of {rows} rows", expected, found[rows], "us", f"{SMALL}; then {MATRIX}"
            )
    part.note(f"pass_us_{weights}", found)


def kernels(target: LayerStack) -> list[dict[str, Any]]:
    """Return the kernels of three passes of one row, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with torch.inference_mode(), profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        hidden = target.embed([5])
        for _ in range(3):
            target.run(hidden, 0, target.num_layers, 100)
        torch.cuda.synchronize()
    seen = sorted(profiled.key_averages(), key=lambda one: -one.self_device_time_total)[:25]
    return [{"kernel": one.key[:120], "calls": one.count, "us": one.self_device_time_total} for one in seen]


def quantized_target(part: Part, name: str) -> None:
    """Measure a model whose only weights are in 4 bits: its passes, and plain decoding."""
    profile, config, _folder = model_of(part, name)
    begin = perf_counter()
    engine = Engine.from_profile(
        without_levels(profile),
        load_format="dummy",
        quantization="int4",
        device=part.device.type,
        force=True,
        mode="autoregressive",
        dtype=str(part.dtype).removeprefix("torch."),
    )
    part.note("loading", {"seconds": perf_counter() - begin, **engine.environment})
    passes(part, name, engine.hierarchy.stack_of(-1), config, "int4")
    decoder, count = engine.decoder(), 12 if part.smoke else 96
    text = Random(0).choices(range(config.vocab_size), k=64)
    speeds = []
    for _ in range(3):
        events = list(decoder.decode(text, count))
        speeds.append(count / (events[-1].t - sum(event.seconds for event in events if isinstance(event, Prefilled))))
    expected = predict.best(part.card, config, [], "int4", 64 + count)["tokens_per_second"]
    part.compare(f"{name} int4, plain", expected, max(speeds), "tok/s", "the passes above")
    if not part.smoke:
        part.note("memory_gb", torch.cuda.max_memory_allocated() / 1e9)
        part.note("kernels", kernels(engine.hierarchy.stack_of(-1)))


PARTS: dict[str, Callable[[Part], None]] = {
    "machine": machine,
    "matrices": matrices,
    "attention": attention,
    "capture": capture,
    "cuda-check": cuda_check,
    "8B": lambda part: levels(part, "8B"),
    "70B": lambda part: quantized_target(part, "70B"),
    "1B": lambda part: levels(part, "1B"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", choices=PARTS, nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    until = perf_counter() + args.seconds
    for name in args.parts:
        part = Part(name, args.output, args.smoke, until)
        part.note("environment", environment(torch.get_num_threads()))
        PARTS[name](part)


if __name__ == "__main__":
    main()

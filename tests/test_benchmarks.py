"""The scripts behind published figures: the limit's formulas, the bytes that they count, and one small run of all."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import pytest
import torch

import hispec
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.state import DecodingState
from hispec.events import Drafted, Verified
from hispec.models.checkpoint import Checkpoint
from hispec.policies.base import Draft, Policy, Verify
from hispec.policies.static import StaticPolicy
from tests.support import GREEDY, fused_stack, hierarchy_of, random_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def limits():
    sys.path.insert(0, str(FOLDER))
    try:
        import limits
    finally:
        sys.path.remove(str(FOLDER))
    return limits


def sizes_of(limits, name):
    return limits.Sizes.of(Checkpoint(name, dummy=True).config, 2)


@pytest.mark.parametrize(
    ("name", "speed"), [("facebook/layerskip-llama3-8B", 293), ("facebook/layerskip-llama2-70B", 32)]
)
def test_plain_decoding_is_bounded_by_reading_the_weights(limits, name, speed):
    sizes = sizes_of(limits, name)
    assert limits.limit(4.4e12, sizes, [sizes.layers], [None], [], []) == pytest.approx(speed, rel=0.005)


def test_speculation_is_bounded_by_what_its_passes_read(limits):
    sizes = limits.Sizes(layers=10, vocab_size=100, layer=7, head_row=1, position=0)
    head, rest = 100, 10 * 7 + 100
    assert limits.limit(1.0, sizes, [10], [None], [], []) == pytest.approx(1 / rest)
    # Two drafts at exit 3 with a head of 20 tokens; the target reads 7 layers and its head: 1 + .5 tokens.
    two = 2 * (3 * 7 + 20) + 7 * 7 + head
    assert limits.limit(1.0, sizes, [3, 10], [20, None], [2], [0.5]) == pytest.approx(1.5 / two)
    # A cycle yields 1 + .5 tokens, so four waiting ones take 4 / 1.5 cycles; the target lets 1 + .8 + .64 + .512 through.
    cycle = 2 * (3 * 7 + 20) + 2 * 7 + 30
    three = 4 / 1.5 * cycle + 5 * 7 + head
    bound = limits.limit(1.0, sizes, [3, 5, 10], [20, 30, None], [2, 4], [0.5, 0.8])
    assert bound == pytest.approx(2.952 / three)
    assert limits.limit(1.0, sizes, [1, 3, 5, 10], [None] * 4, [1, 2, 4], [0.5] * 3) is None


class Skipping(Policy):
    """The lowest level drafts, one above it verifies, and the target sometimes decodes alone; so it continues."""

    def __init__(self):
        self.turn = 0

    def next_step(self, verified, may_draft):
        self.turn += 1
        if may_draft and verified[0] - verified[-1] < 3:
            return Draft(2, self.turn % (len(verified) - 1))
        waiting = [level for level in range(1, len(verified)) if verified[level] < verified[level - 1]]
        return Verify(waiting[self.turn % len(waiting)] if self.turn % 3 else len(verified) - 1)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("exits", [(), (1,), (1, 2), (2, 3)])
def test_bytes_are_those_of_the_layers_and_heads_that_run(limits, exits, static):
    model = random_model(layers=5)
    stack = fused_stack(model)
    hierarchy = hierarchy_of(stack, *exits, words=[range(0, 24, 2)] * len(exits))
    sizes = limits.Sizes.of(stack.config, 4)
    read = []
    run, head = stack.run, stack.head
    stack.run = lambda hidden, start, end, position, **options: (
        read.append((end - start) * (sizes.layer + (position + len(hidden)) * sizes.position)),
        run(hidden, start, end, position, **options),
    )[1]
    stack.head = lambda hidden, reduced=None: (
        read.append((24 if reduced is None else len(reduced.ids)) * sizes.head_row),
        head(hidden, reduced),
    )[1]
    meter = limits.Meter(hierarchy, sizes)
    state = DecodingState(hierarchy, [3, 1, 4, 1, 5], 45)
    policy = StaticPolicy((1, 2, 4)[: len(exits) + 1]) if static or not exits else Skipping()
    for event in decode(state, policy, GREEDY, StopCriteria(40)):
        meter.see(event)
        if not isinstance(event, Drafted | Verified) and len(state.tokens) == 6:
            read.clear()  # the prompt is not counted
    counted = sum(level.bytes for level in meter.levels.values())
    assert counted == sum(read)
    assert all(level.passes for level in meter.levels.values())


def test_a_small_run_gives_figures_a_table_and_a_plot(tmp_path):
    random_model("llama", layers=6, vocab=600, max_position_embeddings=512).config.save_pretrained(tmp_path)
    options = (
        "--load-format dummy --dtype float32 --agreement 0.55,0.75 --draft-exit 1 --intermediate-exit 3 --heads 300"
    )
    small = "--prompts 2 --warm-up 0 --tune 1 --tune-tokens 6 --max-new-tokens 12 --prompt-tokens 9 --draft-tokens 2"
    grid = "--validate-every 4 --single-layer-tokens 2 4"
    command = [sys.executable, FOLDER / "engine.py", "--model", tmp_path, *f"{options} {small} {grid}".split()]
    done = subprocess.run([*command, "--output", tmp_path, "--name", "small"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "small.json").read_text())
    assert record["synthetic_weights"] is True
    assert record["status"] == "complete"
    assert "synthetic weights" in done.stdout
    ours = ["hispec", "single-layer", "hispec, heads 300", "single-layer, heads 300"]
    ours += ["hispec, adaptive", "autoregressive"]
    slow = [f"{name}, transformers stack" for name in ("hispec", "single-layer", "autoregressive")]
    assert list(record["arms"]) == [*ours, *slow, "hf", "hf-early-exit", "prompt-lookup"]
    for name, arm in record["arms"].items():
        assert arm["tokens"] == 24
        assert arm["lossless"] == {"identical": 2, "of": 2, "ties": 0, "errors": 0}, name
        assert f"| {name} |" in done.stdout
    plain = record["arms"]["autoregressive"]
    assert plain["levels"]["target"]["passes"] == plain["tokens"] - 2  # the first of an answer is the prompt's
    assert plain["bytes_per_token"] == pytest.approx(record["weight_bytes"], rel=0.1)
    assert plain["share_of_limit"] > 0
    assert len(record["arms"]["single-layer"]["tuned_on"]) == 4
    assert (tmp_path / "small.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize("replay", [False, True])
def test_kinds_of_levels_are_compared_at_their_best_lengths(tmp_path, replay):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"What is {n} plus 5?"}) + "\n" for n in range(9)))
    model = Path(hispec.__file__).parent / "tiny" / "model"
    options = "--exits 1,2 --drafts 2 --waiting 4 --single 3,4 --tune-prompts 1 --tune-tokens 6 --prompts 1"
    options += " --max-new-tokens 9 --dtype float32 --name small" + " --replay" * replay
    command = [sys.executable, FOLDER / "quantized_levels.py", "--model", model, "--gsm8k", questions, *options.split()]
    done = subprocess.run([*command, "--output", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "small.json").read_text())
    arms = record["best" if replay else "arms"]
    assert arms["4-bit exit > int8 > target"]["levels"] in (
        ["1 int4", "16 int8", "16 full"],
        ["2 int4", "16 int8", "16 full"],
    )
    assert arms["exit > exit > target (hispec as published)"]["lengths"] == [2, 4]
    assert arms["int8 > target"]["lengths"] in ([3], [4])
    assert {f"{kind}, adaptive" for kind in arms if kind != "plain" and "adaptive" not in kind} < arms.keys()
    if replay:
        assert arms["plain"]["over_plain"] == 1.0
        assert record["agreement"]["16 full"] == 1.0
        return
    assert {arm["identical"] for arm in arms.values()} == {"1 of 1"}
    single = record["bases"]["the best single layer"]
    speeds = {
        kind: arm["tokens_per_second"]
        for kind, arm in arms.items()
        if arm["levels"][:-1] != [] and len(arm["levels"]) == 2
    }
    assert speeds[single] == max(speed for kind, speed in speeds.items() if "n-grams" not in kind)
    ratio = arms["int8 > target"]["over"]["plain"]["value"]
    assert ratio == pytest.approx(
        arms["int8 > target"]["tokens_per_second"] / arms["plain"]["tokens_per_second"], rel=0.01
    )


def test_every_part_of_what_a_gpu_is_measured_with_runs_on_a_cpu(tmp_path):
    """So that its half hour is not spent on mending the script."""
    command = [sys.executable, FOLDER / "gpu.py", "all", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OUT": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert set(record["status"].values()) == {"done"}
    assert record["parts"].keys() == set(", ".join(record["status"]).split(", "))
    whats = [row["what"] for row in record["compare"]]
    for what in (
        "memory read",
        "8B plain",
        "8B int4 exit > int4 > target",
        "70B int4, plain",
        "8B full: a pass of 8 rows",
    ):
        assert any(one.startswith(what) for one in whats), what
    assert all(level["identical"] == level["of"] for level in record["parts"]["8B"]["levels"].values())
    assert all(line["relative_error"] < 0.05 for line in record["parts"]["matrices"]["products"])
    assert "| what | expected | measured |" in done.stdout


@pytest.fixture
def gpu_parts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_parts

    return gpu_parts


def test_the_calls_on_a_gpu_fit_their_budgets(gpu_parts):
    import gpu

    assert [name for parts in gpu.CALLS.values() for name, _ in parts] == list(gpu_parts.PARTS)
    assert gpu.TOTAL < 600  # what a call may take
    for call, parts in gpu.CALLS.items():
        assert sum(seconds for _, seconds in parts) <= gpu.TOTAL
        assert list(gpu.jobs(call, smoke=False)) == [([name], seconds) for name, seconds in parts]


def test_the_check_of_the_cuda_path_is_cut_to_its_time(monkeypatch, gpu_parts, tmp_path):
    import gpu

    calls, given = [], dict(gpu.CALLS["1"])["cuda-check"]
    monkeypatch.setattr(gpu_parts.subprocess, "run", lambda command, **options: calls.append((command, options)))
    gpu_parts.cuda_check(gpu_parts.Part("cuda-check", tmp_path, smoke=False, until=perf_counter() + given))
    ((command, options),) = calls
    sizes = dict(pairwise(map(str, command)))
    full = {"--prompts": 4, "--questions": 16, "--max-new-tokens": 96}
    assert all(int(sizes[option]) <= size / 2 for option, size in full.items())
    assert given >= 150 and options["timeout"] <= given


def test_the_memory_is_measured_by_random_numbers_beyond_all_caches(gpu_parts):
    assert gpu_parts.READ_BYTES >= 4 << 30
    assert len(gpu_parts.random_numbers(4096, torch.float32, torch.device("cpu")).unique()) > 4000


def test_no_agreement_is_set_on_a_70b(monkeypatch, gpu_parts, tmp_path):
    """It would take minutes."""
    asked = []

    def from_profile(_profile, **options):
        asked.append(options)
        raise InterruptedError

    monkeypatch.setattr(gpu_parts.Engine, "from_profile", from_profile)
    monkeypatch.setattr(gpu_parts.Part, "device", torch.device("cuda"))
    with pytest.raises(InterruptedError):
        gpu_parts.PARTS["70B"](gpu_parts.Part("70B", tmp_path, smoke=False, until=perf_counter() + 60))
    assert [one.get("dummy_agreement") for one in asked] == [None]


def test_what_is_expected_of_gpus_follows_from_the_constants(gpu_parts):
    predict = gpu_parts.predict

    config = predict.config_of("8B")
    free = predict.Costs(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {"full": 1.0, "int4": 1.0})
    plain = predict.speed(predict.Machine(4.4, costs=free), config, [], (), "full", 512)
    assert plain == pytest.approx(293, rel=0.005)  # as the weights are read
    four = predict.speed(predict.Machine(4.4, 4, True, free), config, [], (), "full", 512)
    assert four == pytest.approx(4 * plain)
    assert predict.speed(predict.Machine(4.4, 4, False, free), config, [], (), "full", 512) == pytest.approx(plain)
    rows = predict.predictions()
    kept = json.loads((FOLDER / "results" / "predicted-gpu.json").read_text())["rows"]
    assert rows == kept  # the tables of the docs are of this model

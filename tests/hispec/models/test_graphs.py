"""Fixed shapes compute what the fused stack computes, also where they are recorded, and where recording fails."""

import warnings
from contextlib import contextmanager
from itertools import count, pairwise
from random import Random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hispec import Engine
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.logits import to_host
from hispec.decoding.state import DecodingState
from hispec.errors import UsageError
from hispec.events import Drafted, Prefilled, Verified
from hispec.limits import CACHE_STEP as STEP
from hispec.models.fused_weights import FusedWeights
from hispec.models.graphs import LONGEST_RUN, ONE_WIDTH, WIDTHS, GraphedStack, with_graphs
from hispec.models.transformers_stack import TransformersStack
from hispec.models.translator import Translator
from hispec.policies.base import Draft, Policy, Verify
from hispec.policies.static import StaticPolicy
from tests.hispec.models.test_fused_stack import TEXT, assert_same, model_of, run_both
from tests.support import GREEDY, PROMPT, decode_ids, fused_stack, greedy_by_hand, hierarchy_of, random_model


class Recording(TorchDispatchMode):
    """A CUDA graph on a CPU: it records every kernel with the memory that it reads and writes, and runs them on the
    same memory again. Numbers that the host put in stay as they were, and nothing is computed while it records.
    """

    def __init__(self, stack):
        super().__init__()
        self.stack, self.kernels = stack, []

    def __call__(self, work):
        recording = Recording(self.stack)
        kept = [value for value in vars(self.stack).values() if isinstance(value, torch.Tensor)]
        kept += self.stack.cache.layers
        before = [tensor.clone() for tensor in kept]
        with recording:
            work()
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)
        self.kernels.append(len(recording.kernels))
        return recording.replay

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        assert kernel is not torch.ops.aten._local_scalar_dense.default, "asks for a value"
        result = kernel(*args, **kwargs or {})
        self.kernels.append((kernel, args, kwargs or {}, result))
        return result

    def replay(self):
        for kernel, args, kwargs, result in self.kernels:
            for then, now in zip(tree_leaves(result), tree_leaves(kernel(*args, **kwargs)), strict=True):
                if isinstance(then, torch.Tensor) and then.data_ptr() != now.data_ptr():
                    then.copy_(now)


def fixed(model, *, recorded=False):
    """The stack of a model in fixed shapes, and what records it."""
    stack = GraphedStack.of(fused_stack(model))
    recording = Recording(stack)
    if recorded:
        stack._record = recording
    return stack, recording


@pytest.fixture(autouse=True)
def short_lengths(monkeypatch):
    """Texts as short as those of these tests go through several lengths."""
    monkeypatch.setattr("hispec.models.graphs.SHORTEST", 8)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3 biases", "tied", "one key for all"])
def variant_model(request):
    return model_of(request.param)


@pytest.fixture(params=[False, True], ids=["not recorded", "recorded"])
def pair(variant_model, request):
    """The fused stack in fixed shapes, and as it is."""
    stacks = fixed(variant_model, recorded=request.param)[0], fused_stack(variant_model)
    for stack in stacks:
        stack.reserve(len(TEXT))
    return stacks


@torch.inference_mode()
def test_spans_of_every_width_and_length_equal_those_of_the_fused_stack(pair):
    starts = [0, 3, *(3 + sum(range(1, width + 1)) for width in range(1, 10)), len(TEXT)]
    for _ in range(3):  # for the first time, recorded, replayed
        for start, end in pairwise(starts):
            run_both(pair, start, end)
    run_both(pair, 0, len(TEXT), [(0, 4)])
    run_both(pair, len(TEXT) - WIDTHS[-1], len(TEXT))


@torch.inference_mode()
def test_rewinding_anywhere_leaves_nothing_behind(pair):
    rng = Random(1)
    run_both(pair, 0, 40, text=[7] * 40)
    for layer in pair[0].cache.layers:
        layer[:, :, :, 40:] = 1e30  # as if a longer text had been there
    position = 0
    for _ in range(40):
        width = rng.randint(1, 8)
        run_both(pair, position, position + width, [(0, 2), (2, 4)])
        position = rng.randint(0, min(position + width, len(TEXT) - 8))


@torch.inference_mode()
def test_a_cache_that_grows_keeps_what_it_holds_and_forgets_recordings():
    model = random_model("qwen3", max_position_embeddings=4 * STEP)
    stack, recording = fixed(model, recorded=True)
    other = fused_stack(model)
    text = Random(2).choices(range(24), k=2 * STEP)
    stack.reserve(10)
    other.reserve(len(text))
    for start in range(6):
        run_both((stack, other), start, start + 1, text=text)
    assert recording.kernels
    layers = list(stack.cache.layers)
    stack.reserve(len(text))
    assert stack.cache.layers[0] is not layers[0] and not stack._recorded
    run_both((stack, other), 6, len(text) - 5, text=text)
    for start in range(len(text) - 5, len(text)):
        run_both((stack, other), start, start + 1, text=text)
    run_both((stack, other), len(text) - 3, len(text), text=text)  # the row that pads these has no place in the text


def test_what_is_no_number_does_not_outlive_its_text():
    stack, _ = fixed(model_of("llama"))
    stack.reserve(20)
    with torch.inference_mode():
        stack.run(torch.full((6, 32), torch.nan), 0, 4, 0)
    stack.clear()  # as a decoding does that ends so
    for rows in (2, 3, 5):  # the last two are padded with rows that held what is no number
        assert stack.run(stack.embed(TEXT[:rows]), 0, 4, 0).isfinite().all()


class Exhausted(TorchDispatchMode):
    """Memory that runs out after a number of kernels."""

    def __init__(self, kernels):
        super().__init__()
        self.left = kernels

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        return kernel(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["fused", "fixed", "recorded", "transformers"])
@torch.inference_mode()
def test_an_answer_goes_on_as_it_was_wherever_memory_runs_out_while_more_is_reserved(kind):
    model = random_model("qwen3", max_position_embeddings=4 * STEP, layers=2)
    first, second = (Random(seed).choices(range(24), k=2 * STEP) for seed in (2, 3))
    expected = fused_stack(model)
    expected.reserve(len(first))
    make = {"fused": lambda: fused_stack(model), "transformers": lambda: TransformersStack(model, "random")}

    def write(stack, start, text):
        spans = [(at, at + 1) for at in range(start, start + 8)]
        for begin, end in (*spans, (start + 8, start + 11)):
            run_both((stack, expected), begin, end, [(0, 1), (1, 2)], text)

    for kernels in count():
        stack = make.get(kind, lambda: fixed(model, recorded=kind == "recorded")[0])()
        stack.reserve(10)
        write(stack, 0, first)
        try:
            with Exhausted(kernels):
                stack.reserve(len(first))
        except RuntimeError:
            write(stack, 11, first)
            stack.reserve(20)  # the next answer is a short one
            write(stack, 0, second)
        else:
            assert kernels > 4
            break
        stack.reserve(len(second))
        run_both((stack, expected), 11, len(second) - 20, [(0, 1), (1, 2)], second)
        write(stack, len(second) - 20, second)


@pytest.mark.parametrize("recorded", [False, True])
def test_hierarchical_decoding_writes_the_same_ids(variant_model, recorded):
    expected = greedy_by_hand(variant_model, 24)
    stack, recording = fixed(variant_model, recorded=recorded)
    for exits, periods in [((), (1,)), ((1,), (1, 3)), ((1, 2), (1, 2, 4)), ((1, 2, 3), (1, 4, 2, 5))]:
        assert decode_ids(hierarchy_of(stack, *exits), periods, max_new_tokens=24) == expected
    hierarchy = hierarchy_of(stack, 1, 2, ngrams=(2, 4), words=[range(0, 24, 2)])
    state = DecodingState(hierarchy, PROMPT, len(PROMPT) + 24)
    for _ in decode(state, StaticPolicy((1, 1, 2, 4)), GREEDY, StopCriteria(24)):
        pass
    assert state.tokens[len(PROMPT) : state.committed] == expected
    assert bool(recording.kernels) == recorded


class Wandering(Policy):
    """Drafts runs of any length at any level and verifies at any, at random."""

    def __init__(self, levels, seed):
        self.levels, self.rng = levels, Random(seed)

    def next_step(self, verified, may_draft):
        waiting = [j for j in range(1, self.levels) if verified[j] < verified[j - 1]]
        if may_draft and (not waiting or self.rng.random() < 0.5):
            return Draft(self.rng.randint(1, 6), self.rng.randrange(self.levels - 1))
        return Verify(self.rng.choice(waiting))


def decode_wandering(stack, words, seed, ends, count=30):
    """Events of a decoding, times left out, with the state checked against a fresh prefill after each."""
    hierarchy = hierarchy_of(stack, 1, 2, 3, words=[words])
    state = DecodingState(hierarchy, PROMPT, len(PROMPT) + count)
    seen = []
    for event in decode(state, Wandering(len(hierarchy), seed), GREEDY, StopCriteria(count, ends)):
        told = {name: getattr(event, name, None) for name in ("level", "token_ids", "accepted", "correction")}
        seen.append((type(event).__name__, told, list(state.tokens), list(state.verified), list(state.frontier)))
        for level in range(len(hierarchy)):
            assert_as_fresh(state, level)
    return seen


def assert_as_fresh(state, level):
    """Keys, values and carried states of a level equal those of a text that is run at once."""
    upto, hierarchy = state.frontier[level], state.hierarchy
    above = hierarchy.above[level]
    if upto == 0:
        return
    fresh = fused_stack(MODEL)
    fresh.reserve(upto)
    with torch.inference_mode():
        hidden = fresh.run(fresh.embed(state.tokens[:upto]), 0, hierarchy.levels[level].exit_layer, 0)
    stack = hierarchy.stack_of(level)
    for layer in range(hierarchy.first_layer(level), hierarchy.levels[level].exit_layer):
        for own, other in zip(stack.cache.read(layer, upto), fresh.cache.read(layer, upto), strict=True):
            assert_same(own, other)
    carried = state.carried(level)
    if above is not None and state.frontier[above] < upto:
        assert carried is not None
        assert_same(carried, hidden[state.frontier[above] :])
    else:
        assert carried is None or len(carried) == 0


MODEL = random_model("llama", seed=1)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_on_the_device_is_what_step_by_step_writes(seed):
    ends = () if seed % 2 else (greedy_by_hand(MODEL, 30)[20],)
    words = range(0, 24, 2) if seed < 2 else range(24)
    expected = decode_wandering(fused_stack(MODEL), words, seed, ends)
    for recorded in (False, True):
        assert decode_wandering(fixed(MODEL, recorded=recorded)[0], words, seed, ends) == expected


def test_a_run_reads_through_translators():
    torch.manual_seed(3)
    translator = Translator(torch.randn(32, 32) / 8, torch.randn(32))

    def write(stack, translator):
        levels = [Level("draft", stack, 2, translator=translator), Level("target", stack, 4)]
        state = DecodingState(Hierarchy(levels), PROMPT, len(PROMPT) + 20)
        with torch.inference_mode():
            state.write(0, 12, ())
        return state.tokens

    found = write(fixed(MODEL)[0], translator)
    assert found == write(fused_stack(MODEL), translator) != write(fused_stack(MODEL), None)


@pytest.mark.parametrize("count", [1, 2, 5, LONGEST_RUN + 1, 2 * LONGEST_RUN + 3])
def test_tokens_after_an_end_are_forgotten(count):
    def write(stack, level, ends):
        state = DecodingState(hierarchy_of(stack, 1, 2), PROMPT, len(PROMPT) + 100)
        with torch.inference_mode():
            state.write(level, count, ends)
        return state

    for level in (0, 1):
        free = write(fused_stack(MODEL), level, ()).tokens[len(PROMPT) :]
        for end in {*free[:6], free[-1]}:
            expected = write(fused_stack(MODEL), level, (end,))
            found = write(fixed(MODEL)[0], level, (end,))
            assert (found.tokens, found.verified, found.frontier) == (
                expected.tokens,
                expected.verified,
                expected.frontier,
            )
            assert_as_fresh(found, level)


def test_logits_that_are_no_numbers_are_told_and_leave_a_sound_state():
    model = random_model("llama")
    stack, _ = fixed(model)
    state = DecodingState(hierarchy_of(stack, 2), PROMPT, len(PROMPT) + 20)
    with torch.inference_mode():
        state.write(0, 2, ())
        stack._weights.norm.fill_(torch.nan)
        before = list(state.tokens)
        with pytest.raises(UsageError, match="logits are not numbers"):
            state.write(0, 4, ())
    assert state.tokens == before


class Watched(Policy):
    """The paper's, wanting to know how sure the draft is of each token."""

    features = ("margin",)

    def __init__(self):
        self.static, self.told = StaticPolicy((1, 4, 4)), 0

    def next_step(self, verified, may_draft):
        return self.static.next_step(verified, may_draft)

    def on_draft(self, level, confidence):
        self.told += 1
        return self.told % 3 != 0


def test_a_policy_that_wants_confidence_is_told_of_every_token():
    runs = []
    for stack in (fused_stack(MODEL), fixed(MODEL)[0]):
        policy = Watched()
        state = DecodingState(hierarchy_of(stack, 1, 2), PROMPT, len(PROMPT) + 20)
        for _ in decode(state, policy, GREEDY, StopCriteria(20)):
            pass
        runs.append((policy.told, state.tokens))
    assert runs[0] == runs[1] and runs[0][0] > 0


def test_a_recording_that_fails_is_told_of_once_and_decoding_goes_on():
    expected = greedy_by_hand(MODEL, 24)
    stack, _ = fixed(MODEL)
    tried = []

    def fails(work):
        tried.append(work)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    stack._record = fails
    with pytest.warns(
        RuntimeWarning, match="no CUDA graph .*: operation not permitted when stream is capturing$"
    ) as told:
        for exits, periods in [((1,), (1, 3)), ((1, 2), (1, 3, 4))]:
            assert decode_ids(hierarchy_of(stack, *exits), periods, max_new_tokens=24) == expected
    assert len(told) == len(tried) == 1


@torch.inference_mode()
def test_nothing_waits_for_a_value():
    """On a device without values, where asking for one raises."""
    shape = fused_stack(MODEL).config
    stack = GraphedStack(shape, FusedWeights(shape, torch.bfloat16, torch.device("meta")), "no values")
    stack.reserve(100)
    for rows, position in ((1, 0), (5, 3), (32, 60), (40, 60)):
        assert stack.run(stack.embed([1] * rows), 0, 4, position).shape == (rows, 32)
    token = torch.zeros(1, dtype=torch.long, device="meta")
    tokens, highest, hidden = stack.write_run(token, 2, 5, 40, lambda hidden: stack.head(hidden).max(-1))
    assert (tokens.shape, highest.shape, hidden.shape) == ((40,), (40,), (40, 32))


class Counting:
    """Counts how often the host reads values of tensors, which on a device is a wait; `to_host` counts as one."""

    def __init__(self, monkeypatch):
        self.reads, self.inside = 0, False
        for name in ("tolist", "item", "cpu", "__bool__", "__int__", "__float__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, self.counting(getattr(torch.Tensor, name)))
        counted = self.counting(to_host)
        for module in ("logits", "state"):
            monkeypatch.setattr(f"hispec.decoding.{module}.to_host", counted)

    def counting(self, read):
        def counted(*arguments):
            outermost, self.inside = not self.inside, True
            try:
                return read(*arguments)
            finally:
                self.inside = not outermost
                self.reads += outermost

        return counted


@pytest.mark.parametrize("words", [None, range(0, 24, 2)])
@pytest.mark.parametrize("policy", ["static", "wanting confidence"])
def test_the_host_waits_once_for_each_run_of_drafts_and_each_verification(monkeypatch, policy, words):
    stack = fixed(MODEL)[0]
    state = DecodingState(hierarchy_of(stack, 1, 2, words=[words] * 2), PROMPT, len(PROMPT) + 40)
    counting, waits = Counting(monkeypatch), 0
    for event in decode(state, StaticPolicy((1, 3, 6)) if policy == "static" else Watched(), GREEDY, StopCriteria(40)):
        if isinstance(event, Drafted):
            waits += 1 if policy == "static" else len(event.token_ids)  # the policy decides after each token
        waits += isinstance(event, Verified | Prefilled)
    assert counting.reads == waits > 10


@torch.inference_mode()
def test_attention_keeps_from_cudnn_and_is_given_masks_whose_rows_lie_in_memory(monkeypatch):
    """A single row is seen by a group of heads, whose view of its mask would have no stride."""
    inside, masks, attend = [], [], torch.nn.functional.scaled_dot_product_attention

    @contextmanager
    def watched_choice(device):
        inside.append(device)
        yield
        inside.pop()

    def watched(query, keys, values, **options):
        assert inside == [torch.device("cpu")]
        masks.append(options["attn_mask"])
        return attend(query, keys, values, **options)

    monkeypatch.setattr("hispec.models.fused_stack.without_cudnn", watched_choice)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    stack, _ = fixed(MODEL)
    stack.reserve(40)
    for rows in (1, 2, 5):
        stack.run(stack.embed(TEXT[:rows]), 0, 4, 0)
    assert {len(mask) for mask in masks} == {width * stack._group for width in (1, 2, 8)} and stack._group > 1
    assert all(mask.stride() == (mask.shape[1], 1) for mask in masks)


def test_a_text_that_grows_turn_by_turn_seldom_drops_what_is_recorded():
    """Recordings go whenever the cache grows."""
    stack, _ = fixed(random_model("llama", max_position_embeddings=1 << 13))
    sizes = set()
    for positions in range(40, 2500, 60):
        stack.reserve(positions)
        sizes.add(stack.cache.positions)
    assert sizes == {1 << power for power in range(8, 13)}


def test_few_recordings_are_kept_and_the_last_used_are_among_them(monkeypatch):
    monkeypatch.setattr("hispec.models.graphs.MAX_RECORDED", 3)
    stack, recording = fixed(MODEL, recorded=True)
    stack.reserve(100)
    with torch.inference_mode():
        rows = stack.embed(TEXT[:1])
        for position in (0, 0, 10, 0, 20, 0, 40, 0, 0):
            stack.run(rows, 0, 4, position)
    assert len(stack._recorded) == 3
    assert len(recording.kernels) == 1


@pytest.mark.parametrize("width", ["auto", 8, 40])
def test_one_width_needs_one_recording_for_each_span_and_length(width):
    """Whatever the hierarchy asks for: the ids are then those of the target alone, to the last bit of bfloat16."""
    stack, recording = fixed(random_model(seed=1, max_position_embeddings=512).to(torch.bfloat16), recorded=True)
    stack.prepare(width)
    rows = ONE_WIDTH if width == "auto" else width
    assert stack.rows.describe() == rows
    asked, work = set(), stack._run_span
    stack._run_span = lambda *span: asked.add(span) or work(*span)
    written = []
    for exits, periods in [((), (1,)), ((1,), (1, 3)), ((1,), (1, 12)), ((1, 2), (1, 2, 4)), ((1, 2, 3), (1, 4, 2, 5))]:
        written.append(decode_ids(hierarchy_of(stack, *exits), periods, max_new_tokens=60))
    assert written == [written[0]] * len(written)
    assert {run_rows for _, _, run_rows, _ in asked} == {rows}
    spans = [key[:2] + key[3:] for _, key in stack._recorded if len(key) == 4 and isinstance(key[0], int)]
    assert len(spans) == len(set(spans)) > 4 and recording.kernels


def test_a_gpu_takes_graphs_by_itself_and_a_cpu_fixed_shapes_if_asked():
    stack = fused_stack(MODEL)
    assert with_graphs(stack, "auto") is stack and with_graphs(stack, "off") is stack
    assert isinstance(with_graphs(stack, "on"), GraphedStack)
    other = TransformersStack(MODEL, "random")
    assert with_graphs(other, "on") is other


def test_the_shipped_model_answers_the_same_in_fixed_shapes():
    question = "Ann has 3 apples and buys 4 more. How many apples does she have now?"
    plain = Engine.from_profile("tiny", max_new_tokens=60)
    for value in ("on", "1"):
        engine = Engine.from_profile("tiny", max_new_tokens=60, environ={"HISPEC_GRAPHS": value})
        assert isinstance(engine.hierarchy.stack_of(-1), GraphedStack)
        assert engine.generate(question).token_ids == plain.generate(question).token_ids
    assert plain.environment["graphs"] is False and engine.environment["graphs"] is True
    off = Engine.from_profile("tiny", environ={"HISPEC_GRAPHS": "0"})
    assert not isinstance(off.hierarchy.stack_of(-1), GraphedStack)
    with pytest.raises(UsageError, match="HISPEC_GRAPHS"):
        Engine.from_profile("tiny", environ={"HISPEC_GRAPHS": "perhaps"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.generate(question)

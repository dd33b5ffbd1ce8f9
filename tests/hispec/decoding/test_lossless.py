"""The promise: hierarchical decoding writes what the target alone writes, and its state is never stale."""

from itertools import combinations, product

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from hispec.adaptation import performance_model
from hispec.decoding import engine
from hispec.decoding.drafters import LevelDrafter, NgramDrafter
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.errors import UsageError
from hispec.events import Committed, Drafted, Finished, Verified
from hispec.models.transformers_stack import TransformersStack
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Verify
from hispec.policies.static import StaticPolicy
from tests.support import GREEDY, PROMPT, decode_ids, greedy_by_hand, hierarchy_of, random_model

LENGTH = 12
PENALTY = Processors([RepetitionPenaltyLogitsProcessor(1.001)])
HIERARCHIES = [(), *((e,) for e in (1, 2, 3)), *combinations((1, 2, 3), 2), (1, 2, 3)]
PERIODS = [(1, 1), (1, 3), (2, 1), (2, 4), (3, 5)]


def all_settings():
    for exits in HIERARCHIES:
        for n_d, n_i in PERIODS if exits else [(1, 1)]:
            yield (
                exits,
                (1, n_d, n_d + 1, n_i)[-len(exits) - 1 :] if len(exits) == 3 else (1, n_d, n_i)[: len(exits) + 1],
            )


@pytest.fixture(scope="module")
def reference(model):
    return greedy_by_hand(model, LENGTH)


def test_levels_disagree_so_that_rejections_happen(model):
    seen = {"accepted": 0, "rejected": 0}

    def count(_, event):
        if isinstance(event, Verified):
            seen["accepted"] += event.accepted
            seen["rejected"] += event.accepted < event.proposed

    decode_ids(hierarchy_of(model, 1, 2), (1, 2, 4), max_new_tokens=60, after_event=count)
    assert seen["accepted"] > 5 and seen["rejected"] > 5


def test_every_setting_writes_what_the_target_writes_with_a_state_as_fresh_as_a_prefill(model, reference):
    for exits, periods in all_settings():
        hierarchy = hierarchy_of(model, *exits)
        ids = decode_ids(hierarchy, periods, max_new_tokens=LENGTH, after_event=assert_fresh)
        assert ids == reference, (exits, periods)


def test_eos_at_every_offset(model, reference):
    for exits, periods in all_settings():
        hierarchy = hierarchy_of(model, *exits)
        for eos in set(reference):
            expected = reference[: reference.index(eos) + 1]
            assert decode_ids(hierarchy, periods, eos_ids=(eos,)) == expected, (exits, periods, eos)


def test_the_first_of_several_eos_ends_the_text(model, reference):
    ids = list(dict.fromkeys(reference))
    for exits, periods in all_settings():
        for eos in combinations((ids[1], ids[len(ids) // 2], ids[-1]), 2):
            expected = reference[: min(map(reference.index, eos)) + 1]
            assert decode_ids(hierarchy_of(model, *exits), periods, eos_ids=eos) == expected, (exits, periods, eos)


def test_every_small_length(model, reference):
    for exits, periods in all_settings():
        hierarchy = hierarchy_of(model, *exits)
        for length in range(1, 9):
            assert decode_ids(hierarchy, periods, max_new_tokens=length) == reference[:length], (exits, periods)


@pytest.mark.parametrize("drafts", ["all right", "all wrong", "alternating"])
def test_drafts_forced_right_and_wrong(model, reference, drafts, monkeypatch):
    """Whatever is drafted, and however rarely it is verified, the target decides."""
    right = dict(enumerate(reference, start=len(PROMPT)))

    class Forced(LevelDrafter):
        def draft(self, state, step, room):
            before = len(state.tokens)
            if before == len(PROMPT):  # the prefill's own token is the target's
                return super().draft(state, step, room)
            for at in range(before, before + min(step.tokens, room)):
                state.logits(self.level, at - 1, at)  # a draft runs what it drafts from
                wrong = drafts == "all wrong" or (drafts == "alternating" and at % 2)
                state.append((right[at] + wrong) % 24, self.level)
            return tuple(state.tokens[before:])

    monkeypatch.setattr(engine, "LevelDrafter", Forced)
    for exits, periods in all_settings():
        if not exits:
            continue
        state = DecodingState(hierarchy_of(model, *exits), PROMPT, len(PROMPT) + LENGTH)
        events = list(decode(state, StaticPolicy(periods), GREEDY, StopCriteria(LENGTH)))
        ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
        assert ids == reference, (exits, periods)


def test_a_policy_may_skip_the_intermediate_and_let_any_level_verify_at_any_time(model, reference):
    class Whimsical(StaticPolicy):
        def next_step(self, verified, may_draft):
            waiting = [j for j in range(1, len(verified)) if verified[j] < verified[0]]
            if waiting and (not may_draft or torch.rand((), generator=rng) < 0.4):
                return Verify(waiting[int(torch.randint(len(waiting), (), generator=rng))])
            return super().next_step(verified, may_draft)

    for seed, exits in product(range(10), [(1, 2), (1, 2, 3)]):
        rng = torch.Generator().manual_seed(seed)
        state = DecodingState(hierarchy_of(model, *exits), PROMPT, len(PROMPT) + LENGTH)
        ids = []
        for event in decode(state, Whimsical((1, 9, 9, 9)[: len(exits) + 1]), GREEDY, StopCriteria(LENGTH)):
            ids += event.token_ids if isinstance(event, Committed) else ()
            assert_fresh(state, event)
        assert ids == reference


@pytest.mark.parametrize("rule", [GREEDY, Sampler(Sampling(processors=PENALTY))], ids=["at once", "one by one"])
def test_a_draft_is_one_run_that_ends_with_the_text_and_at_every_limit(model, rule):
    small = TransformersStack(random_model("llama", seed=7, layers=2), "small")
    target = TransformersStack(model, "target")
    for eos, context, length in product(range(0, 24, 4), (len(PROMPT) + 7, 128), (6, LENGTH)):
        small.context = context
        state = DecodingState(
            Hierarchy([Level("draft", small, 2), Level("target", target, 4)]), PROMPT, len(PROMPT) + length
        )
        for event in decode(state, StaticPolicy((1, 4)), rule, StopCriteria(length, (eos,))):
            if isinstance(event, Drafted) and event.level == "draft":
                room = min(len(PROMPT) + length, context) - (len(state.tokens) - len(event.token_ids))
                assert len(event.token_ids) == min(4, room) or event.token_ids[-1] == eos
                assert eos not in event.token_ids[:-1]


def test_interrupting_between_any_two_steps_keeps_only_validated_tokens(model, reference):
    hierarchy = hierarchy_of(model, 1, 2)
    for steps in range(1, 12):
        left = iter([False] * steps + [True] * 99)
        state = DecodingState(hierarchy, PROMPT, len(PROMPT) + LENGTH)
        events = list(decode(state, StaticPolicy((1, 2, 4)), GREEDY, StopCriteria(LENGTH, (), lambda: next(left))))  # noqa: B023
        ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
        assert ids == reference[: len(ids)]
        assert isinstance(events[-1], Finished) and events[-1].finish_reason == "interrupted"
        assert decode_ids(hierarchy, (1, 2, 4), after_event=assert_fresh) == reference  # on the cache it left behind


def test_a_frontier_that_is_not_lowered_is_caught(monkeypatch):
    """Break the rule on purpose: the check above must notice, or it checks nothing."""

    def forgetful(self, length):
        del self.tokens[length:]
        self.verified = [min(count, length) for count in self.verified]

    model = random_model("llama", seed=0)
    monkeypatch.setattr(DecodingState, "rewind", forgetful)
    with pytest.raises(AssertionError):
        assert decode_ids(hierarchy_of(model, 1, 2), (1, 2, 4), after_event=assert_fresh) == greedy_by_hand(
            model, LENGTH
        )


def assert_fresh(state, event):
    """Every level's KV and carried hidden states equal those of a fresh prefill of x[0:frontier]."""
    hierarchy = state.hierarchy
    (stack,) = hierarchy.stacks
    assert max(state.frontier) < len(state.tokens), event
    lowest = int(hierarchy.ngrams is not None)
    assert state.frontier[lowest:] == sorted(state.frontier[lowest:], reverse=True)
    assert state.verified == sorted(state.verified, reverse=True)
    if not state.frontier[lowest]:
        return
    fresh = TransformersStack(stack.model, "fresh")
    fresh.reserve(state.frontier[lowest])
    hidden = fresh.embed(state.tokens[: state.frontier[lowest]])
    for j, level in list(enumerate(hierarchy.levels))[lowest:]:
        first, upto = hierarchy.first_layer(j), state.frontier[j]
        hidden = fresh.run(hidden, first, level.exit_layer, 0)
        for layer in range(first, level.exit_layer):
            for known, expected in zip(stack.cache.read(layer, upto), fresh.cache.read(layer, upto), strict=True):
                torch.testing.assert_close(known, expected, atol=1e-4, rtol=1e-4)
        if (above := hierarchy.above[j]) is not None:
            expected, carried = hidden[state.frontier[above] : upto], state.carried(j)
            if carried is None:
                assert not len(expected)
            else:
                torch.testing.assert_close(carried, expected, atol=1e-4, rtol=1e-4)


def test_n_grams_and_lenient_lower_levels_change_nothing(model, reference):
    for exits, periods in all_settings():
        for rule in (GREEDY, Sampler(Sampling(), lower_top_k=3)):
            hierarchy = hierarchy_of(model, *exits, ngrams=(2, 4))
            state = DecodingState(hierarchy, PROMPT, len(PROMPT) + LENGTH)
            policy = StaticPolicy((1, 1, *periods[1:]))
            ids = []
            for event in decode(state, policy, rule, StopCriteria(LENGTH)):
                ids += event.token_ids if isinstance(event, Committed) else ()
                if periods[1:] == (2, 4):
                    assert_fresh(state, event)
            assert ids == reference, (exits, periods)


@pytest.mark.parametrize("drafted", ["right", "wrong"])
def test_n_grams_past_an_end_of_text_are_never_written(model, reference, drafted, monkeypatch):
    class Knows(NgramDrafter):
        def _find(self, tokens):
            ahead = reference[len(tokens) - len(PROMPT) :]
            return 1, ahead if drafted == "right" else [eos, *ahead]

    monkeypatch.setattr(engine, "NgramDrafter", Knows)
    for exits, periods in all_settings():
        for eos in set(reference):
            state = DecodingState(hierarchy_of(model, *exits, ngrams=(2, 4)), PROMPT, len(PROMPT) + LENGTH)
            events = list(decode(state, StaticPolicy((1, 1, *periods[1:])), GREEDY, StopCriteria(LENGTH, (eos,))))
            for event in events:
                assert not isinstance(event, Drafted) or eos not in event.token_ids[:-1]
            ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
            assert ids == reference[: reference.index(eos) + 1], (exits, periods, eos)


def test_a_second_decoding_on_the_same_model_ends_the_first_aloud(model, reference):
    hierarchy = hierarchy_of(model, 1, 2)
    first, second = (DecodingState(hierarchy, PROMPT, len(PROMPT) + LENGTH) for _ in range(2))
    with pytest.raises(UsageError, match="another answer was started"):
        list(decode(first, StaticPolicy((1, 2, 4)), GREEDY, StopCriteria(LENGTH)))
    events = decode(second, StaticPolicy((1, 2, 4)), GREEDY, StopCriteria(LENGTH))
    assert [token for event in events if isinstance(event, Committed) for token in event.token_ids] == reference


def test_ids_that_the_target_does_not_have_are_refused(model):
    for strange in (24, 99, -1):
        with pytest.raises(UsageError, match=f"token id {strange} of the prompt"):
            DecodingState(hierarchy_of(model, 1), [*PROMPT, strange], 20)


def test_beyond_the_context_of_a_smaller_model_the_target_writes_alone(model, reference):
    for context in range(len(PROMPT), len(PROMPT) + LENGTH + 2):
        small = TransformersStack(random_model("llama", seed=7, layers=2), "small")
        small.context = context
        large = TransformersStack(random_model("llama", seed=8, layers=2), "large")
        target = TransformersStack(model, "target")
        for levels in (
            [Level("draft", small, 2), Level("target", target, 4)],
            [Level("draft", small, 1), Level("intermediate", target, 2), Level("target", target, 4)],
            [Level("draft", large, 1), Level("intermediate", small, 2), Level("target", target, 4)],
            [Level.of_ngrams(2, 4), Level("draft", small, 2), Level("target", target, 4)],
        ):
            hierarchy = Hierarchy(levels)
            state = DecodingState(hierarchy, PROMPT, len(PROMPT) + LENGTH)
            periods = (1, 2, 4)[: len(levels)]
            ids = []
            for event in decode(state, StaticPolicy(periods), GREEDY, StopCriteria(LENGTH)):
                ids += event.token_ids if isinstance(event, Committed) else ()
                for level, frontier in zip(levels, state.frontier, strict=True):
                    assert level.stack is not small or frontier <= max(context, len(PROMPT))
            assert ids == reference


def test_logits_that_are_not_numbers_are_an_error_not_a_token():
    broken = random_model("llama")
    broken.lm_head.weight.data.fill_(torch.nan)
    for rule in (GREEDY, Sampler(Sampling(1.0), GumbelNoise(0, 24, torch.device("cpu")))):
        state = DecodingState(hierarchy_of(broken, 1), PROMPT, 20)
        with pytest.raises(UsageError, match="the target level gives no token a probability"):
            list(decode(state, StaticPolicy((1, 2)), rule, StopCriteria(4)))


def test_n_grams_are_taken_from_a_text_that_repeats():
    """A prompt that says everything twice: some draft must be accepted, or the level does nothing."""
    model = random_model("llama", seed=0)
    prompt = [*PROMPT, *greedy_by_hand(model, 20), *PROMPT]
    state = DecodingState(hierarchy_of(model, 2, ngrams=(3, 4)), prompt, len(prompt) + 12)
    events = list(decode(state, StaticPolicy((1, 1, 4)), GREEDY, StopCriteria(12)))
    accepted = sum(event.accepted for event in events if isinstance(event, Verified) and event.level == "draft")
    ids = [token for event in events if isinstance(event, Committed) for token in event.token_ids]
    assert accepted and ids == greedy_by_hand(model, 12, prompt)


@pytest.mark.parametrize("vocab", [20, 24, 30])
def test_other_models_draft_and_verify(model, reference, vocab):
    """Smaller and larger vocabularies than the target's: missing tokens have no probability, and surplus ones are never
    drawn.
    """
    small, middle = (TransformersStack(random_model("llama", seed=s, layers=2, vocab=vocab), "other") for s in (7, 8))
    for n_d, n_i in PERIODS:
        for make in (
            lambda target: [Level("draft", small, 2), Level("intermediate", target, 2), Level("target", target, 4)],
            lambda target: [Level("draft", small, 2), Level("intermediate", middle, 2), Level("target", target, 4)],
            lambda target: [Level("draft", small, 1), Level("intermediate", small, 2), Level("target", target, 4)],
        ):
            hierarchy = Hierarchy(make(TransformersStack(model, "target")))
            for eos in ((), (reference[-2],)):
                expected = reference[: reference.index(eos[0]) + 1] if eos else reference
                assert decode_ids(hierarchy, (1, n_d, n_i), eos_ids=eos) == expected


@pytest.mark.parametrize("words", [[range(0, 24, 2)], [range(7), range(20)], [range(7), range(7, 24)], [None, {3}]])
def test_levels_that_lack_words_change_nothing(model, reference, words):
    for exits, periods in all_settings():
        hierarchy = hierarchy_of(model, *exits, words=words[: len(exits)])
        assert decode_ids(hierarchy, periods, after_event=assert_fresh) == reference, (exits, periods)


def test_a_reduced_head_never_drafts_what_it_lacks(model):
    known = {1, 4, 9, 16}
    drafted = []

    def look(_, event):
        drafted.extend(event.token_ids if isinstance(event, Drafted) else ())

    decode_ids(hierarchy_of(model, 1, words=[known]), (1, 3), after_event=look)
    assert drafted and set(drafted) <= known


def test_the_target_keeps_its_whole_head(model):
    stack = TransformersStack(model, "random")
    with pytest.raises(ValueError, match="whole head"):
        Hierarchy([Level("target", stack, 4, stack.reduce_head(torch.tensor([1, 2])))])


def test_a_span_that_fails_is_not_counted_as_run(model, monkeypatch):
    state = DecodingState(hierarchy_of(model, 1, 2), PROMPT, 20)
    state.logits(0, 1, 2)
    before = list(state.frontier)
    monkeypatch.setattr(TransformersStack, "run", lambda *_, **__: [].pop())
    with pytest.raises(IndexError):
        state.logits(1, 3, 4)
    assert state.frontier == before


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampled"])
def test_a_head_of_one_token_decodes_under_the_adaptive_policy(model, sampling):
    hierarchy = hierarchy_of(model, 1, 2, words=[{3}, {3, 4}])
    sampler = Sampler(sampling, None if sampling.greedy else GumbelNoise(0, 24, torch.device("cpu")))
    texts = []
    for own in (hierarchy, Hierarchy([hierarchy.target])):
        state = DecodingState(own, PROMPT, len(PROMPT) + LENGTH)
        policy = AdaptivePolicy(performance_model(own, None)) if len(own) > 1 else StaticPolicy((1,))
        list(decode(state, policy, sampler, StopCriteria(LENGTH)))
        texts.append(state.tokens)
    assert texts[0] == texts[1]

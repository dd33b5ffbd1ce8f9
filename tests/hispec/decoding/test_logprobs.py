"""Log-probabilities of committed tokens: those of `transformers`, before and after its own processors, in every hierarchy."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hispec import Engine
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.logprobs import scores_of_text
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState, PrefixCache
from hispec.events import Committed, Prefilled
from hispec.policies.static import StaticPolicy
from tests.support import PROMPT, hierarchy_of, random_model

LENGTH, TOP = 30, 5
PENALTY = RepetitionPenaltyLogitsProcessor(1.3)
RULES = {
    "greedy": (Sampling(), []),
    "penalty": (Sampling(processors=Processors([PENALTY])), [PENALTY]),
    "sampled": (
        Sampling(0.7, top_k=9, top_p=0.9, processors=Processors([PENALTY])),
        [PENALTY, TemperatureLogitsWarper(0.7), TopKLogitsWarper(9), TopPLogitsWarper(0.9)],
    ),
}
HIERARCHIES = {"alone": ((), {}), "exits": ((1, 2), {}), "n-grams": ((2,), {"ngrams": (3, 6)})}


@pytest.fixture(scope="module")
def model():
    return random_model("llama", seed=0)


def events_of(model, kind, sampling, logprobs):
    exits, others = HIERARCHIES[kind]
    hierarchy = hierarchy_of(model, *exits, **others)
    sampler = Sampler(sampling, None if sampling.greedy else GumbelNoise(5, 24, torch.device("cpu")))
    state = DecodingState(hierarchy, PROMPT, len(PROMPT) + LENGTH)
    return list(decode(state, StaticPolicy.of(hierarchy, 2, 4), sampler, StopCriteria(LENGTH), logprobs=logprobs))


@pytest.mark.parametrize("kind", HIERARCHIES)
@pytest.mark.parametrize("rule", RULES)
def test_log_probabilities_are_those_of_transformers(model, rule, kind):
    sampling, processors = RULES[rule]
    committed = [event for event in events_of(model, kind, sampling, TOP) if isinstance(event, Committed)]
    ids = [token for event in committed for token in event.token_ids]
    told = [one for event in committed for one in event.logprobs]
    assert [one.token_id for one in told] == ids and len(ids) == LENGTH
    with torch.inference_mode():
        rows = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1]
    for at, one in enumerate(told):
        text = torch.tensor([PROMPT + ids[:at]])
        before = rows[at].log_softmax(-1)
        after = LogitsProcessorList(processors)(text, rows[at][None].clone())[0].log_softmax(-1)
        assert one.logprob == pytest.approx(float(before[one.token_id]), abs=1e-4)
        assert one.sampling_logprob == pytest.approx(float(after[one.token_id]), abs=1e-4)
        assert [other.token_id for other in one.top] == before.topk(TOP).indices.tolist()
        possible = min(TOP, int(after.isfinite().sum()))
        assert [other.token_id for other in one.sampling_top] == after.topk(possible).indices.tolist()
        for likely, expected in ((one.top, before), (one.sampling_top, after)):
            for other in likely:
                assert other.logprob == pytest.approx(float(expected[other.token_id]), abs=1e-4)


def test_they_cost_no_pass_and_none_are_told_unasked(model):
    sampling, _ = RULES["greedy"]
    with_them, without = (events_of(model, "exits", sampling, logprobs) for logprobs in (0, None))
    assert [type(event) for event in with_them] == [type(event) for event in without]
    assert isinstance(with_them[0], Prefilled) and len(with_them[1].logprobs) == 1
    for event in with_them:
        if isinstance(event, Committed):
            assert len(event.logprobs) == len(event.token_ids)
            assert not any(one.top or one.sampling_top for one in event.logprobs)
    assert not any(event.logprobs for event in without if isinstance(event, Committed))


@pytest.mark.parametrize("length", [1, 2, 513, 514, 1100])
def test_those_of_a_given_text_are_those_of_transformers_in_passes_of_a_prompt(model, length):
    text = torch.randint(0, 24, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    hierarchy = hierarchy_of(model)
    parts = list(scores_of_text(DecodingState(hierarchy, text, length), TOP))
    first, *others = told = [one for part in parts for one in part]
    assert [one.token_id for one in told] == text
    assert (first.logprob, first.top) == (None, ())
    with torch.inference_mode():
        rows = model(torch.tensor([text])).logits[0].log_softmax(-1)
    for one, expected in zip(others, rows, strict=False):
        assert one.logprob == pytest.approx(float(expected[one.token_id]), abs=1e-4)
        assert [other.token_id for other in one.top] == expected.topk(TOP).indices.tolist()
    most = hierarchy.stack_of(-1).rows.prompt
    assert [len(part) for part in parts[1:-1]] == [most] * ((length - 2) // most)


def test_an_answer_goes_on_from_what_was_run_for_them():
    engine = Engine.from_profile("tiny")
    expected = engine.generate("Anna", logprobs=3)
    text = expected.prompt_ids + expected.token_ids
    prefix = PrefixCache()
    told = [one for part in engine.score_ids(text, 3, prefix) for one in part][len(expected.prompt_ids) :]
    assert [(one.logprob, one.top, one.text) for one in told] == [
        (one.logprob, one.top, one.text) for one in expected.logprobs
    ]
    prefilled, *_, last = engine.stream_ids(expected.prompt_ids, prefix=prefix)
    assert prefilled.cached_tokens == len(expected.prompt_ids) - 1
    assert last.result.token_ids == expected.token_ids

"""A mask over tokens: every hierarchy writes what the target alone writes under it, and no level drafts what it
forbids.
"""

import pytest
import torch

from hispec.adaptation import performance_model
from hispec.decoding.drafters import NgramDrafter
from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.logits import Logits
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Committed, Drafted
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.static import StaticPolicy
from tests.support import PROMPT, hierarchy_of, random_model

VOCAB, LENGTH = 24, 30
HIERARCHIES = {
    "one exit": ((2,), {}),
    "two exits": ((1, 2), {}),
    "reduced heads": ((1, 2), {"words": [range(0, 24, 5), range(0, 24, 2)]}),
    "n-grams": ((), {"ngrams": (3, 6)}),
    "n-grams and exits": ((1, 2), {"ngrams": (3, 6)}),
}
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(1.2), "top": Sampling(0.9, top_k=6, top_p=0.9, min_p=0.02)}


@pytest.fixture(scope="module")
def model():
    return random_model("llama", seed=0)


class EveryThird:
    """Lets a third of the vocabulary follow a text, another third after each text."""

    def allowed(self, text):
        return torch.arange(VOCAB) % 3 == (len(text) + 2 * text[-1]) % 3

    def fitting(self, text, tokens):
        for at, token in enumerate(tokens):
            if not self.allowed([*text, *tokens[:at]])[token]:
                return at
        return len(tokens)


def written(hierarchy, sampling, policy, top=1):
    """The committed ids; every draft is checked against the mask."""
    noise = None if sampling.greedy else GumbelNoise(7, VOCAB, torch.device("cpu"))
    state = DecodingState(hierarchy, PROMPT, len(PROMPT) + LENGTH)
    ids, drafts = [], 0
    for event in decode(state, policy, Sampler(sampling, noise, top), StopCriteria(LENGTH)):
        ids += event.token_ids if isinstance(event, Committed) else ()
        if isinstance(event, Drafted):
            before = state.tokens[: len(state.tokens) - len(event.token_ids)]
            assert EveryThird().fitting(before, event.token_ids) == len(event.token_ids), event
            drafts += event.level != "target"
    assert EveryThird().fitting(PROMPT, ids) == len(ids) == LENGTH
    return ids, drafts


@pytest.mark.parametrize("rule", SAMPLINGS)
@pytest.mark.parametrize("kind", HIERARCHIES)
def test_every_hierarchy_writes_what_the_target_alone_writes_under_the_mask(model, kind, rule):
    sampling = Sampling(**{**vars(SAMPLINGS[rule]), "mask": EveryThird()})
    exits, others = HIERARCHIES[kind]
    hierarchy = hierarchy_of(model, *exits, **others)
    expected, _ = written(Hierarchy([hierarchy.target]), sampling, StaticPolicy((1,)))
    for policy, top in (
        (StaticPolicy.of(hierarchy, 2, 3), 1),
        (StaticPolicy.of(hierarchy, 4, 9), 3),
        (AdaptivePolicy(performance_model(hierarchy, None)), 1),
    ):
        ids, drafts = written(hierarchy, sampling, policy, top)
        assert ids == expected, (policy, top)
        assert drafts or isinstance(policy, AdaptivePolicy)


def test_masked_argmax_is_the_highest_allowed_logit(model):
    mask, ids = EveryThird(), list(PROMPT)
    with torch.inference_mode():
        for _ in range(LENGTH):
            logits = model(torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.masked_fill(~mask.allowed(ids), -torch.inf).argmax()))
    alone = hierarchy_of(model)
    assert written(alone, Sampling(mask=mask), StaticPolicy((1,)))[0] == ids[len(PROMPT) :]


def test_what_processors_and_mask_leave_nothing_of_follows_the_mask():
    only = [3, 7]

    class Only:
        def allowed(self, text):
            return torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, torch.tensor(only), True)

    def bad(ids, scores):
        return scores.index_fill(-1, torch.tensor([3, 7, 9]), -torch.inf)

    logits = torch.arange(VOCAB, dtype=torch.float32)[None]
    sampling = Sampling(processors=Processors([bad]), mask=Only())
    assert Sampler(sampling).scores(Logits(logits), [0]).argmax() == [7]
    only.append(5)
    assert Sampler(sampling).scores(Logits(logits), [0]).argmax() == [5]  # which the processor leaves


def test_a_level_without_an_allowed_token_drafts_one_all_the_same():
    lacking = Logits(torch.tensor([[1.0, 2.0]]), torch.tensor([1, 4]), VOCAB)
    (token,) = Sampler(Sampling(mask=EveryThird())).scores(lacking, [1]).argmax()
    assert EveryThird().allowed([1])[token] and token not in (1, 4)


def test_n_gram_drafts_end_before_the_first_forbidden_token():
    text = [1, 2, 3, 9, 8, 7, 1, 2, 3]
    free = NgramDrafter(3, 4).propose(text, 10)
    assert free == [9, 8, 7, 1]

    class NotSeven(EveryThird):
        def allowed(self, text):
            return torch.arange(VOCAB) != 7

    assert NgramDrafter(3, 4, mask=NotSeven()).propose(text, 10) == [9, 8]

"""Processors see the text before each row, in float32, and handle tokens that a level lacks."""

import pytest
import torch
from transformers import (
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopHLogitsWarper,
    TypicalLogitsWarper,
)

from hispec.decoding.logits import Logits
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.processors import Processors
from hispec.decoding.sampling import Sampler, Sampling
from hispec.errors import UsageError

LOGITS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))


class Scores(LogitsProcessor):
    """A processor that sets all scores."""

    def __init__(self, **scores):
        self.scores = {int(word.removeprefix("word_")): score for word, score in scores.items()}

    def __call__(self, input_ids, scores):
        for word, score in self.scores.items():
            scores[:, word] = score
        return scores


@pytest.mark.parametrize(
    "processor",
    [RepetitionPenaltyLogitsProcessor(1.7), NoRepeatNGramLogitsProcessor(2)],
    ids=lambda p: type(p).__name__,
)
def test_every_row_is_processed_with_the_text_before_it(processor):
    prefix, waiting = [3, 7, 1], [7, 1, 3, 7, 2]
    ours = Processors([processor])(LOGITS, prefix, waiting)
    for i in range(len(LOGITS)):
        expected = processor(torch.tensor([prefix + waiting[:i]]), LOGITS[i : i + 1].clone())
        assert torch.equal(ours[i : i + 1], expected)


def test_logits_are_left_as_they_are_and_processed_in_float32():
    halves = LOGITS.bfloat16()
    assert Processors()(halves, [1], [1] * 5) is halves
    before, after = halves.clone(), Processors([Scores(word_0=1.0)])(halves, [1], [1] * 5)
    assert after.dtype == torch.float32 and torch.equal(halves, before)


def test_an_endless_score_means_its_word_and_no_number_is_still_an_error():
    forced = Sampler(Sampling(processors=Processors([Scores(word_4=torch.inf)])))
    assert forced.scores(Logits(LOGITS[:2]), [0], [4, 1]).argmax() == [4, 4]
    both = Sampling(1.0, processors=Processors([Scores(word_4=torch.inf, word_2=torch.inf)]))
    noise = GumbelNoise(0, 10, torch.device("cpu"))
    drawn = [Sampler(both, noise).scores(Logits(LOGITS), [0] * at, [1] * 5).argmax() for at in range(0, 60, 6)]
    assert {token for tokens in drawn for token in tokens} == {2, 4}
    for bad in (Scores(word_4=torch.nan), SuppressTokensLogitsProcessor(range(10))):
        with pytest.raises(UsageError, match="not numbers"):
            Sampler(Sampling(processors=Processors([bad]))).scores(Logits(LOGITS[:1]), [0]).argmax()


@pytest.mark.parametrize(
    "processor",
    [
        ForcedBOSTokenLogitsProcessor(9),
        SuppressTokensLogitsProcessor([2, 3, 5]),  # all that the level has
        ExponentialDecayLengthPenalty((0, 1.1), [9], 0),
        SequenceBiasLogitsProcessor([[[9], float("inf")]]),
        InfNanRemoveLogitsProcessor(),
        LogitNormalization(),
        TypicalLogitsWarper(0.5),
        EtaLogitsWarper(0.01),
        TopHLogitsWarper(0.5),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_reduced_head_gives_numbers_whatever_the_processor(processor):
    """The forced or only remaining token may be one that the head lacks: the levels above verify it."""
    logits = Logits(LOGITS[:1, :3], torch.tensor([2, 3, 5]), 10)
    processors = Processors([processor])
    (token,) = Sampler(Sampling(processors=processors)).scores(logits, [1]).argmax()
    p = Sampling(0.8).warp(processors(logits.full(), [1])[0]).softmax(-1)
    assert p.isfinite().all() and float(p.sum()) == pytest.approx(1) and p[token] > 0

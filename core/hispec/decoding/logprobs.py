"""Log-probabilities of the target: of its answers, from the rows of logits that decide its tokens anyway, so that no pass
is added, and of given texts, which are run for that.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hispec.decoding.logits import Logits
from hispec.decoding.sampling import Sampler
from hispec.decoding.state import DecodingState
from hispec.events import Likely, Scored, TokenLogprobs


class RecordingSampler(Sampler):
    """The target's sampler, which remembers the rows that it was shown last.

    Args:
        sampler: the sampler whose rule it follows.
        top: the number of most probable tokens to report with each token.
    """

    def __init__(self, sampler: Sampler, top: int) -> None:
        super().__init__(sampler.sampling, sampler.noise, sampler.lower_top_k)
        self._top = top
        self._at = 0
        """The position in the text of the first row's token."""
        self._before = self._after = torch.empty(0)
        """Logits of these rows, [n, vocab]: the model's own, and of the distribution that is drawn from."""

    def distribution(self, logits: Logits, prefix: Sequence[int], waiting: Sequence[int] = ()) -> Logits:
        """Return logits of the distributions that the level's tokens are drawn from, or have the argmax of if
        greedy.

        See `Sampler.distribution`.
        """
        after = super().distribution(logits, prefix, waiting)
        self._at, self._before, self._after = len(prefix), logits.own, after.own
        return after

    def logprobs(self, at: int, tokens: Sequence[int]) -> tuple[TokenLogprobs, ...]:
        """Return the log-probabilities of tokens that the rows shown last have decided.

        Args:
            at: the position in the text of the first token.
            tokens: the committed tokens.
        """
        rows = slice(at - self._at, at - self._at + len(tokens))
        own, top = _of(self._before[rows], tokens, self._top)
        sampling, sampling_top = _of(self._after[rows], tokens, self._top)
        return tuple(map(TokenLogprobs, tokens, own, sampling, top, sampling_top))


def scores_of_text(state: DecodingState, top: int) -> Iterator[tuple[Scored, ...]]:
    """Run a text, and yield the log-probabilities of its tokens, some at a time: all rows of logits would be too many.

    Args:
        state: the decoding state, which holds the text and has run nothing of it.
        top: the number of most probable tokens to return beside each token.
    """
    target, tokens = len(state.hierarchy) - 1, state.tokens
    yield (Scored(tokens[0]),)
    rows = state.hierarchy.stack_of(-1).rows.prompt
    for at in range(0, len(tokens) - 1, rows):
        following = tokens[at + 1 : at + 1 + rows]
        try:
            with torch.inference_mode():
                logits = state.logits(target, at, at + len(following)).own
                found = zip(following, *_of(logits, following, top), strict=True)
                scored = tuple(Scored(*one) for one in found)
        except Exception:
            state.discard()
            raise
        yield scored


def _of(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[list[float], list[tuple[Likely, ...]]]:
    """Return the log-probability of each row's token, and the `top` most probable of each row that are possible at all."""
    scores = logits.float().log_softmax(-1)
    own = scores.gather(-1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    best = scores.topk(min(top, scores.shape[-1]))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return own, [tuple(Likely(*one) for one in zip(*row, strict=True) if math.isfinite(one[1])) for row in rows]

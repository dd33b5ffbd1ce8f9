"""A decoder: a hierarchy with the policy, sampling and stop criteria that decoding a prompt takes."""

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field

from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy
from hispec.decoding.ngram_cache import NgramCache
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import PrefixCache
from hispec.events import Committed, Event
from hispec.policies.base import Policy


@dataclass(frozen=True)
class Decoder:
    """A hierarchy and how to decode with it.

    Attributes:
        hierarchy: the levels.
        policy: returns a new policy for each answer.
        sampling: returns the sampling options for a prompt and a maximum number of new tokens.
        lower_top_k: the number of most probable tokens that levels below the target accept, as for `Sampler`.
        eos_ids: the token ids that end an answer.
        interrupted: called before every step; decoding ends if it returns True.
    """

    hierarchy: Hierarchy
    policy: Callable[[], Policy]
    sampling: Callable[[Sequence[int], int], Sampling] = field(default=lambda prompt_ids, max_new_tokens: Sampling())
    lower_top_k: int = 1
    eos_ids: Collection[int] = ()
    interrupted: Callable[[], bool] = field(default=lambda: False)

    def decode(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        seed: int = 0,
        prefix: PrefixCache | None = None,
        ngram_cache: NgramCache | None = None,
        logprobs: int | None = None,
    ) -> Generator[Event]:
        """Decode a prompt; see `hispec.decoding.engine.decode`.

        Args:
            prompt_ids: the token ids of the prompt, at least one.
            max_new_tokens: the maximum number of new tokens, at least 1.
            seed: the seed of the sampling noise.
            prefix: a cache that keeps the tokens that have been run from one answer to the next.
            ngram_cache: holds the n-grams of earlier answers; by default those of this text only.
            logprobs: the number of most probable tokens to report with each committed one; None reports no
                log-probabilities.
        """
        policy = self.policy()  # it may measure costs first, with the caches that the state will take
        capacity = len(prompt_ids) + max_new_tokens
        state = (prefix or PrefixCache()).begin(self.hierarchy, list(prompt_ids), capacity)
        stop = StopCriteria(max_new_tokens, self.eos_ids, self.interrupted)
        return decode(state, policy, self.sampler(seed, prompt_ids, max_new_tokens), stop, ngram_cache, logprobs)

    def token_ids(
        self, prompt_ids: Sequence[int], max_new_tokens: int, seed: int = 0, prefix: PrefixCache | None = None
    ) -> list[int]:
        """Return the token ids of a whole answer; arguments as `decode`."""
        events = self.decode(prompt_ids, max_new_tokens, seed, prefix)
        return [token for event in events if isinstance(event, Committed) for token in event.token_ids]

    def sampler(self, seed: int, prompt_ids: Sequence[int], max_new_tokens: int) -> Sampler:
        """Return the sampler of one text, which chooses its tokens; arguments as `decode`."""
        sampling = self.sampling(prompt_ids, max_new_tokens)
        if sampling.greedy:
            return Sampler(sampling, None, self.lower_top_k)
        target = self.hierarchy.stack_of(-1)
        return Sampler(sampling, GumbelNoise(seed, target.vocab_size, target.device), self.lower_top_k)

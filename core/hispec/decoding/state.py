"""The state of a decoding: the tokens, and how many of them each level has verified and run."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.logits import Logits, check_numbers, to_host
from hispec.errors import UsageError
from hispec.models.stack import LayerStack


class DecodingState:
    """Tokens x[0:T] and, for every level j, two counts of leading tokens.

    - `verified[j]`: the leading tokens that level j has verified or written. It falls from the draft's T to the
      target's, which is the number of committed tokens.
    - `frontier[j]`: the leading tokens that level j or a higher level on its KV cache has run. Verifying x[i] takes the
      logits at i-1, so the newest token never has to be run: `frontier[j] < T` always.

    So a level runs only tokens that no higher level on its cache has run: each row of the cache is from the highest
    level that has run its token, and a level at lower precision never overwrites a row of the target. A hidden
    state is kept only until the next level of the same stack has resumed from it.

    Args:
        hierarchy: the levels.
        prompt_ids: the token ids of the prompt, at least one.
        capacity: the maximum length of the sequence in tokens.
        earlier: a decoding on the same models. The beginning that both texts share is not run
            again; the earlier decoding cannot continue.

    Raises:
        UsageError: an id is not in the target's vocabulary; later, if another decoding has begun on a model of
            this one and taken its cache.
    """

    def __init__(
        self, hierarchy: Hierarchy, prompt_ids: list[int], capacity: int, earlier: "DecodingState | None" = None
    ) -> None:
        self.hierarchy = hierarchy
        self.tokens = list(prompt_ids)
        self.prompt_length = len(prompt_ids)
        self.verified = [len(prompt_ids)] * len(hierarchy)
        self.frontier = [0] * len(hierarchy)
        self._carried: list[Tensor | None] = [None] * len(hierarchy)
        """Per level, the hidden states at its exit for tokens frontier[above]..frontier[level]-1."""
        vocab_size = hierarchy.stack_of(-1).vocab_size
        if strange := [token for token in prompt_ids if not 0 <= token < vocab_size]:
            raise UsageError(
                f"token id {strange[0]} of the prompt is not in the vocabulary of {vocab_size} that the model has",
                "use the tokenizer that belongs to the model",
            )
        self._heads = [_LevelHead(level, vocab_size) for level in hierarchy.levels]
        self._lease = object()
        with self._locked():
            if earlier is not None:
                self._take_over(earlier)
            for stack in hierarchy.stacks:
                stack.reserve(capacity)
                stack.cache.lease = self._lease

    @property
    def committed(self) -> int:
        """Return the number of leading tokens that the target has verified."""
        return self.verified[-1]

    def advance(self, level: int, upto: int) -> Tensor:
        """Run tokens frontier[level]..upto-1 through a level's own span, and lower levels of its stack first.

        Returns:
            Hidden states at the level's exit, [tokens run, hidden].
        """
        start, stack = self.frontier[level], self.hierarchy.stack_of(level)
        hidden = self._resume(level, start, upto)
        if upto > start:
            exit_layer = self.hierarchy.levels[level].exit_layer
            of_prompt = start < self.prompt_length
            hidden = stack.run(hidden, self.hierarchy.first_layer(level), exit_layer, start, prompt=of_prompt)
            self._reach(level, upto)
            if self.hierarchy.above[level] is not None:
                self._carry(level, hidden)
        return hidden

    def logits(self, level: int, since: int, upto: int) -> Logits:
        """Return a level's logits at positions since..upto-1, after running the tokens that are missing for them."""
        with self._owned():
            start = self.frontier[level]
            hidden = self.advance(level, upto)
            return self.read(level, hidden[since - start :] if since > start else hidden)

    def read(self, level: int, hidden: Tensor) -> Logits:
        """Return a level's logits of hidden states at its exit, [n, hidden]."""
        return self._heads[level].logits(hidden)

    def write(self, level: int, count: int, eos_ids: Collection[int]) -> None:
        """Let a level add the argmax of its logits, `count` times; tokens after an EOS are dropped.

        No token is read before all are written, so that the host waits for the device once.

        Args:
            level: the index of the level that writes.
            count: the number of tokens, at least 1.
            eos_ids: the token ids after which nothing is kept.
        """
        with self._owned():
            self._write(level, count, eos_ids)

    def discard(self) -> None:
        """Discard the caches of this decoding, which may contain NaN."""
        with self._locked():
            own = [stack for stack in self.hierarchy.stacks if stack.cache.lease is self._lease]
            for stack in own:
                stack.cache.lease = None
                stack.clear()

    def append(self, token: int, level: int) -> None:
        """Add a token that `level` chose; it counts as verified by that level and all lower ones."""
        self.tokens.append(token)
        self.accept(len(self.tokens), level)

    def accept(self, upto: int, level: int) -> None:
        """Mark x[0:upto] as verified by `level` and by all levels below, including those that were skipped."""
        for j in range(level + 1):
            self.verified[j] = max(self.verified[j], upto)

    def rewind(self, length: int) -> None:
        """Drop x[length:]. The caches keep stale rows beyond the frontiers, which are overwritten before they are read."""
        del self.tokens[length:]
        for j in range(len(self.hierarchy)):
            self.verified[j] = min(self.verified[j], length)
            self.frontier[j] = min(self.frontier[j], length)
        for j, above in enumerate(self.hierarchy.above):
            kept = self._carried[j]
            if above is not None and kept is not None:
                self._carried[j] = kept[: self.frontier[j] - self.frontier[above]]

    def ran(self, stack: LayerStack, exit_layer: int) -> int:
        """Return how many leading tokens' rows in the cache are a stack's own, in layers 0..exit_layer-1."""
        if stack.cache.lease is not self._lease:
            return 0
        found = 0
        for level, frontier in zip(reversed(self.hierarchy.levels), reversed(self.frontier), strict=True):
            if level.stack is None or level.stack.cache is not stack.cache:
                continue
            if level.stack is not stack:  # it has overwritten rows of levels below it
                break
            if level.exit_layer >= exit_layer:
                found = frontier
        return found

    def _take_over(self, earlier: "DecodingState") -> None:
        """Begin with the tokens that are already in the caches.

        All levels on a cache begin where the highest one may, so that no level lacks hidden states to resume from. The
        last token is always run, since its logits decide the next one.
        """
        both = zip(self.tokens[:-1], earlier.tokens, strict=False)
        shared = next((at for at, (own, other) in enumerate(both) if own != other), None)
        if shared is None:
            shared = min(len(self.tokens) - 1, len(earlier.tokens))
        for highest, stack in enumerate(level.stack for level in self.hierarchy.levels):
            if stack is None:
                continue
            known = min(shared, earlier.ran(stack, self.hierarchy.levels[highest].exit_layer))
            if not stack.rows.interchangeable:  # else the output could differ from a run of the whole text
                known = min(known, earlier.prompt_length) // stack.rows.prompt * stack.rows.prompt
            for j in (*self.hierarchy.beneath[highest], highest):  # the highest level on the cache comes last
                self.frontier[j] = known

    def carried(self, level: int) -> Tensor | None:
        """Return the hidden states that are kept at a level's exit, or None, so that tests can inspect the state."""
        return self._carried[level]

    def _write(self, level: int, count: int, eos_ids: Collection[int]) -> None:
        """Let a level add the argmax of its logits, `count` times.

        All tokens but the last are run through the level's span and those below it; see `write`.
        """
        at, name = len(self.tokens), self.hierarchy.levels[level].name
        logits = self.logits(level, at - 1, at)
        if count == 1:
            self.append(logits.argmax()[0], level)
            return
        highest, token = logits.argmax_async()
        stack, exit_layer = self.hierarchy.stack_of(level), self.hierarchy.levels[level].exit_layer
        tokens, others, hidden = stack.write_run(token, exit_layer, at, count - 1, self._heads[level])
        numbers, written = to_host(torch.cat((highest, others)), torch.cat((token, tokens)))
        count = next((i for i, token in enumerate(written, 1) if token in eos_ids), count)
        check_numbers(numbers[:count], name)
        for token in written[:count]:
            self.append(token, level)
        if self.hierarchy.above[level] is not None and count > 1:  # some were dropped
            self._carry(level, hidden[: count - 1])
        self._reach(level, at + count - 1)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads from using the models."""
        with ExitStack() as locks:
            for stack in sorted(
                self.hierarchy.stacks, key=lambda stack: id(stack.cache)
            ):  # in the same order everywhere, against a deadlock
                locks.enter_context(stack.cache.lock)
            yield

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Keep other threads from using the models, and check that the caches still belong to this decoding."""
        with self._locked():
            for stack in self.hierarchy.stacks:
                if stack.cache.lease is not self._lease:
                    raise UsageError(
                        f"another answer was started on {stack.name} before this one was finished",
                        "finish one answer before the next, or load a second engine",
                    )
            yield

    def _reach(self, level: int, upto: int) -> None:
        """Count tokens as run by a level, and by the lower levels on its cache, whose rows it has overwritten."""
        for j in (*self.hierarchy.beneath[level], level):
            above, kept = self.hierarchy.above[j], self._carried[j]
            if above is not None and kept is not None and j != level:
                wanted = max(self.frontier[j], upto) - max(self.frontier[above], upto)
                self._carried[j] = kept[len(kept) - wanted :] if wanted else None
            self.frontier[j] = max(self.frontier[j], upto)

    def _carry(self, level: int, hidden: Tensor) -> None:
        """Keep more hidden states at a level's exit for the level above."""
        kept = self._carried[level]
        self._carried[level] = hidden if kept is None else torch.cat((kept, hidden))

    def _resume(self, level: int, start: int, upto: int) -> Tensor:
        """Return the input of a level's span for tokens start..upto-1: embeddings, or hidden states from the level
        below.
        """
        below = self.hierarchy.below[level]
        if below is None:
            stack = self.hierarchy.stack_of(level)
            # A model with a smaller vocabulary reads ids that it lacks as its last one, which only makes the draft worse.
            return stack.embed([min(token, stack.vocab_size - 1) for token in self.tokens[start:upto]])
        if self.frontier[below] < upto:
            self.advance(below, upto)
        kept = self._carried[below]
        assert kept is not None
        if self.frontier[below] == upto:  # the usual case: all of it is wanted, and no slice is needed
            self._carried[below] = None
            return kept
        self._carried[below] = kept[upto - start :]
        return kept[: upto - start]


class PrefixCache:
    """Keeps the last decoding, so that the next one does not run their common beginning again.

    The caches hold keys and values of tokens, which depend on the tokens before them only: not on settings, nor on the
    active levels. So they stay valid when settings change between two answers, and however the first answer ended.
    """

    def __init__(self) -> None:
        self._last: DecodingState | None = None

    def begin(
        self, hierarchy: Hierarchy, prompt_ids: list[int], capacity: int, *, again: bool = False
    ) -> DecodingState:
        """Return a new state; arguments and errors as `DecodingState`.

        Args:
            hierarchy, prompt_ids, capacity: of it.
            again: whether it is to run all of the prompt, for what is remembered in its stead.
        """
        self._last = DecodingState(hierarchy, prompt_ids, capacity, None if again else self._last)
        return self._last


@dataclass(frozen=True, slots=True)
class _LevelHead:
    """The head of a level, with its exit's translator; equal levels have equal heads."""

    level: Level
    vocab_size: int

    def logits(self, hidden: Tensor) -> Logits:
        """Return the level's logits of hidden states [n, hidden]."""
        stack, reduced, translator = self.level.stack, self.level.reduced, self.level.translator
        assert stack is not None
        if translator is not None:
            hidden = translator(hidden)
        ids = None if reduced is None else reduced.ids
        return Logits(stack.head(hidden, reduced), ids, self.vocab_size, self.level.name)

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the argmax of each row and its logit, without waiting for the device."""
        return self.logits(hidden).argmax_async()

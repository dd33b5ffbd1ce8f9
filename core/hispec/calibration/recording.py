"""Records every level spec's predictions along texts of the target, so that hierarchies can be replayed without a
model.

Greedy decoding with a hierarchy is determined by each level's argmax token after each prefix that decoding visits.
Those prefixes are of two kinds:

- *On the path* is the target's own text so far. All of it is recorded, by one pass over each text that reads every exit
  at once. A quantized copy reads it in windows, with the target's rows of all earlier tokens in the KV cache, as it
  does when it decodes.
- *Off the path*, a level has written a token that the target would not. Decoding continues until a higher level
  rejects it, which costs time. There are too many such prefixes to record all, so some are sampled: after a few
  of its mistakes, each drafter writes some more tokens, and every exit reads those too. A replay that leaves the path
  continues with one of these branches, drawn at random.

So replays assume that the course after a mistake depends on the exit that made it, and not on the mistake itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import torch
from torch import Tensor

from hispec.models.stack import LayerStack, ReducedHead, name_of_copy
from hispec.models.translator import Translator
from hispec.policies.confidence import FEATURES, Confidence, confidence_of

WINDOW = 16
"""The number of tokens that a quantized copy reads after the last that the target has run; it is longer than a
branch.
"""

FEWEST = 8
"""Texts that are recorded however long it takes."""


@dataclass(frozen=True, order=True)
class LevelSpec:
    """What a level would read: an exit of a model, with its whole head (size 0) or a reduced one.

    With `weights`, it is an exit of a copy of the model in that format, which shares the model's KV cache.
    """

    model: str
    exit_layer: int
    head_size: int = 0
    weights: str = ""

    @property
    def stack(self) -> str:
        """Return the name of the stack that it reads."""
        return name_of_copy(self.model, self.weights) if self.weights else self.model


@dataclass(frozen=True)
class Prediction:
    """The predictions of a level spec for a text: item i is for the token at i, given the tokens before it.

    Attributes:
        argmax: its token ids.
        confidence: its confidence in that token, all of `FEATURES`.
    """

    argmax: list[int]
    confidence: list[Confidence]
    _chosen: dict[tuple[str, ...], list[Confidence]] = field(default_factory=dict, repr=False, compare=False)

    def of(self, features: tuple[str, ...]) -> list[Confidence]:
        """Return the confidence with some features only."""
        if features not in self._chosen:
            places = [list(FEATURES).index(name) for name in features]
            self._chosen[features] = [tuple(sure[place] for place in places) for sure in self.confidence]
        return self._chosen[features]


@dataclass(frozen=True)
class RecordedText:
    """A text and every level spec's predictions for it.

    Attributes:
        prompt: the token ids that precede the text; off the path, the mistake alone.
        tokens: the text: the target's own on the path, a drafter's off it.
        predictions: the predictions by level spec.
    """

    prompt: list[int]
    tokens: list[int]
    predictions: dict[LevelSpec, Prediction]


@dataclass(frozen=True)
class RecordedTexts:
    """All recorded texts.

    Attributes:
        texts: the texts on the path, one for each prompt.
        branches: the texts off the path, by the level spec that left it.
    """

    texts: list[RecordedText]
    branches: dict[LevelSpec, list[RecordedText]]


class Recorder:
    """Records the predictions of level specs for texts.

    Args:
        stacks: the stacks by name, including quantized copies of the target.
        specs: the level specs whose predictions are recorded.
        heads: the reduced heads, by level spec.
        target: the name of the model whose texts are recorded.
        translators: the translators, by model and exit.
    """

    def __init__(
        self,
        stacks: dict[str, LayerStack],
        specs: Sequence[LevelSpec],
        heads: dict[LevelSpec, ReducedHead],
        target: str,
        translators: Mapping[tuple[str, int], Translator] | None = None,
    ) -> None:
        self.stacks, self.specs, self.heads, self.target = stacks, sorted(specs), heads, target
        self.translators = translators or {}

    @torch.inference_mode()
    def record(self, prompt: Sequence[int], tokens: Sequence[int]) -> RecordedText:
        """Return the predictions for a text that follows a prompt."""
        return self._read([*prompt], [*tokens], known=0)

    @torch.inference_mode()
    def branches(
        self, prompt: Sequence[int], text: RecordedText, wanted: Mapping[LevelSpec, int], length: int, rng: Random
    ) -> Iterator[tuple[LevelSpec, RecordedText]]:
        """Let drafters continue after some of their mistakes in the text that was recorded last.

        Args:
            prompt: the prompt of the text.
            text: the target's answer.
            wanted: the number of mistakes to follow, by drafter.
            length: the number of tokens to write after each mistake.
            rng: the generator that chooses the mistakes.

        Yields:
            The level spec that made the mistake, and the branch after it.
        """
        chosen: list[tuple[int, LevelSpec]] = []
        for drafter, most in wanted.items():
            written = text.predictions[drafter].argmax
            wrong = [at for at, token in enumerate(text.tokens) if written[at] != token]
            chosen += [(at, drafter) for at in rng.sample(wrong, min(most, len(wrong)))]
        # From the last mistake back, since a branch overwrites the cache rows of the text after its mistake.
        for at, drafter in sorted(chosen, reverse=True):
            mistake = text.predictions[drafter].argmax[at]
            yield drafter, self._branch([*prompt, *text.tokens[:at]], mistake, drafter, length)

    def _branch(self, prefix: list[int], mistake: int, drafter: LevelSpec, length: int) -> RecordedText:
        """Return a drafter's tokens after its mistake; the cache holds the prefix."""
        stack, written = self.stacks[drafter.stack], [mistake]
        while len(written) <= length:
            at = len(prefix) + len(written) - 1
            hidden = stack.run(stack.embed(written[-1:]), 0, drafter.exit_layer, at)
            written += self._argmax(stack, hidden, drafter)[0]
        return self._read([*prefix, mistake], written[1:], known=len(prefix))

    def _argmax(self, stack: LayerStack, hidden: Tensor, spec: LevelSpec) -> tuple[list[int], list[Confidence]]:
        head = self.heads.get(spec)
        translator = self.translators.get((spec.model, spec.exit_layer))
        logits = stack.head(hidden if translator is None else translator(hidden), head)
        best = logits.argmax(-1)
        return (best if head is None else head.ids[best]).tolist(), confidence_of(logits, tuple(FEATURES))

    def _read(self, before: list[int], tokens: list[int], known: int) -> RecordedText:
        """Run a text once through every model, reading at every exit; `known` tokens of it are in the caches.

        The target is the last one, so that its cache holds what it has run itself.
        """
        predictions, ids = {}, (before + tokens)[known:-1]
        for name in sorted(self.stacks, key=lambda name: name == self.target):
            specs = [spec for spec in self.specs if spec.stack == name]
            exits = sorted({spec.exit_layer for spec in specs})
            run = self._run_copy if self._is_copy(name) else self._run
            states = run(name, ids, exits, known, len(tokens))
            for spec in specs:
                predictions[spec] = Prediction(*self._argmax(self.stacks[name], states[spec.exit_layer], spec))
        return RecordedText(before[known:], tokens, predictions)

    def _is_copy(self, name: str) -> bool:
        return name != self.target and self.stacks[name].cache is self.stacks[self.target].cache

    def _run(self, name: str, ids: list[int], exits: Sequence[int], position: int, last: int) -> dict[int, Tensor]:
        """Run tokens at a position through a model: by exit, the hidden states of the last ones, [last, hidden]."""
        stack, states = self.stacks[name], {}
        stack.reserve(position + len(ids))
        hidden, layer = stack.embed([min(token, stack.vocab_size - 1) for token in ids]), 0
        for exit_layer in exits:
            hidden, layer = stack.run(hidden, layer, exit_layer, position), exit_layer
            states[exit_layer] = hidden[-last:]
        return states

    def _run_copy(self, name: str, ids: list[int], exits: Sequence[int], position: int, last: int) -> dict[int, Tensor]:
        """Do what `_run` does with a copy of the target: window by window on the path, else in one.

        The last window is the first to be run, since each overwrites what the target has run of it. No pass is so wide
        that the full weights would be read.
        """
        narrow, start = self.stacks[name].narrow, len(ids) - last
        begins = [start]
        if position == 0:  # on the path
            self._run(self.target, ids, [self.stacks[self.target].num_layers], 0, last)
            begins = list(range(start, len(ids), WINDOW))
        parts: list[dict[int, Tensor]] = []
        for begin, end in reversed([*pairwise(begins), (begins[-1], len(ids))]):
            window = [
                self._run(name, ids[at : min(at + narrow, end)], exits, position + at, narrow)
                for at in range(begin, end, narrow)
            ]
            parts = window + parts
        return {exit_layer: torch.cat([part[exit_layer] for part in parts]) for exit_layer in exits}


def record_all(
    recorder: Recorder,
    prompts: Sequence[Sequence[int]],
    write: Callable[[Sequence[int]], Sequence[int]],
    rng: Random,
    branches: int = 60,
    length: int = 12,
    progress: Callable[[float], None] = lambda share: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> RecordedTexts:
    """Record texts on the path, and some branches for every level spec below the target.

    Args:
        recorder: a recorder of all level specs.
        prompts: token ids.
        write: lets the target answer a prompt.
        rng: the generator that chooses the mistakes to follow.
        branches: the approximate number of branches for each level spec.
        length: the number of tokens of a branch.
        progress: called with the share that is done.
        out_of_time: called before every text but the first eight, and before every branch but the first.
    """
    texts: list[RecordedText] = []
    followed: dict[LevelSpec, list[RecordedText]] = {spec: [] for spec in recorder.specs}
    each = -(-branches // len(prompts))
    for at, prompt in enumerate(prompts):
        if at >= FEWEST and out_of_time():
            break
        text = recorder.record(prompt, write(prompt))
        texts.append(text)
        wanted = {spec: each for spec, known in followed.items() if len(known) < branches}
        for spec, branch in recorder.branches(prompt, text, wanted, length, rng):
            followed[spec].append(branch)
            if out_of_time():
                break
        progress((at + 1) / len(prompts))
    return RecordedTexts(texts, followed)

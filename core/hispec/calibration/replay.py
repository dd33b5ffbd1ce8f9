"""Decoding replayed from traces and costs: which steps a policy would take, and how long they would.

It follows `hispec.decoding.engine` and `hispec.decoding.state` step by step, with the same policies. Where these run a
model, it looks up the recorded prediction and adds the cost of the run. It supports greedy decoding only.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from hispec.calibration.costs import Costs, kind_of
from hispec.calibration.recording import LevelSpec, Prediction, RecordedText, RecordedTexts
from hispec.decoding.drafters import NgramDrafter
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.policies.base import Draft, Policy, Verify

NEAR = 128
"""Contexts that are apart by less share their costs."""


@dataclass
class Outcome:
    """The result of a replay.

    Attributes:
        tokens: committed.
        seconds: the estimated time of decoding, the prompt included.
        target_passes: the prompt included.
    """

    tokens: int = 0
    seconds: float = 0.0
    target_passes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens per second of all texts together."""
        return self.tokens / self.seconds

    def add(self, other: "Outcome") -> None:
        """Add the outcome of another text."""
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.target_passes += other.target_passes


class Replay:
    """Replays one hierarchy.

    Args:
        hierarchy: its levels; no model is run.
        recorded: recorded texts with predictions of every level.
        costs: the costs of the models that it reads.
        eos_ids: tokens that end a text.
        rng: draws the branch that a mistake leads to.
    """

    def __init__(
        self, hierarchy: Hierarchy, recorded: RecordedTexts, costs: Costs, eos_ids: Collection[int], rng: Random
    ) -> None:
        self.hierarchy, self.recorded, self.costs, self.eos_ids, self.rng = hierarchy, recorded, costs, eos_ids, rng
        self.specs = specs_of(hierarchy)
        levels = len(hierarchy)
        self.drafting = [costs.steps.get(kind_of(level, levels, drafts=True), 0.0) for level in range(levels)]
        self.verifying = [costs.steps.get(kind_of(level, levels, drafts=False), 0.0) for level in range(levels)]
        self._tables: dict[int, list[tuple[list[float], list[float]]]] = {}

    def tables(self, position: float) -> list[tuple[list[float], list[float]]]:
        """Return for each level the seconds of its own span and of its head, by the number of rows."""
        near = int(position // NEAR)
        if near not in self._tables:
            self._tables[near] = [self._table(level, NEAR * (near + 0.5)) for level in range(len(self.hierarchy))]
        return self._tables[near]

    def run(self, text: RecordedText, policy: Policy) -> Outcome:
        """Replay one text with a fresh policy."""
        return _Decoding(self, text, policy).run()

    def run_all(self, texts: Sequence[RecordedText], policy: Callable[[], Policy]) -> Outcome:
        """Replay several texts, each with a fresh policy."""
        total = Outcome()
        for text in texts:
            total.add(self.run(text, policy()))
        return total

    def throughput(self, texts: Sequence[RecordedText], policy: Callable[[], Policy]) -> float:
        """Return tokens per millisecond, the prompts and the tokens that come with them left out."""
        total = self.run_all(texts, policy)
        prompts = sum(self.prefill_seconds(len(text.prompt)) for text in texts)
        return max(1, total.tokens - len(texts)) / (1e3 * max(1e-9, total.seconds - prompts))

    def prefill_seconds(self, prompt: int) -> float:
        """Return seconds of running a prompt through all levels of the target's model, and its first token."""
        target = len(self.hierarchy) - 1
        own, name = self.hierarchy.stack_of(target), self.specs[target].model
        call, layer = self.costs.spans[name].at(prompt / 2)
        spans = sum(level.stack is own for level in self.hierarchy.levels)
        seconds = spans * call(prompt) + own.num_layers * layer(prompt) + self.costs.heads[name, 0](1)
        return seconds + self.costs.steps.get("prefill", 0.0)

    def _table(self, level: int, position: float) -> tuple[list[float], list[float]]:
        spec = self.specs[level]
        if not spec.model:
            return [], []
        call, layer = self.costs.spans[spec.stack].at(position)
        layers = spec.exit_layer - self.hierarchy.first_layer(level)
        head = self.costs.heads[spec.stack, spec.head_size]
        return _listed(lambda rows: call(rows) + layers * layer(rows)), _listed(head)


def _listed(curve: Callable[[int], float]) -> list[float]:
    """Return the seconds by number of rows, as a list."""
    return [0.0, *(curve(rows) for rows in range(1, 129))]


def specs_of(hierarchy: Hierarchy) -> list[LevelSpec]:
    """Return the level spec of each level; that of n-grams names no model."""
    target = hierarchy.stack_of(-1).name

    def model_of(level: Level) -> str:
        return "" if level.stack is None else target if level.weights else level.stack.name

    return [
        LevelSpec(
            model_of(level),
            level.exit_layer,
            0 if level.reduced is None else len(level.reduced.ids),
            level.weights or "",
        )
        for level in hierarchy.levels
    ]


class _Decoding:
    """The replay of one text. Indexes count from the first token after the prompt."""

    def __init__(self, replay: Replay, text: RecordedText, policy: Policy) -> None:
        self.replay, self.text, self.policy = replay, text, policy
        ngrams = replay.hierarchy.ngrams
        self.ngrams = NgramDrafter(ngrams.longest, ngrams.tokens, replay.eos_ids) if ngrams else None
        hierarchy, levels = replay.hierarchy, len(replay.hierarchy)
        self.target = levels - 1
        self.own = [text.predictions[spec] if spec.model else None for spec in replay.specs]
        self.away: list[Prediction | None] = []
        self.left: int | None = None
        """The index of the first token that is not the target's own; after it, `away` has the levels' predictions."""
        self.tokens = [text.tokens[0]]
        self.verified = [1] * levels
        beneath = (*hierarchy.beneath[-1], self.target)
        self.frontier = [0 if level in beneath else -len(text.prompt) for level in range(levels)]
        self.tables = replay.tables(len(text.prompt) + len(text.tokens) / 2)
        self.outcome = Outcome(1, replay.prefill_seconds(len(text.prompt)), 1)
        self.told = bool(policy.features)

    def run(self) -> Outcome:
        """Replay until the last token of the text is committed."""
        limit, verified = len(self.text.tokens), self.verified
        while verified[-1] < limit:
            match self.policy.next_step(verified, self.may_draft()):
                case Draft() as step:
                    self.draft(step, limit)
                case Verify() as step:
                    self.verify(step)
        self.outcome.tokens = limit
        return self.outcome

    def may_draft(self) -> bool:
        """Return whether drafting makes sense: not after a tentative end of text, nor at the full length.

        See `DecodeLoop.may_draft`.
        """
        tokens = self.tokens
        waiting = len(tokens) > self.verified[-1]
        return len(tokens) < len(self.text.tokens) and not (waiting and tokens[-1] in self.replay.eos_ids)

    def draft(self, chosen: Draft, limit: int) -> None:
        """Let a level draft, or another one where it has nothing to propose; see `DecodeLoop.draft`."""
        tokens, wanted, level, before = self.tokens, chosen.tokens, chosen.level, self.outcome.seconds
        if self.ngrams is not None and level == 0:
            self.outcome.seconds += self.replay.costs.ngram_lookup
            found = self.ngrams.propose(
                self.text.prompt + tokens,
                limit - len(tokens),
                len(self.text.prompt) + self.verified[-1],
                chosen.min_probability,
            )
            for token in found:
                self.append(token, 0)
            if found:
                return
            level, wanted = chosen.fallback or 1, 1
        count = 1 if level == self.target else min(wanted, limit - len(tokens))
        step, told, drafted = self.replay.drafting[level], self.told and level < self.target, len(tokens)
        head = self.tables[level][1][1]
        for _ in range(count):
            at = len(tokens)
            cost = step + self.advance(level, at) + head
            best, prediction, index = self.read(level, at)
            self.append(best, level)
            keep_drafting = best not in self.replay.eos_ids
            if told:
                cost += self.replay.costs.confidence
                keep_drafting &= self.policy.on_draft(level, prediction.of(self.policy.features)[index])
            self.outcome.seconds += cost
            if not keep_drafting:
                break
        self.policy.on_timing(Draft(len(tokens) - drafted, level), self.outcome.seconds - before)
        if level == self.target:
            self.outcome.target_passes += 1

    def verify(self, chosen: Verify) -> None:
        """Let a level verify the waiting tokens; see `DecodeLoop.verify`."""
        level = chosen.level
        tokens, since, told = self.tokens, self.verified[level], self.told
        proposed = len(tokens) - since
        rows = proposed + (self.replay.hierarchy.below[level] is None and self.may_draft())
        cost = self.replay.verifying[level] + self.advance(level, since - 1 + rows) + self._head(level, rows)
        accepted, own, sure = 0, None, []
        said: list[int] = []
        for at in range(since, since + rows):
            best, prediction, index = self.read(level, at)
            said.append(best)
            if told and level < self.target:
                sure.append(prediction.of(self.policy.features)[index])
            if at == len(tokens) or best != tokens[at]:
                own = best
                break
            accepted += 1
        if told and level < self.target:
            cost += self.replay.costs.confidence
        kept = since + accepted
        if self.ngrams is not None:
            self.ngrams.cache.record_argmax(tokens[since - 1 :], said)
        self.accept(kept, level)
        if accepted < proposed:
            tail = tokens[kept + 1 :]
            self.rewind(kept)
            if self.ngrams is not None:
                self.ngrams.rejected(tail)  # the level's predictions for these rows were not recorded
        if own is not None:
            self.append(own, level)
        if told:
            self.policy.on_verification(level, proposed, accepted, accepted + (own is not None), sure)
        self.policy.on_timing(chosen, cost)
        self.outcome.seconds += cost
        self.outcome.target_passes += level == self.target

    def read(self, level: int, at: int) -> tuple[int, Prediction, int]:
        """Return a level's argmax token at an index, the prediction that has it, and its index there."""
        prediction = self.own[level]
        if self.left is not None and at > self.left:
            prediction, at = self.away[level], at - self.left - 1
            assert prediction is not None
            at %= len(prediction.argmax)
        assert prediction is not None
        return prediction.argmax[at], prediction, at

    def append(self, token: int, level: int) -> None:
        """Add a token that `level` chose; see `DecodingState.append`. Notices where the target's own text is left."""
        at = len(self.tokens)
        if self.left is None and token != self.text.tokens[at]:
            self.left, self.away = at, self._branch(level)
        self.tokens.append(token)
        self.accept(at + 1, level)

    def accept(self, upto: int, level: int) -> None:
        """Mark x[0:upto] as verified by `level` and by all levels below, including those that were skipped.

        See `DecodingState.accept`.
        """
        for j in range(level + 1):
            self.verified[j] = max(self.verified[j], upto)

    def rewind(self, length: int) -> None:
        """Forget x[length:]; see `DecodingState.rewind`."""
        del self.tokens[length:]
        self.verified[:] = [min(count, length) for count in self.verified]
        self.frontier[:] = [min(count, length) for count in self.frontier]
        if self.left is not None and length <= self.left:
            self.left = None

    def advance(self, level: int, upto: int) -> float:
        """Run tokens frontier[level]..upto-1 through a level's own span, and lower levels of its stack first.

        See `DecodingState.advance`. Returns seconds.
        """
        rows = upto - self.frontier[level]
        if rows <= 0:
            return 0.0
        below = self.replay.hierarchy.below[level]
        seconds = 0.0 if below is None else self.advance(below, upto)
        self.frontier[level] = upto
        for lower in self.replay.hierarchy.beneath[level]:  # their rows of the cache are overwritten
            self.frontier[lower] = max(self.frontier[lower], upto)
        spans = self.tables[level][0]
        return seconds + (spans[rows] if rows < len(spans) else spans[-1] * rows / (len(spans) - 1))

    def _head(self, level: int, rows: int) -> float:
        heads = self.tables[level][1]
        return heads[min(rows, len(heads) - 1)]

    def _branch(self, level: int) -> list[Prediction | None]:
        """Return the recorded predictions after a mistake of a level."""
        spec = self.replay.specs[level]
        known = self.replay.recorded.branches
        branches = known.get(spec) or next(branches for branches in known.values() if branches)
        predictions: Mapping[LevelSpec, Prediction] = self.replay.rng.choice(branches).predictions
        return [predictions[other] if other.model else None for other in self.replay.specs]

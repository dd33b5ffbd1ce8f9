"""Finds the fastest configuration by replay: thousands are scored, and the better ones more and more precisely."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from random import Random

from hispec.adaptation import performance_model
from hispec.calibration.adapting import Fitter, performance_model_of
from hispec.calibration.costs import Costs
from hispec.calibration.recording import LevelSpec, RecordedText, RecordedTexts
from hispec.calibration.replay import Outcome, Replay
from hispec.counts import counted
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.metrics import exit_name
from hispec.models.stack import LayerStack, ReducedHead
from hispec.models.translator import Translator
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Policy
from hispec.policies.performance_model import PerformanceModel
from hispec.policies.static import StaticPolicy

NAMES = ("draft", "intermediate")


@dataclass(frozen=True, order=True)
class Configuration:
    """One way of decoding.

    Attributes:
        specs: below the target, the cheapest first; none is plain decoding.
        periods: tokens at which each next level verifies, the target last; empty for the adaptive policy.
        ngram: (longest, tokens) of n-gram drafts below all levels, or None.
        uncalibrated: whether the adaptive policy begins with what it knows without a profile. Nothing that may be
            chosen does.
    """

    specs: tuple[LevelSpec, ...] = ()
    periods: tuple[int, ...] = ()
    ngram: tuple[int, int] | None = None
    uncalibrated: bool = False

    @classmethod
    def of_defaults(cls, hierarchy: Hierarchy) -> "Configuration":
        """Return what a hierarchy decodes with that has no profile."""
        specs = [
            LevelSpec(hierarchy.stack_of(-1).name, level.exit_layer, weights=level.weights or "")
            for level in hierarchy.levels[:-1]
            if level.stack is not None
        ]
        found = hierarchy.ngrams
        return cls(tuple(specs), (), None if found is None else (found.longest, found.tokens), uncalibrated=True)

    @property
    def adaptive(self) -> bool:
        """Return whether the adaptive policy decides."""
        return bool(self.specs or self.ngram) and not self.periods

    @property
    def quantized(self) -> bool:
        """Return whether a level reads a quantized copy of the target."""
        return any(spec.weights for spec in self.specs)

    @property
    def mode(self) -> str:
        """Return the engine's mode that decodes it."""
        return ("autoregressive", "single-layer", "hispec")[min(2, len(self.specs))]

    def describe(self, target: str) -> str:
        """Return a short description: `exit 1 drafts 2, exit 2 drafts 12`; exits of the target go without its name."""
        if not self.specs and self.ngram is None:
            return "the target alone"
        names = [_name(spec, target) for spec in self.specs]
        ngrams = f"n-grams of up to {self.ngram[0]} draft {self.ngram[1]}, " if self.ngram else ""
        if self.adaptive:
            return ngrams + " > ".join([*names, "target"]) + (", no profile" if self.uncalibrated else ", adaptive")
        lengths = [f"{name} drafts {length}" for name, length in zip(names, self.periods, strict=False)]
        return ngrams + ", ".join(lengths or [f"target verifies {self.periods[-1]}"])


def _name(spec: LevelSpec, target: str) -> str:
    head = f" with a head of {counted(spec.head_size, 'token')}" if spec.head_size else ""
    exit_ = exit_name(spec.exit_layer, spec.weights)
    return (exit_ if spec.model == target else f"{exit_} of {spec.model}") + head


PLAIN = Configuration()


@dataclass(frozen=True)
class SearchSpace:
    """The configurations that may be chosen.

    Attributes:
        exits: the level specs of the target's exits, ascending.
        drafters: whole other models that may draft.
        copies: shallow exits of quantized copies of the target, which may draft.
        whole: whole copies, which may draft, and verify what any exit or other model drafts.
        draft_tokens: N_d.
        validate_every: N_i.
        head_sizes: sizes of reduced heads to try with the better configurations.
        ngrams: n-gram look-ups to try with these.
        adaptive: whether the adaptive policy is tried.
    """

    exits: tuple[LevelSpec, ...]
    drafters: tuple[LevelSpec, ...] = ()
    copies: tuple[LevelSpec, ...] = ()
    whole: tuple[LevelSpec, ...] = ()
    draft_tokens: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    validate_every: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32)
    head_sizes: tuple[int, ...] = ()
    ngrams: tuple[tuple[int, int], ...] = ((3, 4), (4, 8))
    adaptive: bool = True

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        """Return all level specs that may draft."""
        return (*self.drafters, *self.exits, *self.copies, *self.whole)

    def chains(self) -> Iterator[tuple[LevelSpec, ...]]:
        """Return the level specs below the target of every hierarchy with one or two of them."""
        yield from ((spec,) for spec in self.specs)
        yield from combinations(self.exits, 2)
        yield from product(self.drafters, self.exits)
        yield from product((*self.drafters, *self.exits, *self.copies), self.whole)

    def without(self, weights: Collection[str]) -> "SearchSpace":
        """Return the space without the copies of some formats."""

        def left(specs: Iterable[LevelSpec]) -> tuple[LevelSpec, ...]:
            return tuple(spec for spec in specs if spec.weights not in weights)

        return replace(self, copies=left(self.copies), whole=left(self.whole))

    def static(self) -> Iterator[Configuration]:
        """Return every configuration of fixed lengths, and plain decoding; N_i is never below N_d."""
        yield PLAIN
        for chain in self.chains():
            for lengths in product(*[self.draft_tokens] * (len(chain) - 1), self.validate_every):
                if all(length <= lengths[-1] for length in lengths):
                    yield Configuration(chain, lengths)


class HierarchyBuilder:
    """Makes hierarchies of configurations, on loaded models.

    Args:
        stacks: the stacks by name, including quantized copies of the target.
        target: the level spec of the target.
        heads: reduced heads by level spec.
        translators: the translators, by model and exit.
    """

    def __init__(
        self,
        stacks: Mapping[str, LayerStack],
        target: str,
        heads: Mapping[LevelSpec, ReducedHead] | None = None,
        translators: Mapping[tuple[str, int], Translator] | None = None,
    ) -> None:
        self.stacks, self.target, self.heads, self.translators = stacks, target, heads or {}, translators or {}
        self._known: dict[tuple[tuple[LevelSpec, ...], tuple[int, int] | None, bool], Hierarchy] = {}

    def hierarchy(self, configuration: Configuration) -> Hierarchy:
        """Return the hierarchy of a configuration, the same object for the same levels."""
        key = configuration.specs, configuration.ngram, configuration.uncalibrated
        if key not in self._known:
            levels = [Level.of_ngrams(*configuration.ngram)] if configuration.ngram else []
            for name, spec in zip(NAMES, configuration.specs, strict=False):
                fitted = {} if configuration.uncalibrated else self.translators  # only a profile names them
                translator = fitted.get((spec.model, spec.exit_layer))
                stack, head = self.stacks[spec.stack], self.heads.get(spec)
                weights = spec.weights or None
                levels.append(Level(name, stack, spec.exit_layer, head, translator, weights=weights))
            own = self.stacks[self.target]
            self._known[key] = Hierarchy([*levels, Level("target", own, own.num_layers)])
        return self._known[key]


@dataclass(frozen=True)
class Score:
    """The result of a configuration's replays.

    Attributes:
        configuration: the configuration that was replayed.
        outcome: the outcome over all texts.
        texts: the number of texts.
    """

    configuration: Configuration
    outcome: Outcome
    texts: int

    @property
    def speed(self) -> float:
        """Return tokens per second."""
        return self.outcome.tokens_per_second


@dataclass
class Scorer:
    """Replays configurations.

    Attributes:
        builder: makes the hierarchies of configurations.
        recorded: the recorded texts.
        costs: the measured costs.
        eos_ids: the token ids that end texts.
        fitter: the fitter of predictors of acceptance.
        seed: the seed of the replays' random choices.
        scored: the number of replays.
    """

    builder: HierarchyBuilder
    recorded: RecordedTexts
    costs: Costs
    eos_ids: Collection[int]
    fitter: Fitter
    seed: int = 0
    scored: int = 0
    _replays: dict[Hierarchy, Replay] = field(default_factory=dict)
    _known: dict[Hierarchy, PerformanceModel] = field(default_factory=dict)

    def score(self, configuration: Configuration, texts: Sequence[RecordedText]) -> Score:
        """Replay one configuration on some texts."""
        self.scored += 1
        replay = self._replay(configuration)
        replay.rng = Random(self.seed)
        policy = self.policy(configuration)
        outcome = replay.run_all(texts, policy)
        return Score(configuration, outcome, len(texts))

    def policy(self, configuration: Configuration) -> Callable[[], Policy]:
        """Return a function that makes policies of a configuration."""
        if configuration.adaptive:
            known = self.performance_model(configuration)
            return lambda: AdaptivePolicy(known)
        periods = (1, *configuration.periods)
        if configuration.ngram is not None:
            periods = (1, 1, *configuration.periods)
        return lambda: StaticPolicy(periods)

    def performance_model(self, configuration: Configuration) -> PerformanceModel:
        """Return the performance model of a configuration's hierarchy.

        Without calibration, costs are measured as decoding without a profile does, but now: those in the user's cache
        may be of a busy moment.
        """
        hierarchy = self.builder.hierarchy(configuration)
        if hierarchy not in self._known:
            self._known[hierarchy] = (
                performance_model(hierarchy, None, measured=True, cached=False)
                if configuration.uncalibrated
                else performance_model_of(self._replay(configuration), self.fitter, self.recorded.texts)
            )
        return self._known[hierarchy]

    def _replay(self, configuration: Configuration) -> Replay:
        hierarchy = self.builder.hierarchy(configuration)
        if hierarchy not in self._replays:
            self._replays[hierarchy] = Replay(hierarchy, self.recorded, self.costs, self.eos_ids, Random(self.seed))
        return self._replays[hierarchy]


@dataclass(frozen=True)
class SearchResult:
    """The result of the search by replay.

    Attributes:
        scores: the scores of every configuration, each from its last and most precise replay, the fastest first.
        finalists: the configurations to be timed, the fastest first.
    """

    scores: list[Score]
    finalists: list[Score]


SHARES = (0.1, 0.4, 1.0)
"""The shares of the texts that the rounds of the search replay."""

KEPT = (0.1, 0.25)
"""The shares of the configurations that advance to the next round."""

FEWEST = 1000
"""Configurations that are scored, however short the time."""

CHAINS = 12
"""Chains of levels that the adaptive policy, heads and n-grams are tried on."""


def search(
    space: SearchSpace,
    scorer: Scorer,
    finalists: int = 8,
    seen: Callable[[Score], None] = lambda score: None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Score everything by replay, in rounds on ever more texts, then refine what is best.

    Args:
        space: the configurations that may be chosen.
        scorer: replays.
        finalists: the number of finalists.
        seen: called with every score.
        out_of_time: called now and then. Once it returns True, the rest of the round is left out.
    """
    texts, scores = scorer.recorded.texts, dict[Configuration, Score]()

    def score_all(configurations: Iterable[Configuration], share: float) -> list[Score]:
        part = texts[: max(1, round(share * len(texts)))]
        for configuration in configurations:
            if len(scores) >= FEWEST and out_of_time():
                break
            scores[configuration] = scorer.score(configuration, part)
            seen(scores[configuration])
        return sorted(scores.values(), key=lambda score: (-score.texts, -score.speed))

    static = list(space.static())
    Random(scorer.seed).shuffle(static)  # so that a short budget leaves out a random part
    ranked = score_all([PLAIN, *static], SHARES[0])
    for share, kept in zip(SHARES[1:], KEPT, strict=True):
        ranked = score_all(_survivors(ranked, kept), share)
    chains = list(dict.fromkeys(score.configuration.specs for score in ranked if score.configuration.specs))
    best = [*chains[:CHAINS], *[chain for chain in chains if len(chain) == 1][:CHAINS]]
    if space.adaptive:
        ranked = score_all([Configuration(chain) for chain in dict.fromkeys(best)], 1.0)
    ranked = score_all(_variants(space, ranked), 1.0)
    exact = [score for score in ranked if score.texts == ranked[0].texts]
    return SearchResult(sorted(scores.values(), key=lambda score: -score.speed), _finalists(exact, finalists))


def _survivors(ranked: Sequence[Score], share: float) -> list[Configuration]:
    """Return the fastest scores: some each of plain decoding, single-layer speculation and hierarchies."""
    latest = [score for score in ranked if score.texts == ranked[0].texts]
    kept = {score.configuration for score in latest[: max(24, round(share * len(latest)))]}
    for levels in (0, 1, 2):
        kind = [score.configuration for score in latest if len(score.configuration.specs) == levels]
        kept.update(kind[:8])
    return [score.configuration for score in latest if score.configuration in kept]


def _variants(space: SearchSpace, ranked: Sequence[Score]) -> list[Configuration]:
    """Return the best configurations with smaller heads, and with n-gram drafts below."""
    varied: dict[Configuration, None] = {}
    for score in ranked[:CHAINS]:
        chosen = score.configuration
        for head_size in space.head_sizes if chosen.specs else ():
            reduced = [one if one in space.whole else replace(one, head_size=head_size) for one in chosen.specs]
            varied[replace(chosen, specs=tuple(reduced))] = None
        for ngram in space.ngrams if chosen.specs else ():
            varied[replace(chosen, ngram=ngram)] = None
    return list(varied)


def _finalists(exact: Sequence[Score], count: int) -> list[Score]:
    """Return the fastest configurations, and the best of every kind that users will ask about."""
    ordered = sorted(exact, key=lambda score: -score.speed)
    chosen = {score.configuration for score in ordered[:count]}
    best: dict[tuple[int, bool], Configuration] = {}
    published: dict[int, Configuration] = {}
    for score in ordered:
        one = score.configuration
        if one.ngram is None:
            best.setdefault((len(one.specs), one.adaptive), one)
            if not one.adaptive and not one.quantized:
                published.setdefault(len(one.specs), one)
    chosen.update(best.values(), published.values())
    return [score for score in ordered if score.configuration in chosen]

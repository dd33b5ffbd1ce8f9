"""A calibration from start to end: measure, record, search, time, check; within a budget, and resumable."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import mean
from time import perf_counter
from typing import TypeVar, cast

from hispec.bench.processes import Processes
from hispec.budget import Budget
from hispec.calibration.adapting import Fitter
from hispec.calibration.costs import Costs, measure, seconds_alone, seconds_of_a_pass
from hispec.calibration.recording import FEWEST, LevelSpec, RecordedTexts, Recorder, record_all
from hispec.calibration.result import CalibrationResult, agreement_of, baselines_among
from hispec.calibration.search import (
    PLAIN,
    Configuration,
    HierarchyBuilder,
    Score,
    Scorer,
    SearchResult,
    SearchSpace,
    search,
)
from hispec.calibration.steps import with_steps
from hispec.calibration.store import CalibrationStore
from hispec.calibration.timing import TimedAnswer, Timer, Timings, halving
from hispec.models.stack import LayerStack, ReducedHead
from hispec.models.translator import Translator
from hispec.policies.base import Policy
from hispec.policies.static import StaticPolicy

PHASES = ("costs", "traces", "replay", "timing", "check")
"""The phases of a calibration, in order."""

ENDS = {"costs": 0.15, "traces": 0.4, "replay": 0.6, "timing": 0.8, "check": 1.0}
"""For each phase, the share of the budget, or of what loading has left of it, at which the phase has to end."""

SHORTEST = 16
"""Tokens of an answer, however short the time."""

COSTS_PASSES, LEAST_ANSWERS = 100, 30
"""The least work, about: passes of a token to know costs, and answers in all that comes after."""

FINALISTS, FEWEST_FINALISTS = 8, 3
"""The number of configurations that are timed, besides the best of each kind; the second where time is short."""

HELD_OUT = 3
"""One of this many prompts is held out of calibration, for the check."""


T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """An event: how much of a phase is done, from 0 to 1."""

    name: str
    share: float


@dataclass(frozen=True)
class Replayed:
    """An event: a configuration was replayed."""

    score: Score


@dataclass(frozen=True)
class Timed:
    """An event: an answer was timed; `alive` has the configurations that are not yet dropped."""

    timings: Timings
    alive: list[int]


@dataclass(frozen=True)
class Planned:
    """The effort that the budget allows: estimated from one token at the start, and from measured costs later.

    Attributes:
        tokens: the length of an answer in tokens, None at the start.
        least: the approximate seconds that the smallest effort with a result still takes.
    """

    tokens: int | None
    least: float


Progress = Phase | Replayed | Timed | Planned


@dataclass(frozen=True)
class CalibrationJob:
    """The subject of a calibration.

    Attributes:
        stacks: loaded models by name, and the copies that `space` names.
        target: the level spec of the target.
        heads: reduced heads by level spec.
        space: the configurations to consider.
        prompts: token ids.
        eos_ids: the token ids that end answers.
        max_new_tokens: tokens of an answer.
        budget: the time budget of the command.
        seed: the seed of all random choices.
        translators: the translators, by model and exit.
        defaults: what decodes without a profile, for comparison; None leaves it out.
    """

    stacks: dict[str, LayerStack]
    target: str
    heads: dict[LevelSpec, ReducedHead]
    space: SearchSpace
    prompts: list[list[int]]
    eos_ids: frozenset[int]
    max_new_tokens: int
    budget: Budget
    seed: int = 0
    translators: Mapping[tuple[str, int], Translator] = field(default_factory=dict)
    defaults: Configuration | None = None

    @property
    def builder(self) -> HierarchyBuilder:
        """Return the builder of the hierarchies of configurations."""
        return HierarchyBuilder(self.stacks, self.target, self.heads, self.translators)

    @property
    def whole(self) -> LevelSpec:
        """Return the level spec of the target."""
        return LevelSpec(self.target, self.stacks[self.target].num_layers)

    def specs(self, space: SearchSpace) -> list[LevelSpec]:
        """Return all level specs to record: those of a part of the space with all their heads, and the target."""
        lower = space.specs
        reduced = [spec for spec in self.heads if spec.head_size and replace(spec, head_size=0) in lower]
        return [*lower, *reduced, self.whole]

    def affordable(self, costs: Costs) -> SearchSpace:
        """Return the space without copies that are as slow as the target."""

        def token(stack: str) -> float:
            return seconds_alone(costs, stack, self.stacks[stack].num_layers, 1)[1]

        limit = token(self.target)
        return self.space.without({spec.weights for spec in self.space.whole if token(spec.stack) >= limit})


class CalibrationRun:
    """Runs one calibration.

    Args:
        job: the subject of the calibration.
        folder: the folder of intermediate results.
        listen: called with progress.
        resume: whether to continue with the results in the folder.
        processes: the processes that take part: the first measures, records and searches, and all of them time.
    """

    def __init__(
        self,
        job: CalibrationJob,
        folder: Path,
        listen: Callable[[Progress], None] = lambda progress: None,
        *,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.job, self.listen, self.processes = job, listen, processes or Processes()
        own = folder if self.processes.reports else folder / f"process-{self.processes.rank}"
        self._store = CalibrationStore(own, resume=resume)
        self._most = job.max_new_tokens
        self._loaded = job.budget.spent
        self._seconds: dict[str, float] = {}
        self._space = job.space
        self._rng = Random(job.seed)
        self._own = [prompt for at, prompt in enumerate(job.prompts) if (at + 1) % HELD_OUT]
        self._unseen = [prompt for at, prompt in enumerate(job.prompts) if not (at + 1) % HELD_OUT]

    def run(self) -> CalibrationResult:
        """Run all phases, and return the result.

        Raises:
            KeyboardInterrupt: the user interrupted; measurements so far are kept.
        """
        job = self.job
        costs = self._phase("costs", lambda: self._by_the_first(self.costs))
        self._space = job.affordable(costs)
        self._most = self._by_the_first(lambda: self.plan(costs))
        recorded = self._phase("traces", lambda: self._by_the_first(self.recorded))
        scorer = Scorer(job.builder, recorded, costs, job.eos_ids, Fitter(recorded.texts, ("margin",)), job.seed)
        found = self._phase("replay", lambda: self._by_the_first(lambda: self.search(scorer)))
        timings, best, ties = self._phase("timing", lambda: self.time(scorer, found))
        check = self._phase("check", lambda: self.check(scorer, timings, best))
        chosen = timings.configurations
        winner, tied = chosen[best], [chosen[one] for one in ties]
        first = check.fastest(at for at, one in enumerate(check.configurations) if not one.uncalibrated)[0]
        if not check.may_be_as_fast(check.configurations.index(winner), first):  # it was luck
            winner, tied = check.configurations[first], []
        return CalibrationResult(
            winner,
            tied,
            found,
            timings,
            check,
            scorer,
            agreement_of(recorded, job.whole),
            self._seconds,
        )

    def costs(self) -> Costs:
        """Return the costs, measured now or by an earlier run."""
        if (kept := self._store.costs()) is not None:
            return kept
        job, target = self.job, self.job.stacks[self.job.target]
        heads: dict[tuple[str, int], ReducedHead | None] = {(name, 0): None for name in job.stacks}
        heads |= {(spec.stack, spec.head_size): head for spec, head in job.heads.items()}
        passes = COSTS_PASSES + LEAST_ANSWERS * min(SHORTEST, job.max_new_tokens)
        self.listen(Planned(None, passes * seconds_of_a_pass(target)))
        late = lambda: self._late("costs")  # noqa: E731
        costs = measure(
            job.stacks, heads, ("margin",), progress=lambda share: self._tell("costs", 0.7 * share), out_of_time=late
        )
        costs = with_steps(
            costs, target, {0: None}, self._own, min(48, job.max_new_tokens), 40, Random(job.seed), out_of_time=late
        )
        self._store.keep_costs(costs)
        return costs

    def plan(self, costs: Costs) -> int:
        """Choose and report how many tokens an answer has, so that the remaining phases fit the budget."""
        job = self.job
        prompt = round(mean(len(prompt) for prompt in job.prompts))
        before, token = seconds_alone(costs, job.target, job.stacks[job.target].num_layers, prompt)
        time = max(0.0, job.budget.seconds - self._loaded)
        # At the least, some texts are written and then read, and a few configurations answer two prompts each.
        texts = min(FEWEST, len(self._own))
        published, defaults = 2 * bool(self._space.whole), self.job.defaults is not None
        answers = {
            "traces": texts,
            "timing": 2 * (FEWEST_FINALISTS + 5 + published),
            "check": 2 * (3 + published + defaults) + defaults,
        }
        prompts = answers | {"traces": 2 * texts}

        def fits(phase: str) -> float:
            share = ENDS[phase] - ENDS[PHASES[PHASES.index(phase) - 1]]
            return (share * time - prompts[phase] * before) / (answers[phase] * token)

        longest = min(job.max_new_tokens, int(min(map(fits, answers))))
        tokens = self._store.length() or max(min(SHORTEST, job.max_new_tokens), longest)
        self._store.keep_length(tokens)
        self.listen(Planned(tokens, sum(prompts.values()) * before + sum(answers.values()) * tokens * token))
        return tokens

    def recorded(self) -> RecordedTexts:
        """Return recorded texts, from the store where it has them; fewer prompts where time is short."""
        if (kept := self._store.recorded()) is not None:
            return kept
        job = self.job
        timer = Timer(job.builder, PlainPolicies(), job.eos_ids, self._most, job.stacks[job.target].context)
        specs = job.specs(self._space)
        read = {spec.stack for spec in specs}
        stacks = {name: stack for name, stack in job.stacks.items() if name in read}
        recorder = Recorder(stacks, specs, job.heads, job.target, job.translators)
        recorded = record_all(
            recorder,
            self._own,
            lambda prompt: timer.answer(PLAIN, prompt)[0],
            Random(job.seed),
            progress=lambda share: self._tell("traces", share),
            out_of_time=lambda: self._late("traces"),
        )
        self._store.keep_recorded(recorded)
        return recorded

    def search(self, scorer: Scorer) -> SearchResult:
        """Search by replay."""
        return search(
            self._space,
            scorer,
            FEWEST_FINALISTS if self._late("traces") else FINALISTS,
            seen=lambda score: self.listen(Replayed(score)),
            out_of_time=lambda: self._late("replay"),
        )

    def time(self, scorer: Scorer, found: SearchResult) -> tuple[Timings, int, list[int]]:
        """Return the timings of the finalists, and the indices of the best and of those that may be as fast."""
        configurations = [score.configuration for score in found.finalists]
        timings = Timings(configurations, self._answers("timing", configurations))
        alive = list(range(len(configurations)))

        def done(answer: TimedAnswer) -> None:
            self._store.keep_answer("timing", configurations[answer.configuration], answer)
            self.listen(Timed(timings, alive))

        kinds = baselines_among(configurations, scorer.builder)
        keep = [configurations.index(one) for name, one in kinds.items() if name.startswith("single-layer")]
        for left in halving(
            self._timer(scorer),
            timings,
            self._own,
            keep,
            8,
            self._rng,
            lambda: self._late("timing"),
            done,
            self.processes,
        ):
            alive[:] = left
            self.listen(Timed(timings, alive))
        best = timings.fastest(alive)[0]
        return timings, best, timings.ties(best, range(len(configurations)))

    def check(self, scorer: Scorer, timings: Timings, best: int) -> Timings:
        """Return the timings of winner and baselines on unseen prompts."""
        fastest = [timings.configurations[one] for one in timings.fastest(range(len(timings.configurations)))]
        kinds = baselines_among([*fastest, PLAIN], scorer.builder)
        if not timings.configurations[best].quantized:
            kinds.pop("hispec-published", None)
        defaults = self.job.defaults
        compared = [timings.configurations[best], *kinds.values(), *([] if defaults is None else [defaults])]
        configurations = list(dict.fromkeys(compared))
        check = Timings(configurations, self._answers("check", configurations))
        everybody = list(range(len(configurations)))

        def done(answer: TimedAnswer) -> None:
            self._store.keep_answer("check", configurations[answer.configuration], answer)
            self.listen(Timed(check, everybody))

        timer = self._timer(scorer)
        if defaults is not None:  # the others have answered prompts, too
            timer.answer(defaults, self._own[0])
        rounds = halving(
            timer,
            check,
            self._unseen or self._own,
            everybody,
            len(self._unseen) or len(self._own),
            self._rng,
            lambda: self._late("check"),
            done,
            self.processes,
        )
        next(rounds)
        return check

    def _timer(self, scorer: Scorer) -> Timer:
        job = self.job
        return Timer(scorer.builder, scorer, job.eos_ids, self._most, job.stacks[job.target].context)

    def _phase(self, name: str, work: Callable[[], T]) -> T:
        self._tell(name, 0.0)
        begin = perf_counter()
        result = work()
        self._seconds[name] = perf_counter() - begin
        self._tell(name, 1.0)
        return result

    def _answers(self, phase: str, configurations: list[Configuration]) -> list[TimedAnswer]:
        """Return the timed answers of all processes."""
        return self.processes.agree(self.processes.gather(self._store.answers(phase, configurations)))

    def _by_the_first(self, work: Callable[[], T]) -> T:
        """Return what the first process computes, in all processes."""
        return self.processes.agree(work() if self.processes.reports else cast("T", None))

    def _tell(self, name: str, share: float) -> None:
        self.listen(Phase(name, share))

    def _late(self, phase: str) -> bool:
        budget = self.job.budget
        return budget.spent > self._loaded + ENDS[phase] * (budget.seconds - self._loaded)


class PlainPolicies:
    """Policies of plain decoding."""

    def policy(self, configuration: Configuration) -> Callable[[], Policy]:
        """Return a maker of policies of plain decoding; see `hispec.calibration.timing.Policies`."""
        return lambda: StaticPolicy((1,))

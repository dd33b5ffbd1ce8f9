"""Common parts of the benchmarks of calibration: the shipped model with costs and traces, and interleaved timing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hispec import Engine
from hispec.budget import Budget
from hispec.calibration.adapting import Fitter
from hispec.calibration.job import job_of
from hispec.calibration.recording import RecordedTexts
from hispec.calibration.result import CalibrationResult
from hispec.calibration.run import CalibrationJob, CalibrationRun
from hispec.calibration.search import Configuration, Scorer
from hispec.calibration.timing import TimedAnswer, Timer, Timings, digest_of_ids
from hispec.datasets import load
from hispec.text import encode_prompt

MAX_NEW_TOKENS = 96
"""Tokens of an answer."""


def encoded(engine: Engine, questions: Sequence[str]) -> list[list[int]]:
    """Return the token ids of questions, chat template included."""
    return [encode_prompt(engine.tokenizer, question) for question in questions]


def sample_questions() -> list[str]:
    """Return questions of the shipped dataset."""
    return [row.turns[0] for row in load("sample").rows]


class CalibrationSetup:
    """The shipped model, calibrated on some prompts.

    Args:
        budget: seconds of the calibration.
        prompts: the calibration prompts, a third of them for the check; by default the shipped dataset's.
        exits: the exits to consider.
    """

    def __init__(self, budget: float = 60.0, prompts: Sequence[str] = (), exits: Sequence[int] = ()) -> None:
        self.engine = Engine.from_profile("tiny")
        self.prompts = encoded(self.engine, prompts or sample_questions())
        self.job: CalibrationJob = job_of(
            self.engine, self.prompts, Budget(budget), exits=exits, max_new_tokens=MAX_NEW_TOKENS
        )

    def session(self, folder: str) -> CalibrationRun:
        """Return a calibration whose budget begins now."""
        return CalibrationRun(replace(self.job, budget=Budget(self.job.budget.seconds)), Path(folder))

    def calibrate(self) -> CalibrationResult:
        """Return a whole calibration."""
        with TemporaryDirectory() as folder:
            return self.session(folder).run()

    def scorer(self) -> Scorer:
        """Measure costs and record texts only, and return the scorer of replays."""
        with TemporaryDirectory() as folder:
            session = self.session(folder)
            costs, recorded = session.costs(), session.recorded()
        return self.scorer_of(costs, recorded)

    def scorer_of(self, costs: object, recorded: RecordedTexts) -> Scorer:
        """Return a scorer of replays of recorded texts."""
        fitter = Fitter(recorded.texts, ("margin",))
        return Scorer(self.job.builder, recorded, costs, self.job.eos_ids, fitter)  # type: ignore[arg-type]

    def timer(self, scorer: Scorer) -> Timer:
        """Return a timer, which decodes prompts."""
        return Timer(scorer.builder, scorer, self.job.eos_ids, MAX_NEW_TOKENS, self.engine.context)


def interleaved(
    timer: Timer,
    configurations: Sequence[Configuration],
    prompts: Sequence[Sequence[int]],
    repeats: int,
    seed: int = 0,
    said: Callable[[str], None] = lambda text: None,
) -> Timings:
    """Decode every prompt with all configurations, in an order drawn for each, after a warm-up that does not count."""
    timings, rng = Timings(list(configurations)), Random(seed)
    for configuration in configurations:
        timer.answer(configuration, prompts[0])
    for repeat in range(repeats):
        for at, prompt in enumerate(prompts):
            for one in rng.sample(range(len(configurations)), len(configurations)):
                ids, seconds = timer.answer(configurations[one], prompt)
                timings.answers.append(TimedAnswer(one, at, repeat, len(ids), seconds, digest_of_ids(ids)))
        said(f"repeat {repeat + 1} of {repeats}")
    return timings

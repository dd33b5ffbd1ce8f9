"""Runs a benchmark: all arms answer every prompt in turn, and each answer is compared with the reference's."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from pydantic import JsonValue

from hispec.api import Engine
from hispec.bench.arms import Answer, Arm, OwnArm, make_arms
from hispec.bench.journal import Journal
from hispec.bench.names import REFERENCE
from hispec.bench.record import LevelCounts, Measurement, TokenComparison
from hispec.configuration import configuration_of
from hispec.datasets.base import Dataset, Row
from hispec.machine import processor_name
from hispec.text import encode_prompt


@dataclass(frozen=True)
class Task:
    """One prompt to be answered by all arms."""

    row: Row
    repeat: int

    @property
    def key(self) -> tuple[str, int]:
        """Return the key that identifies the task: its row and repeat."""
        return self.row.id, self.repeat


class Runner:
    """Measures all arms.

    Args:
        engine: loaded in mode `hispec`.
        dataset: the dataset, with its prompt format and its score.
        arms: names; the first is the one under test.
        max_new_tokens: the maximum number of tokens in an answer.
        force: the argument of `make_arms`, whose errors this raises.

    Raises:
        UsageError: an arm that the profile has no levels or no model for.
    """

    def __init__(
        self, engine: Engine, dataset: Dataset, arms: Sequence[str], max_new_tokens: int, *, force: bool = False
    ) -> None:
        self.engine, self.dataset, self.max_new_tokens = engine, dataset, max_new_tokens
        self.arms = make_arms(arms, engine, force=force)
        own = next((arm for arm in self.arms if arm.name == REFERENCE), None)
        self._reference = own or make_arms([REFERENCE], engine)[0]

    def fits(self, row: Row) -> bool:
        """Return whether a row's first turn leaves room for an answer in the context."""
        return len(self._encode(row.turns[0], ())) < self.engine.context

    def warm_up(self, rows: Sequence[Row]) -> None:
        """Answer rows that are not measured: allocations, caches and clocks settle."""
        for row in rows:
            for arm in self.arms:
                self._ask(arm, row, seed=0)

    def run(self, tasks: Sequence[Task], journal: Journal) -> Iterator[list[Measurement]]:
        """Measure all prompts that the journal lacks, and yield the answers to each prompt once they are on disk."""
        done = {(measurement.row, measurement.repeat) for measurement in journal.measured}
        for task in tasks:
            if task.key not in done:
                measurements = self.measure(task)
                journal.append(measurements)
                yield measurements

    def measure(self, task: Task) -> list[Measurement]:
        """Let every arm answer one prompt, in an order drawn for the prompt, so that none always comes first."""
        order = Random(f"{task.row.id}/{task.repeat}").sample(self.arms, len(self.arms))
        seed = Random(f"{self.engine.settings.seed}/{task.row.id}/{task.repeat}").getrandbits(32)
        answers: dict[str, list[Answer]] = {}
        memory: dict[str, int | None] = {}
        for arm in order:
            with _PeakMemory(self.engine) as peak:
                answers[arm.name] = self._ask(arm, task.row, seed)
            memory[arm.name] = peak.bytes
        reference = answers.get(REFERENCE) or self._ask(self._reference, task.row, seed)
        return [
            self._measurement(
                arm.name,
                task,
                answers[arm.name],
                memory[arm.name],
                self._compare(arm, answers[arm.name], reference, seed),
            )
            for arm in self.arms
        ]

    def _ask(self, arm: Arm, row: Row, seed: int) -> list[Answer]:
        """Answer all turns of a row; a conversation ends early if the context is full."""
        history: list[tuple[str, str]] = []
        answers: list[Answer] = []
        for said in row.turns:
            prompt_ids = self._encode(said, history)
            room = self.engine.context - len(prompt_ids)
            if room < 1:
                break
            stop = self.dataset.stop or self.engine.generation.stop
            answer = arm.answer(prompt_ids, min(room, self.max_new_tokens), stop, seed)
            answers.append(answer)
            history.append((said, answer.text))
        return answers

    def _encode(self, said: str, history: Sequence[tuple[str, str]]) -> list[int]:
        template = self.engine.profile.chat_template
        return encode_prompt(self.engine.tokenizer, said, raw=self.dataset.raw, template=template, history=history)

    def _measurement(
        self, arm: str, task: Task, answers: Sequence[Answer], memory: int | None, lossless: TokenComparison | None
    ) -> Measurement:
        stats = [answer.stats for answer in answers if answer.stats is not None]
        first = answers[0]
        return Measurement(
            arm=arm,
            row=task.row.id,
            repeat=task.repeat,
            prompt_tokens=sum(len(answer.prompt_ids) for answer in answers),
            token_ids=[token for answer in answers for token in answer.token_ids],
            text="\n\n".join(answer.text for answer in answers),
            finish_reason=answers[-1].finish_reason,
            seconds=sum(answer.seconds for answer in answers),
            time_to_first_token_s=first.moments[0][0] if first.moments else first.seconds,
            inter_token_s=[gap for answer in answers for gap in _gaps(answer.moments)],
            phase_seconds={
                phase: sum(s.seconds[phase] for s in stats) for phase in (stats[0].seconds if stats else ())
            },
            target_passes=sum(s.target_passes for s in stats) if stats else None,
            levels=_levels(answers),
            peak_memory_bytes=memory,
            score=self.dataset.score(task.row, answers[-1].text),
            lossless=lossless,
        )

    def _compare(
        self, arm: Arm, answers: Sequence[Answer], reference: Sequence[Answer], seed: int
    ) -> TokenComparison | None:
        """Return the first difference of a conversation; turns after it answer to another text.

        None where there is nothing to compare: the target's own answers, and those sampled with other noise.
        """
        if arm.name == REFERENCE or (self.engine.settings.temperature > 0 and not isinstance(arm, OwnArm)):
            return None
        before = 0
        for answer, expected in zip(answers, reference, strict=False):
            limit = min(self.engine.context - len(answer.prompt_ids), self.max_new_tokens)
            difference = self.engine.examine(answer.prompt_ids, answer.token_ids, expected.token_ids, limit, seed)
            if difference is not None:
                return TokenComparison(
                    identical=False, at=before + difference.at, gap=difference.gap, kind=difference.kind
                )
            before += len(answer.token_ids)
        return TokenComparison(identical=True)


def tasks(rows: Sequence[Row], repeats: int) -> list[Task]:
    """Return all prompts in order: every row once, then every row again."""
    return [Task(row, repeat) for repeat in range(repeats) for row in rows]


def configuration(
    engine: Engine,
    dataset: dict[str, JsonValue],
    arms: Sequence[str],
    repeats: int,
    max_new_tokens: int,
    processes: int,
) -> dict[str, JsonValue]:
    """Return everything that measurements depend on, so that only equal runs are continued or compared without a
    warning.
    """
    return {
        **configuration_of(engine, max_new_tokens),
        "arms": list(arms),
        "dataset": dataset,
        "repeats": repeats,
        "machine": describe_machine(engine, processes),
    }


def hash_of(config: Mapping[str, JsonValue]) -> str:
    """Return the SHA-256 of a configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def describe_machine(engine: Engine, processes: int) -> dict[str, Any]:
    """Return the conditions that figures depend on besides the configuration, without those that change from run to
    run.
    """
    return {**engine.environment, "processor": processor_name(), "processes": processes}


def _gaps(moments: Sequence[tuple[float, int]]) -> Iterator[float]:
    """Return the seconds between consecutive tokens; tokens that became final together are 0 apart."""
    before = None
    for at, count in moments:
        for _ in range(count):
            if before is not None:
                yield at - before
            before = at


def _levels(answers: Sequence[Answer]) -> list[LevelCounts]:
    """Return the counts by level, summed over the turns of a conversation."""
    stats = [answer.stats for answer in answers if answer.stats is not None]
    if not stats:
        return []
    total = stats[0].levels
    for other in stats[1:]:
        total = [a.plus(b) for a, b in zip(total, other.levels, strict=True)]
    names = LevelCounts.model_fields
    return [LevelCounts(**{name: getattr(level, name) for name in names}) for level in total]


class _PeakMemory:
    """The peak memory while the block runs: the GPU's if there is one, else the resident memory of the process.

    Linux keeps the peak of resident memory and lets a process reset its own; elsewhere, and where that is refused, the
    figure is None.
    """

    bytes: int | None = None

    def __init__(self, engine: Engine) -> None:
        self._cuda = engine.device.type == "cuda"
        self._device = engine.device

    def __enter__(self) -> "_PeakMemory":
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
                self._kept = True
            except OSError:
                self._kept = False
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        elif self._kept:
            lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
            self.bytes = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

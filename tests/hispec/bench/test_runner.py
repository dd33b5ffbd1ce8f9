"""A benchmark measures what was requested, even if the run is interrupted several times."""

import os
import random
import re
import signal
import time

import pytest

from hispec.bench.journal import Journal
from hispec.bench.runner import Runner, tasks
from hispec.datasets.base import Dataset, Row
from hispec.decoding.engine import DecodeLoop
from hispec.errors import UsageError
from training.evaluate import held_out_problems

ARMS = ["hispec", "autoregressive"]
CONFIG = {"arms": ARMS, "rows": 3}


class Short(Dataset):
    """Problems, scored by the length of their answer."""

    name, description, metric = "short", "for tests", "exact_match"

    def row(self, record, index):
        raise NotImplementedError

    def score(self, row, text):
        return float(len(text) > 20)


ROWS = [Row(f"short/{i}", (problem.question,)) for i, problem in enumerate(held_out_problems(4, "trained"))]


KEYS = [task.key for task in tasks(ROWS, 2)]


@pytest.fixture(scope="module")
def runner(engine):
    return Runner(engine, Short(), ARMS, max_new_tokens=16)


def essence(measurements):
    """Everything in a record that does not change from run to run."""
    return sorted((m.arm, m.row, m.repeat, tuple(m.token_ids), m.score) for m in measurements)


@pytest.fixture(scope="module")
def undisturbed(runner, tmp_path_factory):
    with Journal(tmp_path_factory.mktemp("undisturbed") / "rows", CONFIG, KEYS, ARMS, resume=False) as journal:
        for _ in runner.run(tasks(ROWS, 2), journal):
            pass
        return essence(journal.measured)


def test_every_arm_answers_every_row_in_every_repeat_and_equals_the_reference(runner, undisturbed):
    assert [key[:3] for key in undisturbed] == sorted((a, r.id, n) for a in ARMS for r in ROWS for n in range(2))
    measured = runner.measure(tasks(ROWS, 1)[0])
    assert [m.arm for m in measured] == ARMS
    hispec, alone = measured
    assert hispec.lossless.identical and alone.lossless is None
    assert len(hispec.inter_token_s) == len(hispec.token_ids) - 1
    assert hispec.time_to_first_token_s <= hispec.seconds
    assert set(hispec.phase_seconds) == {"prefill", "draft", "intermediate", "target"}
    for level in hispec.levels:
        assert level.proposed == sum(level.proposed_at) and level.accepted == sum(level.accepted_at)
        assert level.accepted == sum(length * times for length, times in enumerate(level.accepted_lengths))


def test_the_reference_is_decoded_even_where_it_is_no_arm(engine):
    (measured,) = Runner(engine, Short(), ["hispec"], 16).measure(tasks(ROWS, 1)[0])
    assert measured.lossless.identical


def test_a_difference_is_found_and_diagnosed(engine, monkeypatch):
    right = DecodeLoop.verify

    def wrong_once(self, level):
        proposed, accepted, correction = right(self, level)
        if level == self.target and accepted > 1:
            self.state.tokens[self.state.committed - 1] ^= 1
        return proposed, accepted, correction

    runner = Runner(engine, Short(), ["hispec"], 16)
    monkeypatch.setattr(DecodeLoop, "verify", wrong_once)
    (measured,) = runner.measure(tasks(ROWS, 1)[0])
    assert measured.lossless.kind == "error" and measured.lossless.at > 0 and measured.lossless.gap > 0


def test_sampled_answers_are_compared_and_follow_the_seed(engine):
    def sample(seed):
        warm = Runner(engine.with_settings(temperature=1.0, seed=seed), Short(), ["hispec"], 16)
        return warm.measure(tasks(ROWS, 1)[0])[0]

    assert sample(1).lossless.identical
    assert sample(1).token_ids == sample(1).token_ids != sample(2).token_ids


def test_later_turns_are_asked_after_the_answers_to_earlier_ones(engine, runner):
    two = Row("two", (ROWS[0].turns[0], ROWS[1].turns[0]))
    one, both = (runner.measure(tasks([row], 1)[0])[0] for row in (ROWS[0], two))
    assert both.token_ids[: len(one.token_ids)] == one.token_ids and len(both.token_ids) > len(one.token_ids)
    assert both.prompt_tokens > 2 * one.prompt_tokens and both.lossless.identical
    assert both.levels[0].proposed > one.levels[0].proposed


def test_a_run_killed_at_twenty_moments_loses_nothing_and_repeats_nothing(runner, undisturbed, tmp_path):
    path, rng = tmp_path / "rows", random.Random(5)
    Journal(path, CONFIG, KEYS, ARMS, resume=False).__exit__(None, None, None)
    for _ in range(20):
        child = os.fork()
        if not child:
            try:
                with Journal(path, CONFIG, KEYS, ARMS, resume=True) as journal:
                    for _ in runner.run(tasks(ROWS, 2), journal):
                        pass
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with Journal(path, CONFIG, KEYS, ARMS, resume=True) as journal:
        for _ in runner.run(tasks(ROWS, 2), journal):
            pass
        assert essence(journal.measured) == undisturbed


def test_a_journal_cut_at_any_byte_is_continued(runner, undisturbed, tmp_path):
    path = tmp_path / "rows"
    first, second, third = (runner.measure(task) for task in tasks(ROWS, 1)[:3])
    with Journal(path, CONFIG, KEYS, ARMS, resume=False) as journal:
        head = path.stat().st_size
        journal.append(first)
        journal.append(second)
    whole = path.read_bytes()
    for cut in range(head, len(whole), 97):
        path.write_bytes(whole[:cut])
        with Journal(path, CONFIG, KEYS, ARMS, resume=True) as journal:
            rows = {measurement.row for measurement in journal.measured}
            assert len(rows) == whole[:cut].count(b"\n") - 1
            journal.append(third)
        with Journal(path, CONFIG, KEYS, ARMS, resume=True) as journal:
            assert essence(journal.measured[-2:]) == essence(third)


def test_only_the_same_configuration_is_resumed(tmp_path):
    path = tmp_path / "rows"
    with pytest.raises(UsageError, match="nothing to resume"):
        Journal(path, CONFIG, KEYS, ARMS, resume=True)
    Journal(path, CONFIG, KEYS, ARMS, resume=False).__exit__(None, None, None)
    with pytest.raises(UsageError, match=r"measured something else: rows was 3, is 4"):
        Journal(path, {**CONFIG, "rows": 4}, KEYS, ARMS, resume=True)
    path.write_text("not a journal\n")
    with pytest.raises(UsageError, match="not a benchmark's journal"):
        Journal(path, CONFIG, KEYS, ARMS, resume=True)


def test_a_refusal_shows_what_differs_however_long_the_settings_are(tmp_path):
    path = tmp_path / "rows"
    long = {"files": {"m": {"weights": "a" * 200}}, "profile": {"draft": {"exit_layer": 1}}, "arms": ["x"] * 50}
    other = {"files": {"m": {"weights": "a" * 199 + "b"}}, "profile": {"draft": {"exit_layer": 2}}, "arms": ["x"] * 49}
    Journal(path, long, KEYS, ARMS, resume=False).__exit__(None, None, None)
    with pytest.raises(UsageError) as told:
        Journal(path, other, KEYS, ARMS, resume=True)
    for difference in (r"files.m.weights was \.\.\.a+\", is \.\.\.a+b\";", "profile.draft.exit_layer was 1, is 2;"):
        assert re.search(difference, told.value.message), told.value.message
    was, now = re.search("arms was (.*), is (.*)", told.value.message).groups()
    assert was != now


def test_answers_that_are_not_this_runs_are_refused(runner, tmp_path):
    path, answers = tmp_path / "rows", runner.measure(tasks(ROWS, 1)[0])
    strange = answers[0].model_copy(update={"row": "elsewhere"})
    for lines in ([answers, answers], [answers[:1]], [[strange, *answers[1:]]], [answers[::-1]], [[]]):
        with Journal(path, CONFIG, KEYS, ARMS, resume=False) as journal:
            for line in lines:
                journal.append(line)
        with pytest.raises(UsageError, match="was changed"):
            Journal(path, CONFIG, KEYS, ARMS, resume=True)


def test_two_runs_do_not_write_one_journal(tmp_path):
    with Journal(tmp_path / "rows", CONFIG, KEYS, ARMS, resume=False):
        for resume in (True, False):
            with pytest.raises(UsageError, match="another run is writing"):
                Journal(tmp_path / "rows", CONFIG, KEYS, ARMS, resume=resume)


def test_a_new_run_sets_an_older_journal_aside(tmp_path):
    path = tmp_path / "rows"
    Journal(path, CONFIG, KEYS, ARMS, resume=False).__exit__(None, None, None)
    before = path.read_bytes()
    with Journal(path, {"rows": 9}, KEYS, ARMS, resume=False) as journal:
        assert journal.set_aside.read_bytes() == before

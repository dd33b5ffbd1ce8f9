"""The page of a calibration, of results that are made up: it tells them, needs nothing else, and shows text as text."""

import re
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest

from hispec.budget import Budget
from hispec.calibration.adapting import Fitter
from hispec.calibration.costs import WIDTHS, Costs, SpanCost
from hispec.calibration.recording import LevelSpec, Prediction, RecordedText, RecordedTexts
from hispec.calibration.replay import Outcome
from hispec.calibration.result import CalibrationResult, agreement_of
from hispec.calibration.search import PLAIN, Configuration, HierarchyBuilder, Score, Scorer, SearchResult, SearchSpace
from hispec.calibration.timing import TimedAnswer, Timings
from hispec.curve import Curve
from hispec_cli.ui.calibration_view import show_result
from hispec_cli.ui.report.calibration_page import to_html, write_calibration_report
from tests.hispec_cli.test_report import EVIL, Page
from tests.toy import ToyStack

ENVIRONMENT = {"device": "cpu", "dtype": "float32", "dataset": {"name": "sample", "prompts": 9}}
COMMAND = ["hispec", "calibrate", "--budget", "1 m"]


def made(target="m", defaults=None):
    """A job and what it came to: exit 2 drafts 4 before exit 1 drafts 4, after a fashion; and the speed of the defaults."""
    rng = Random(3)
    specs = [LevelSpec(target, layer) for layer in (1, 2, 3)]
    one, two, chain = (
        Configuration((specs[0],), (4,)), Configuration((specs[1],), (4,)), Configuration(tuple(specs[:2]), (2, 8))
    )  # fmt: skip
    texts = [_text(specs, rng) for _ in range(9)]
    recorded = RecordedTexts(texts, {spec: [] for spec in specs})
    bench = HierarchyBuilder({target: ToyStack.random(3, 4, seed=1)}, target)
    bench.stacks[target].name = target
    flat = tuple(Curve((0,), (1e-3,)) for _ in WIDTHS)
    costs = Costs({target: SpanCost(flat, flat)}, {(target, 0): Curve(WIDTHS, (1e-3,) * len(WIDTHS))})
    scorer = Scorer(bench, recorded, costs, (), Fitter(texts, ("margin",)))
    speeds = {two: 300.0, one: 250.0, chain: 240.0, PLAIN: 100.0}
    scores = [Score(configuration, Outcome(900, 900 / speed, 9), 9) for configuration, speed in speeds.items()]
    timings, check = _answers({**speeds, one: 290.0}, noisy=one), _answers({two: 290.0, PLAIN: 100.0})
    if defaults is not None:
        copy = replace(specs[2], weights="int4")
        check = _answers({two: 290.0, PLAIN: 100.0, Configuration((copy,), (), (4, 8), uncalibrated=True): defaults})
    agreement = agreement_of(recorded, specs[2])
    result = CalibrationResult(
        two, [one], SearchResult(scores, scores), timings, check, scorer, agreement, {"costs": 1.5}
    )
    job = SimpleNamespace(
        target=target, space=SearchSpace(tuple(specs[:2]), validate_every=(4, 8)), budget=Budget(60.0)
    )
    return job, result


def _text(specs, rng):
    """Exit 1 is right in one of two cases, exit 2 in nine of ten, and surer then."""
    tokens = [rng.randrange(4) for _ in range(40)]
    predictions = {}
    for spec, share in zip(specs, (0.5, 0.9, 1.0), strict=True):
        right = [rng.random() < share for _ in tokens]
        best = [token if was else (token + 1) % 4 for token, was in zip(tokens, right, strict=True)]
        sure = [(rng.uniform(2, 9), -0.1, 0.2) if was else (rng.uniform(0, 3), -1.0, 1.0) for was in right]
        predictions[spec] = Prediction(best, sure)
    return RecordedText([0], tokens, predictions)


def _answers(speeds, noisy=None):
    timings = Timings(list(speeds))
    for place, (configuration, speed) in enumerate(speeds.items()):
        for at in range(5):
            slower = (1.2 if at % 2 else 0.8) if configuration == noisy else 1.0
            timings.answers.append(TimedAnswer(place, at, 0, 10 + at, (10 + at) / speed * slower, 0))
    return timings


@pytest.fixture(scope="module")
def page():
    return to_html(*made(), ENVIRONMENT, COMMAND)


def test_the_page_is_well_formed_and_tells_what_was_found(page):
    parsed = Page(page)
    for expected in (
        "exit 2 drafts 4", "may be as fast: exit 1 drafts 4", "2.90 times as fast as the target alone",
        "Speed on 5 prompts that it was not calibrated on", "winner, single-layer", "autoregressive", "290.0",
        "2.90 2.90\u20132.90", "Agreement by depth", "Replay against timing", "Acceptance by confidence", "300.0",
        "exit 1 drafts 2, exit 2 drafts 8", "1.5 s", "dataset.prompts", "hispec calibrate --budget '1 m'",
    ):  # fmt: skip
        assert parsed.sees(expected), expected
    assert parsed.tags.count("svg") == 3
    assert '<tr class="main"><td>winner, single-layer</td>' in page and "1.00 " not in page


def test_the_map_has_a_cell_for_each_draft_and_period(page):
    body = page.partition('<table class="map">')[2].partition("</table>")[0]
    rows = [re.findall(r'<td class="(\w+) (\w+)" title="([^"]*)">(\d*)', row) for row in body.split("<tr>")[2:]]
    assert [[(status, heat, figure) for status, heat, _, figure in row] for row in rows] == [
        [("tied", "heat2", "83"), ("pruned", "heat2", "80"), ("pending", "unknown", "")],
        [("best", "heat4", "100"), ("pending", "unknown", ""), ("pending", "unknown", "")],
    ]
    assert rows[0][1][2] == "exit 1 drafts 2, exit 2 drafts 8: 240.0 tokens/s by replay of 9 texts, left behind"


def test_the_page_needs_nothing_but_itself(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    assert not {"script", "link", "img", "image", "iframe", "object", "base", "form"} & set(Page(page).tags)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:href="|url\()#([\w-]+)', page)) <= set(ids)
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL)))
    assert to_html(*made(), ENVIRONMENT, COMMAND) == page


def test_hostile_text_is_text_on_the_page():
    written = to_html(*made(EVIL), {EVIL: EVIL}, ["hispec", EVIL])
    parsed = Page(written)
    assert "script" not in parsed.tags and not {name for name, _ in parsed.attributes if name.startswith("on")}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", written)


@pytest.mark.parametrize(("defaults", "ratio", "said"), [(200.0, "1.45", False), (300.0, "0.97", True)])
def test_the_defaults_are_listed_and_said_to_be_as_fast_where_they_are(defaults, ratio, said, monkeypatch, capsys):
    job, result = made(defaults=defaults)
    parsed = Page(to_html(job, result, ENVIRONMENT, COMMAND))
    assert parsed.sees("n-grams of up to 4 draft 8, exit 3 int4 > target, no profile") and parsed.sees(ratio)
    assert parsed.sees("use the model without this profile, --model m.") == said
    monkeypatch.setenv("COLUMNS", "80")
    show_result(job, result)
    told = capsys.readouterr().err
    assert all(len(line) <= 80 for line in told.splitlines())
    row = next(line for line in told.splitlines() if "defaults" in line)
    assert f"{defaults}" in row and ratio in row


def test_it_says_so_where_plain_decoding_wins(tmp_path):
    job, result = made()
    plain = replace(result, winner=PLAIN, ties=[], check=_answers({result.winner: 90.0, PLAIN: 100.0}))
    write_calibration_report(tmp_path / "page.html", job, plain, ENVIRONMENT, COMMAND)
    parsed = Page((tmp_path / "page.html").read_text())
    assert parsed.sees("Speculation does not pay here") and parsed.sees("winner, autoregressive")
    assert parsed.tags.count("svg") == 3  # how sure the best that speculates was is shown all the same
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]

"""Report files: whole or not at all, text from outside shown as text, and a page that needs nothing but itself."""

import csv
import io
import json
import os
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from hispec.bench.compare import compare
from hispec.bench.gates import parse_gate
from hispec.bench.record import DatasetInfo, Report
from hispec.bench.statistics import summarize
from hispec.errors import UnavailableError, UsageError
from hispec_cli.ui.report.context import Context, headline, levels_of, losslessness, plain_number
from hispec_cli.ui.report.files import check_output, write_report
from hispec_cli.ui.report.tables import code, escaped, to_csv, to_markdown
from hispec_cli.ui.safe_text import visible
from tests.hispec.bench.examples import report, run, setup

ARMS = ("hispec", "single-layer", "autoregressive", "hf")
EVIL = "<script>alert('x')</script>|=1+1`$a_b$\x1b[31m\u202e\n## &amp; @all"
VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def made():
    return report(ARMS)


@pytest.fixture(scope="module")
def context(made):
    verdicts = [parse_gate(gate, ARMS).apply(made) for gate in ("speedup<1.2", "tokens_per_target_pass<90")]
    return Context(verdicts, compare(report(ARMS, seed=3), made), ["hispec", "bench", "--fail-if", "speedup<1.2"])


@pytest.fixture(scope="module")
def evil():
    """A report all of whose free text is hostile."""
    arms = [EVIL, "autoregressive"]
    measured = [
        answer.model_copy(
            update={
                "arm": EVIL if answer.arm == "hispec" else answer.arm,
                "levels": [level.model_copy(update={"name": EVIL, "model": EVIL}) for level in answer.levels[:1]],
                "phase_seconds": {EVIL: answer.seconds},
            }
        )
        for answer in run(("hispec", "autoregressive"), rows=5)
    ]
    dataset = DatasetInfo(name=EVIL, rows=5, sha256=EVIL, source=EVIL, metric=EVIL)
    values = {
        "profile": EVIL,
        "dataset": dataset,
        "environment": {EVIL: EVIL},
        "config": {EVIL: [EVIL], "x": {EVIL: EVIL}},
    }
    return summarize(setup(**values, config_hash=EVIL), arms, measured, resamples=100)


@pytest.fixture(scope="module")
def page(made, context):
    from hispec_cli.ui.report.html import to_html

    return to_html(made, context)


class Page(HTMLParser):
    """Checks that tags nest; collects them, their attributes and the text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def sees(self, text):
        return text in " ".join(" ".join(self.text).split())


def test_the_page_is_well_formed_and_tells_the_run(page, made):
    parsed = Page(page)
    assert page.startswith("<!doctype html>")
    for expected in (
        headline(made).text,
        losslessness(made).text,
        "85.0 % (34 of 40)",
        "39 of 40 (1 tie)",
        "The build fails if",
        "hispec.tokens_per_target_pass is",
        "transformers",
        "5.24.0",
        "sampling.temperature",
        "0123456789abcdef",
        "hispec bench --fail-if 'speedup<1.2'",
        "no clear difference",
    ):
        assert parsed.sees(expected), expected
    assert parsed.tags.count("svg") == 5
    for title in (
        "Throughput",
        "Speed-up over autoregressive",
        "Time by level",
        "Acceptance by position",
        "Accepted lengths",
    ):
        assert parsed.sees(title), title


def test_the_page_needs_nothing_but_itself(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    loading = {"script", "link", "img", "image", "iframe", "object", "embed", "base", "form", "audio", "video"}
    parsed = Page(page)
    assert not loading & set(parsed.tags)
    references = {value for name, value in parsed.attributes if name in ("src", "href", "action", "data", "xlink:href")}
    assert references and all(value.startswith("#") for value in references)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in parsed.attributes


def test_drawings_refer_to_what_is_there_and_share_no_id(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', page))
    assert used and used <= set(ids)


def test_colours_come_from_the_style_sheet_for_light_and_dark(page):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    defined = set(re.findall(r"(--[a-z-]+):", page.partition("</style>")[0]))
    assert set(re.findall(r"var\((--[a-z]+)\)", page)) <= defined
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_equal_reports_give_equal_pages(made, context, page):
    from hispec_cli.ui.report.html import to_html

    assert to_html(made, context) == page


def test_hostile_text_is_text_on_the_page(evil):
    from hispec_cli.ui.report.html import to_html

    verdict = parse_gate("tokens<1", ["hispec"]).apply(report(("hispec",), rows=2))
    written = to_html(evil, Context([verdict], compare(evil, evil), ["hispec", EVIL]))
    parsed = Page(written)
    assert "script" not in parsed.tags
    assert not {name for name, _ in parsed.attributes if name.startswith("on")}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", written)
    assert parsed.sees("<script>alert('x')</script>|=1+1`$a_b$\\x1b[31m\\u202e ## &amp; @all")


def test_dollars_in_a_chart_are_no_formula():
    from hispec_cli.ui.report.charts import draw_charts

    measured = [answer.model_copy(update={"arm": "a $x_1$ b"}) for answer in run(("hispec",), rows=3)]
    charts = draw_charts(summarize(setup(), ["a $x_1$ b"], measured, resamples=50))
    assert all("a $x_1$ b" in chart.svg for chart in charts)


def test_a_long_name_leaves_room_for_the_drawing():
    from hispec_cli.ui.report.charts import draw_charts

    name = "arm\n" + 80 * "x"
    measured = [answer.model_copy(update={"arm": name}) for answer in run(("hispec",), rows=3)]
    (throughput, *_) = draw_charts(summarize(setup(), [name], measured, resamples=50))
    assert "arm xxxxxxxxxxxxxxxxxxx\u2026" in throughput.svg


@pytest.mark.parametrize(
    "make",
    [
        lambda: report(("hf",), rows=1),
        lambda: report(rows=2, status="interrupted"),
        lambda: summarize(setup(status="interrupted"), ["hispec", "autoregressive"], []),
        lambda: report(
            ("hispec", "single-layer", "autoregressive", "hf", "hf-early-exit", "hf-assisted", "prompt-lookup")
        ),
    ],
    ids=["one answer", "interrupted", "nothing", "seven arms"],
)
def test_every_format_copes_with_what_was_not_measured(make, tmp_path):
    made = make()
    for suffix in ("json", "csv", "md", "html"):
        write_report(tmp_path / f"report.{suffix}", made)
        text = (tmp_path / f"report.{suffix}").read_text(encoding="utf-8")
        assert not re.search(r"\b(None|nan|inf)\b", text)
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_csv_has_a_line_for_each_arm_and_the_keys_of_the_json(made):
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert [line["arm"] for line in lines] == list(ARMS)
    first = lines[0]
    assert float(first["speedup.autoregressive"]) == made.arms[0].speedup["autoregressive"].value
    assert float(first["speedup.autoregressive.low"]) == made.arms[0].speedup["autoregressive"].ci95[0]
    assert float(first["tokens_per_second.high"]) == made.arms[0].ci95[1]
    assert float(first["phase_seconds.draft"]) == made.arms[0].phase_seconds["draft"]
    assert lines[3]["tokens_per_target_pass"] == "" and lines[2]["speedup.autoregressive"] == ""
    assert lines[2]["lossless.errors"] == "" and first["lossless.errors"] == "0"
    assert to_csv(report(("hf",))).splitlines()[0] == to_csv(made).splitlines()[0]


def test_csv_cells_are_no_formulas_and_survive_line_breaks(evil):
    lines = list(csv.DictReader(io.StringIO(to_csv(evil))))
    assert len(lines) == 2 and lines[0]["dataset"] == visible(EVIL) and "\n" in visible(EVIL)
    for formula in ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1"):
        (line,) = csv.DictReader(io.StringIO(to_csv(report(("hf",), rows=2, profile=formula))))
        assert line["profile"] == f"'{formula}"
    (line,) = csv.DictReader(io.StringIO(to_csv(report(("hf",), rows=2, profile="\r=1"))))
    assert line["profile"] == "\\r=1"


def test_markdown_has_headline_table_gates_and_changes(made, context):
    written = to_markdown(made, context)
    assert written.startswith("### hispec bench: `tiny` on `sample`\n")
    assert "hispec is faster" in written and "39 of 40 (1 tie)" in written
    assert "| `speedup<1.2` | **passed** |" in written and "| `tokens_per_target_pass<90` | **failed** |" in written
    assert "#### Since the earlier report" in written and "no clear difference" in written


@pytest.mark.parametrize(("rows", "status"), [(1, "complete"), (2, "complete"), (3, "interrupted"), (9, "complete")])
def test_every_output_warns_of_few_prompts(rows, status):
    from hispec_cli.ui.report.html import to_html

    # The dataset has more rows than were answered, as in a run that was interrupted.
    dataset = setup().dataset.model_copy(update={"rows": 40})
    few = report(ARMS, rows=rows, repeats=3, dataset=dataset, status=status)
    said = "One prompt gives no interval" if rows == 1 else f"{rows} prompts are few"
    shown = Page(to_html(few, Context((), compare(few, few))))
    (line, *_) = csv.DictReader(io.StringIO(to_csv(few)))
    outputs = [few.to_json(), to_markdown(few), line["caveats"], " ".join(shown.text), str(compare(few, few).warnings)]
    assert all(said in " ".join(output.split()) for output in outputs)
    assert f"on only {rows} prompt" in headline(few).text
    assert f"on only {rows} prompt" in parse_gate("speedup<1.2", ARMS).apply(few).message or rows == 1
    assert Report.model_validate_json(few.to_json()) == few


def test_ten_prompts_are_enough_and_reports_of_before_are_read(made):
    assert report(ARMS, rows=10).caveats == [] and "only" not in headline(report(ARMS, rows=10)).text
    before = json.loads(made.to_json())
    del before["caveats"]
    for arm in before["arms"]:
        del arm["prompts"]
    assert compare(Report.model_validate(before), made).warnings == []


def test_markdown_cells_stay_cells(evil):
    written = to_markdown(evil, Context((), compare(evil, evil)))
    assert "<script" not in re.sub(r"`[^\n]*`", "", written) and "\x1b" not in written and "\u202e" not in written
    table = [line for line in written.splitlines() if line.startswith("| ")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table[:4]}
    assert len(bars) == 1, table[:4]


def test_markdown_escapes():
    assert escaped("a|b*c_d\n<e> [x](y) `z` ~s~ \\") == r"a\|b\*c\_d &lt;e&gt; \[x\](y) \`z\` \~s\~ \\"
    assert code("a`b") == "`` a`b ``" and code("a|b") == "`a\u00a6b`" and code("x") == "`x`"


@pytest.mark.parametrize(
    ("low", "high", "said", "tone"),
    [(1.2, 1.6, "is faster", "good"), (0.7, 0.9, "is slower", "bad"), (0.9, 1.1, "not clearly", "neutral")],
)
def test_the_headline_claims_no_more_than_the_interval(made, low, high, said, tone):
    estimate = made.arms[0].speedup["autoregressive"].model_copy(update={"ci95": (low, high)})
    first = made.arms[0].model_copy(update={"speedup": {"autoregressive": estimate}})
    found = headline(made.model_copy(update={"arms": [first]}))
    assert said in found.text and found.tone == tone


def test_losslessness_is_told_by_its_worst_case(made):
    def with_errors(errors):
        lossless = made.arms[0].lossless.model_copy(update={"identical": 40 - errors, "errors": errors, "ties": 0})
        return made.model_copy(update={"arms": [made.arms[0].model_copy(update={"lossless": lossless})]})

    assert losslessness(with_errors(0)).tone == "good"
    assert losslessness(with_errors(2)).tone == "bad" and "hispec 2 of 40" in losslessness(with_errors(2)).text
    assert "1 parts at a tie" in losslessness(made).text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (3, "3"),
        (12345, "12\u202f345"),
        (0.001234567, "0.001235"),
        (2.64449, "2.644"),
        (1234.56, "1\u202f235"),
    ],
)
def test_figures_of_any_size_have_four_digits(value, shown):
    assert plain_number(value) == shown


def test_json_reads_back(made, tmp_path):
    write_report(tmp_path / "out.json", made)
    assert Report.model_validate(json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))) == made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "does not say"),
        ("out", "does not say"),
        ("none/out.json", "does not exist"),
        ("folder.md", "is a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_the_run(tmp_path, name, message):
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / name)
    assert message in caught.value.message


def test_an_option_takes_its_own_formats_only(tmp_path):
    check_output(tmp_path / "r.html", [".html"])
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / "r.html", [".json", ".csv", ".md"])
    assert caught.value.hint == "end it in .json or .csv or .md"


def test_a_closed_folder_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match="not writable"):
        check_output(tmp_path / "out.json")


def test_a_failed_write_leaves_the_old_file_and_no_other(made, tmp_path, monkeypatch):
    (tmp_path / "out.json").write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="No space left"):
        write_report(tmp_path / "out.json", made)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_text() == "old"


def test_whoever_reads_the_old_file_keeps_the_whole_of_it(made, tmp_path):
    (tmp_path / "out.json").write_text("old")
    with (tmp_path / "out.json").open() as reader:
        write_report(tmp_path / "out.json", made)
        assert reader.read() == "old"
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == made.to_json()


def test_a_link_is_followed_and_permissions_are_the_usual(made, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "out.json")
    mask = os.umask(0o022)
    try:
        write_report(tmp_path / "link.json", made)
    finally:
        os.umask(mask)
    assert (tmp_path / "link.json").is_symlink()
    assert stat.S_IMODE((tmp_path / "real" / "out.json").stat().st_mode) == 0o644


def test_nothing_heavy_is_imported_before_a_page_is_drawn():
    script = (
        "import sys, hispec.bench.gates, hispec.bench.compare, hispec_cli.ui.report.files;"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'jinja2', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_levels_are_named_with_their_weights_in_every_format(tmp_path):
    def quantized(answer):
        weights = {"draft": {"weights": "int4"}, "intermediate": {"weights": "int4", "exit_layer": 16}}
        levels = [level.model_copy(update=weights[level.name]) for level in answer.levels]
        return answer.model_copy(update={"levels": levels if answer.arm == "hispec" else answer.levels})

    arms = ["hispec", "single-layer", "autoregressive"]
    made = summarize(setup(), arms, [quantized(answer) for answer in run(arms, rows=5)], resamples=100)
    from hispec_cli.ui.report.html import to_html

    assert [levels_of(arm) for arm in made.arms] == ["exit 1 int4 > exit 16 int4", "exit 2", ""]
    assert "| exit 1 int4 &gt; exit 16 int4 |" in to_markdown(made, Context())
    assert next(line["levels"] for line in csv.DictReader(io.StringIO(to_csv(made)))) == "exit 1 int4 > exit 16 int4"
    assert ", int4</td>" in to_html(made, Context())
    assert json.loads(made.to_json())["arms"][0]["levels"][1]["weights"] == "int4"

"""Write the tables of figures in README and docs from `benchmarks/results`: `python benchmarks/tables.py`.

A page says where a table goes and of which results it is, and everything up to the end is written again:

    <!-- table: bench bench-sample -->
    <!-- end of table -->

The name of a result may be a pattern: `defaults-*` is one table of all results that it matches.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: (\w+) (\S+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
Results = Sequence[tuple[str, dict[str, Any]]]
"""Names of files, without `.json`, and what they hold."""


def rows_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown: the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ratio(value: dict[str, Any] | None) -> str:
    """Return a ratio with its interval."""
    return "" if value is None else f"{value['value']:.2f} ({value['ci95'][0]:.2f} to {value['ci95'][1]:.2f})"


def bench(results: Results) -> str:
    """Return the arms of one report of `hispec bench`."""
    ((_, report),) = results
    head = ["arm", "tokens/s", "over autoregressive", "over `transformers`", "tokens per target pass"]
    rows = []
    for arm in report["arms"]:
        own, passes = arm["speedup"], arm["tokens_per_target_pass"]
        rows.append(
            [
                ARMS.get(arm["name"], f"`{arm['name']}`"),
                f"{arm['tokens_per_second']:.1f}",
                "1" if arm["name"] == "autoregressive" else ratio(own.get("autoregressive")),
                "1" if arm["name"] == "hf" else ratio(own.get("hf")),
                "" if passes is None else f"{passes:.1f}",
            ]
        )
    return rows_of(head, rows)


ARMS = {
    "hispec": "hispec",
    "single-layer": "single-layer speculation, same engine",
    "autoregressive": "autoregressive: the target alone, same engine",
    "hf": "`transformers`: `generate`",
    "hf-early-exit": "`transformers`: `assistant_early_exit`",
    "prompt-lookup": "`transformers`: prompt look-up",
}


def speedups(results: Results) -> str:
    """Return the speed-up of the default decoding, in a line for each model: the short form of `defaults`."""
    texts = list(results[0][1]["texts"])
    head = ["model", *texts, "over the best single layer", "over n-grams"]
    rows = []
    order = [*MODELS, *[name for name, _ in results if name not in MODELS]]
    for name, record in sorted(results, key=lambda one: order.index(one[0])):
        found = [record["texts"][text] for text in texts]
        over = [ratio(each["plain"]["default_over_it"]) for each in found]
        means = [
            geometric_mean(each[other]["default_over_it"]["value"] for each in found)
            for other in ("best single layer", "recycling")
        ]
        model = MODELS[name] if name in MODELS else str(record["model"])
        rows.append([model, *over, *[f"{mean:.2f}" for mean in means]])
    return rows_of(head, rows)


MODELS = {
    "defaults-smollm2": "SmolLM2-135M-Instruct, an ordinary chat model",
    "defaults-smollm2-avx2": "the same, with AVX2 only",
    "defaults-ordinary": "ordinary, 362 million random weights whose 4-bit copy agrees on about 95 % of the tokens",
    "defaults-larger-ee": "larger-ee, 49 million parameters, trained for early exit; an earlier version",
    "defaults-lab-ee": "lab-ee, 13 million parameters, trained for early exit",
    "defaults-tiny": "`tiny`, 3 million parameters, trained for early exit",
    "defaults-random": "random weights, where no draft is right",
}


def defaults(results: Results) -> str:
    """Return the speeds of the default decoding beside the best of a grid, by model and kind of text."""
    others = ["plain", "best static hierarchy", "best single layer", "recycling"]
    head = ["model, text", "plain, tokens/s", "hispec, tokens/s", *[f"over {other}" for other in others], "same ids"]
    rows, ratios = [], []
    for _, record in results:
        weights = ", random weights" if record["dummy"] else ""
        model = f"{record['model']}{weights}, {record['environment']['instructions']}"
        for text, kinds in record["texts"].items():
            own, over = kinds["hispec by default"], [kinds[other]["default_over_it"] for other in others]
            speeds = [f"{kind['tokens_per_second']:.1f}" for kind in (kinds["plain"], own)]
            rows.append([f"{model}: {text}", *speeds, *map(ratio, over), own["identical"]])
            ratios.append([each["value"] for each in over])
    means = [f"{geometric_mean(each):.2f}" for each in zip(*ratios, strict=True)]
    return rows_of(head, [*rows, ["geometric mean", "", "", *means, ""]])


def trials(results: Results) -> str:
    """Return what trials cost where nothing pays, by policy and kind of text."""
    ((_, record),) = results
    head = ["policy, text", "tokens", "passes", "share of more passes than tokens", "over plain, by costs"]
    rows = [
        [
            f"{policy}: {text}",
            str(found["tokens"]),
            str(found["passes"]),
            f"{100 * (1 - found['tokens'] / found['passes']):.1f} %",
            f"{found['over_plain']:.3f}",
        ]
        for policy, texts in record["policies"].items()
        for text, found in texts.items()
    ]
    return rows_of(head, rows)


def changing(results: Results) -> str:
    """Return the speeds of the default decoding if texts change their kind, beside the best arms on either kind."""
    found = [(record["model"], *change) for _, record in results for change in record.get("changing", {}).items()]
    others = list(dict.fromkeys(arm for _, _, arms in found for arm in arms if arm != "hispec by default"))
    head = ["model, texts", "hispec, tokens/s", *[f"over {other}" for other in others], "same ids"]
    rows = []
    for model, texts, arms in found:
        own, over = arms["hispec by default"], [ratio(arms[other]["default_over_it"]) for other in others]
        rows.append([f"{model}: {texts}", f"{own['tokens_per_second']:.1f}", *over, own["identical"]])
    return rows_of(head, rows)


def widths(results: Results) -> str:
    """Return the cost of equal row counts, by model and width."""
    rows = []
    for name, record in results:
        of = {(each["width"], each["mode"]): each for each in record["results"]}
        for width in dict.fromkeys(width for width, _ in of):
            both = [of[width, mode] for mode in ("autoregressive", "hispec")]
            speeds = [f"{each['tokens_per_second']:.1f}" for each in both]
            over = [ratio({"value": each["over_free"], "ci95": each["ci95"]}) for each in both]
            cells = [f"{name.removeprefix('width-')}: {width}", *speeds, *over]
            rows.append([*cells, both[1]["hispec_equals_autoregressive"]])
    head = [
        "model: width",
        "plain, tokens/s",
        "hispec, tokens/s",
        "plain over `free`",
        "hispec over `free`",
        "same ids",
    ]
    return rows_of(head, rows)


def levels(results: Results) -> str:
    """Return the kinds of hierarchies that one run of `quantized_levels.py` compared, the fastest first."""
    ((_, record),) = results
    head = ["levels", "tokens/s", "over plain", "over single-layer as published", "same ids"]
    rows = []
    for name, arm in sorted(record["arms"].items(), key=lambda one: -one[1]["tokens_per_second"]):
        over = arm["over"]
        cells = (ratio(over.get("plain")), ratio(over.get("single-layer as published")))
        rows.append([name, f"{arm['tokens_per_second']:.1f}", *cells, arm["identical"]])
    return rows_of(head, most_telling(rows))


def replayed(results: Results) -> str:
    """Return the kinds of hierarchies that one run of `quantized_levels.py --replay` compared, the fastest first."""
    ((_, record),) = results
    rows = [
        [name, ", ".join(map(str, arm["lengths"])), f"{arm['over_plain']:.2f}"] for name, arm in record["best"].items()
    ]
    return rows_of(["levels", "lengths", "over plain"], most_telling(rows))


def most_telling(rows: list[list[str]]) -> list[list[str]]:
    """Return the fastest six kinds of hierarchies, those as published, and the simplest, of rows that begin with kinds."""
    return rows[:6] + [row for row in rows[6:] if "published" in row[0] or row[0] in ("plain", "int4 > target")]


def copies(results: Results) -> str:
    """Return the memory that whole quantized copies add to a process, by shape and format."""
    ((_, record),) = results
    cells = (
        [
            f"{profile}, {kind}",
            f"{size / 1e6:.1f}",
            f"{found['estimated_bytes'][kind] / 1e6:.1f}",
            f"{found['estimated_over_measured'][kind]:.2f}",
            f"{100 * found['over_none'][kind]:.0f} %",
        ]
        for profile, found in record["profiles"].items()
        for kind, size in found["added_bytes"].items()
    )
    return rows_of(["copy", "added, MB", "estimate, MB", "estimate / added", "over the process without it"], cells)


def heads(results: Results) -> str:
    """Return the share of tokens that copies with several heads name as the target does, by model, text and layers."""
    names = list(next(iter(results[0][1]["texts"]["chat"]["agreement"].values())))
    rows = []
    for _, record in results:
        for text, found in record["texts"].items():
            for layers, own in found["agreement"].items():
                shares = [f"{own[name]['value']:.3f}".removeprefix("0") for name in names]
                rows.append([f"{record['model']}, {text}, {layers} layers", *shares])
    return rows_of(["head", *names], rows)


def costs_of_heads(results: Results) -> str:
    """Return the milliseconds of heads by shape, weights and number of rows."""
    ((_, record),) = results
    cells = (
        [f"{shape}: {name}", *[f"{time:,.{1 + (time < 1)}f}" for time in times]]
        for shape, kinds in record["milliseconds"].items()
        for name, times in kinds.items()
    )
    return rows_of(["milliseconds", *[f"{count} row{'s' * (count != 1)}" for count in record["rows"]]], cells)


def engine(results: Results) -> str:
    """Return the arms of one run of `engine.py`, beside what the memory allows."""
    ((_, record),) = results
    head = ["arm", "tokens/s", "over autoregressive", "MB per token", "share of the limit", "same ids"]
    rows = []
    for name, arm in record["arms"].items():
        share, size, same = arm.get("share_of_limit"), arm.get("bytes_per_token"), arm["lossless"]
        rows.append(
            [
                name,
                f"{arm['decoding_tokens_per_second']['value']:.1f}",
                ratio(arm["speedup"]["autoregressive"]),
                "" if size is None else f"{size / 1e6:.1f}",
                "" if share is None else f"{100 * share:.1f} %",
                f"{same['identical']} of {same['of']}",
            ]
        )
    return rows_of(head, rows)


def full(results: Results) -> str:
    """Return the microseconds of a layer's matrices of full weights, packed and as they are."""
    return costs_of_rows(results, lambda form: form.startswith(("bfloat", "float")))


def rows(results: Results) -> str:
    """Return the microseconds of a layer's matrices by shape, format and number of rows, as they are loaded."""
    return costs_of_rows(results, lambda form: not form.endswith("not packed"))


def costs_of_rows(results: Results, shown: Callable[[str], bool]) -> str:
    """Return the microseconds of a layer's matrices in some forms."""
    ((_, record),) = results
    shapes = record["microseconds"]
    counts = list(next(iter(next(iter(shapes.values())).values())))
    cells = (
        [f"{shape}, {form}", *[f"{times[count]:,.0f}" for count in counts]]
        for shape, forms in shapes.items()
        for form, times in forms.items()
        if shown(form)
    )
    return rows_of(["microseconds", *[f"{count} row{'s' * (count != '1')}" for count in counts]], cells)


TABLES: dict[str, Callable[[Results], str]] = {
    "bench": bench, "changing": changing, "copies": copies, "defaults": defaults, "engine": engine, "full": full,
    "heads": heads, "head_costs": costs_of_heads, "levels": levels, "replayed": replayed, "rows": rows,
    "speedups": speedups,
    "trials": trials, "widths": widths,
}  # fmt: skip


def with_tables(text: str) -> str:
    """Return a page with its tables written again."""

    def table(place: re.Match[str]) -> str:
        paths = sorted(RESULTS.glob(f"{place[3]}.json"))
        return place[1] + TABLES[place[2]]([(path.stem, json.loads(path.read_text())) for path in paths]) + place[4]

    return PLACE.sub(table, text)


def pages() -> list[Path]:
    """Return the pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    stale = [page for page in pages() if with_tables(page.read_text()) != page.read_text()]
    for page in stale:
        page.write_text(with_tables(page.read_text()))
    sys.stdout.write("".join(f"{page.relative_to(ROOT)}\n" for page in stale))

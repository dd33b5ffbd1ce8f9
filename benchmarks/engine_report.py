"""The table and the plot of what `engine.py` measured; `python benchmarks/engine_report.py FILE.json` makes both again."""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ACCENT, PLAIN, INK, LIMIT = "#3B8EEA", "#B8C0CC", "#333333", "#C154C1"


def table(record: dict[str, Any]) -> str:
    """Return two tables in Markdown: the arms, and the levels of our arms."""
    bandwidth = record["read_bandwidth"]["bytes_per_second"]
    lines = [
        title(record),
        "",
        f"{record['prompts']} prompts; reads {bandwidth / 1e9:,.1f} GB/s; weights {record['weight_bytes'] / 1e9:,.3f} GB; "
        f"speeds are of decoding, prompts left out; limit: by the formula, at the acceptance measured here",
        "",
        "| arm | exits, lengths | tokens/s | 95 % interval | over autoregressive | MB/token | of bandwidth | limit | of limit "
        "| same ids |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, arm in record["arms"].items():
        speed, lossless = arm["decoding_tokens_per_second"], arm["lossless"]
        shape = ", ".join(dashed(arm[key]) for key in ("exits", "lengths") if arm.get(key))
        cells = [
            name,
            shape,
            f"{speed['value']:.1f}",
            f"{speed['ci95'][0]:.1f} to {speed['ci95'][1]:.1f}",
            f"{arm['speedup']['autoregressive']['value']:.2f}",
            shown(arm.get("bytes_per_token"), 1e-6, ".1f"),
            shown(arm.get("share_of_bandwidth"), 100, ".1f", " %"),
            shown(arm.get("limit_tokens_per_second"), 1, ".1f"),
            shown(arm.get("share_of_limit"), 100, ".1f", " %"),
            f"{lossless['identical']}/{lossless['of']}"
            + (
                f" ({lossless['ties']} ties, {lossless['errors']} errors)"
                if lossless["ties"] + lossless["errors"]
                else ""
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| arm | level | ms/pass | rows/pass | ms/token | MB/pass | of bandwidth | acceptance of what it verifies |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, arm in record["arms"].items():
        for level, own in arm.get("levels", {}).items():
            cells = [
                name,
                level,
                shown(own["ms_per_pass"], 1, ".3f"),
                shown(own["rows_per_pass"], 1, ".2f"),
                shown(own["ms_per_token"], 1, ".3f"),
                shown(own["bytes_per_pass"], 1e-6, ".1f"),
                shown(own["share_of_bandwidth"], 100, ".1f", " %"),
                shown(own["acceptance"], 1, ".3f"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def title(record: dict[str, Any]) -> str:
    """Return a title with model, dtype and machine, and whether the weights are random."""
    machine = record["environment"]
    weights = ""
    if record["synthetic_weights"]:
        agreement = machine.get("agreement")
        measured = f", exits made to agree on {dashed(agreement['measured'])} of positions" if agreement else ""
        weights = f"; synthetic weights{measured}"
    where = machine["gpu"] if machine["device"] != "cpu" else f"{machine['processor']}, {machine['threads']} threads"
    return f"{record['model']}, {machine['dtype']}, {where}{weights}"


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the tokens per second of every arm with its interval, and a mark at the limit of each."""
    arms = record["arms"]
    figure = Figure((9, 1.2 + 0.36 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for at, (name, arm) in enumerate(arms.items()):
        speed, best = arm["decoding_tokens_per_second"], arm.get("limit_tokens_per_second")
        axes.barh(at, speed["value"], 0.62, color=ACCENT if name.startswith("hispec") else PLAIN)
        axes.hlines(at, *speed["ci95"], color=INK, linewidth=1.6)
        axes.text(max(speed["ci95"][1], speed["value"]), at, f" {speed['value']:.1f}", va="center", fontsize=8)
        if best:
            axes.plot([best, best], [at - 0.4, at + 0.4], color=LIMIT, linewidth=2)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second of decoding; line: 95 % interval; upright mark: the limit that memory sets")
    speeds = [arm["decoding_tokens_per_second"]["ci95"][1] for arm in arms.values()]
    limits = [arm.get("limit_tokens_per_second") or 0 for arm in arms.values()]
    if max(limits) > 6 * max(speeds):  # a model that fits a cache: the marks would leave no room for the bars
        axes.set_xscale("log")
    axes.set_title(title(record), fontsize=9, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def dashed(values: list[Any]) -> str:
    return "-".join(str(value) for value in values)


def shown(value: float | None, factor: float, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value * factor:{form}}{unit}"


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        measured = json.loads(file.read_text(encoding="utf-8"))
        draw(measured, file.with_suffix(".svg"))
        print(table(measured))

"""`hispec doctor`: what this machine can do, and whether a profile will run on it, before any download."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hispec.limits import MOST
from hispec_cli.checks import asked, choose_profile, depth_of, is_dummy, load_depth, prepare_hub, resolve
from hispec_cli.help import examples
from hispec_cli.options import (
    Asked,
    Chosen,
    CommonOptions,
    ProfileOptions,
    grouped,
    output_option,
)
from hispec_cli.ui.loading import Loading
from hispec_cli.ui.output import write, write_json
from hispec_cli.ui.safe_text import visible

if TYPE_CHECKING:
    from hispec.doctor import Machine, Verdict
    from hispec.profile import Target

OK, NO, NOTE = "ok", "no", "--"
WIDTH = 14
EXAMPLES = examples("hispec doctor", "hispec doctor --profile llama-3b-70b", "hispec doctor --model ./my-model --json")


@grouped
def doctor(
    *,
    model: ProfileOptions,
    decoding: Annotated[Asked, Chosen(("mode", "max_new_tokens", "device", "dtype", "load_format"))],
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, max=MOST, metavar="N", show_default="1024", help="Length of the prompt.")
    ] = None,
    json: Annotated[bool, output_option("--json", help="One JSON object.")] = False,
    common: CommonOptions,
) -> None:
    """Show what this machine has, and whether a profile or a model runs on it; where not, exit 5, or 2 for a fault in it."""
    prepare_hub(model)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    loaded, settings = None, None
    if model != ProfileOptions(offline=model.offline):  # mistakes are told before seconds are spent on torch
        loaded = choose_profile(
            model, mode=asked("mode", decoding), dummy=is_dummy(decoding), find_depth=_ask_for_depth
        )
        settings, _ = resolve(loaded, decoding)
    with Loading("examining this machine") as loading:
        from hispec.doctor import examine_machine, examine_profile

        machine = examine_machine()
        verdict = None
        if loaded is not None and settings is not None:
            loading.now(f"examining {loaded.name}")
            verdict = examine_profile(loaded, settings, machine, prompt_tokens)
    if json:
        record = {"schema": "hispec.doctor/1", "machine": machine.to_record()}
        write_json(record | {"profile": verdict.to_record() if verdict else None})
    else:
        write(visible("\n".join(_machine_lines(machine) + (_verdict_lines(verdict) if verdict else []))) + "\n")
    raise typer.Exit(verdict.exit_code if verdict else 0)


def _ask_for_depth(target: "Target", dummy: bool) -> int:
    """Return a model's number of layers, 0 where the hub does not tell it in time."""
    from hispec.doctor import HUB_SECONDS
    from hispec.models.hub import fetch_config
    from hispec.profile import resolve_model

    if Path(resolve_model(target.model)).is_dir():
        return load_depth(target, dummy)
    fetch_config(target, HUB_SECONDS)
    return depth_of(target) or 0


def _machine_lines(machine: "Machine") -> list[str]:
    from hispec.memory import gigabytes

    endpoint, state, logged_in = machine.hub
    folder, free = machine.cache
    lines = [
        _line(OK, "python", f"{machine.python} on {machine.system}"),
        _line(OK, "torch", f"{machine.torch}, transformers {machine.transformers}"),
    ]
    for computes in machine.devices:
        device = computes.device
        dtypes = [name if name in computes.native else f"{name} (emulated)" for name in computes.dtypes]
        lines.append(
            _line(OK, device.name, f"{gigabytes(device.free)} of {gigabytes(device.total)} free, {device.title}")
        )
        lines.append(_line("", "", f"computes in {', '.join(dtypes)}"))
    if len(machine.devices) == 1:
        lines.append(_line(NOTE, "gpu", "none"))
    fewer = machine.threads <= machine.cores
    advice = "" if fewer else "; set OMP_NUM_THREADS, more threads than cores are slower"
    lines.append(
        _line(OK if fewer else NOTE, "threads", f"{machine.threads}, for {machine.cores} usable cores{advice}")
    )
    lines.append(_line(OK, "disk", f"{gigabytes(free)} free for downloads in {folder}"))
    login = "logged in" if logged_in else "not logged in (hf auth login, for models behind a licence)"
    told = {"reachable": "answers", "unreachable": "does not answer", "offline": "is not asked: offline"}[state]
    lines.append(_line(OK if state == "reachable" else NOTE, "hub", f"{endpoint} {told}, {login}"))
    absent = [name for name, version in machine.packages.items() if version is None]
    present = [f"{name} {version}" for name, version in machine.packages.items() if version is not None]
    lines.append(_line(OK, "packages", ", ".join(present)))
    lines += [_line(NOTE, "", f"not installed: {', '.join(absent)}")] if absent else []
    return lines


def _verdict_lines(verdict: "Verdict") -> list[str]:
    from hispec.memory import gigabytes

    lines = ["", f"profile {verdict.profile}: {'no' if verdict.problems else 'yes, it runs here'}"]
    need, device = verdict.need, verdict.device
    if need is not None and device is not None:
        fits = need.total <= device.free
        total = f"{gigabytes(need.total)} needed on {device.name}, {gigabytes(device.free)} free"
        lines.append(_line(OK if fits else NO, "memory", total))
        lines += [_line("", "", f"{gigabytes(size):>12}  {what}") for size, what in need.lines()]
    for model, weights in verdict.weights.items():
        size = next((m.download for m in need.models if m.model == model), 0) if need is not None else 0
        fetched = f", {gigabytes(size)}" if weights == "to download" and size else ""
        status = {"here": OK, "to download": OK}.get(weights, NO)
        told = {"unknown": "not here", "refused": "behind a licence", "missing": "nowhere"}.get(weights, weights)
        lines.append(_line(status, "weights", f"{model}: {told}{fetched}"))
    if len(verdict.weights) > 1:
        status, told = {
            True: (OK, "ids mean the same tokens in all models"),
            False: (NO, "ids mean different tokens"),
            None: (NOTE, "not known before the tokenizers are here"),
        }[verdict.vocabulary]
        lines.append(_line(status, "vocabulary", told))
    for problem in verdict.problems:
        lines.append(_line(NO, "problem", getattr(problem, "summary", problem.cause)))
        lines += [_line("", "", f"hint: {problem.cure}")]
    return lines


def _line(status: str, name: str, text: str) -> str:
    return f"  {status:<4}{name:<{WIDTH}}{text}".rstrip()

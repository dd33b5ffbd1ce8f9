"""`hispec doctor`: describe this machine, and check whether a profile will run on it, before any download."""

import os
from typing import Annotated

import typer

from hispec.limits import MAX_INT
from hispec_cli.checks import ask_for_depth, choose_profile, chosen_value, is_dummy, prepare_hub, resolve
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

EXAMPLES = examples("hispec doctor", "hispec doctor --profile llama-3b-70b", "hispec doctor --model ./my-model --json")


@grouped
def doctor(
    *,
    model: ProfileOptions,
    decoding: Annotated[Asked, Chosen(("mode", "max_new_tokens", "device", "dtype", "load_format"))],
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_INT,
            metavar="N",
            show_default="1024",
            help="Length of the prompt, for the estimate of the memory.",
        ),
    ] = None,
    json: Annotated[bool, output_option("--json", help="Print one JSON object.")] = False,
    common: CommonOptions,
) -> None:
    """Describe this machine, and check whether a profile or a model runs on it. Exit with 5 if not, or 2 if it is invalid."""
    prepare_hub(model)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    loaded, settings = None, None
    if model != ProfileOptions(offline=model.offline):  # so that mistakes are reported before torch is imported
        loaded = choose_profile(
            model, mode=chosen_value("mode", decoding), dummy=is_dummy(decoding), find_depth=ask_for_depth
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
        from hispec_cli.ui.doctor import report_lines

        write(visible("\n".join(report_lines(machine, verdict))) + "\n")
    raise typer.Exit(verdict.exit_code if verdict else 0)

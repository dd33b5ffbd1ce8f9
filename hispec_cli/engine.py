"""Loading the engine that options, environment and profile chose."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hispec.counts import counted
from hispec_cli.ui.console import say
from hispec_cli.ui.loading import Loading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hispec.api import Engine
    from hispec.bench.processes import Processes
    from hispec_cli.checks import Choice


def load_engine(
    choice: "Choice",
    prompt: str | None = None,
    check: "Callable[[PreTrainedTokenizerBase, int], None]" = lambda *_: None,
) -> "Engine":
    """Load the engine of a choice.

    Args:
        choice: the choice from `hispec_cli.checks.choose`.
        prompt: the prompt, if it is known, for the estimate of the memory.
        check: the argument of `hispec.loading.load`.
    """
    with Loading("importing torch") as loading:
        from hispec.api import Engine
        from hispec.memory import prompt_size
        from hispec.profile import calibrated_elsewhere
        from hispec.threads import tune_threads

        loading.now(f"opening {choice.profile.name}")
        engine = Engine.load(
            choice.profile,
            *choice.resolved,
            prompt_tokens=None if prompt is None else prompt_size(prompt),
            force=choice.model.force,
            watch=loading.see,
            check=check,
        )
        found = (engine.profile.calibrated or {}).get("threads")
        loading.hold("measuring threads")
        threads = tune_threads(engine.hierarchy.stack_of(-1), os.environ, found if isinstance(found, int) else None)
        if threads != engine.environment["threads"]:
            engine.prepare()
    if engine.settings.load_format == "dummy":
        say("synthetic weights: speed and memory are those of the model, its text is noise", "yellow")
    if changed := calibrated_elsewhere(engine.profile, engine.environment):
        say(
            f"profile {engine.profile.name} was calibrated elsewhere ({', '.join(changed)}): answers are the same, "
            "speed may not be; calibrate again with: hispec calibrate",
            "yellow",
        )
    return engine


def on_own_device(choice: "Choice", processes: "Processes") -> "Choice":
    """Return the choice with a GPU of this process's own where several share a machine with GPUs."""
    if processes.count == 1 or choice.settings.device not in ("auto", "cuda"):
        return choice
    import torch

    if not torch.cuda.is_available():
        return choice
    device = f"cuda:{processes.local_rank % torch.cuda.device_count()}"
    return replace(choice, decoding=choice.decoding | {"device": device})


def say_left_out(count: int, context: int) -> None:
    """Say that prompts are left out because the model's context has no room for them."""
    if count:
        say(f"left out: {counted(count, 'prompt')} beyond the context of {counted(context, 'token')}", "yellow")

"""The report of a fit."""

import shlex
from typing import Any

from hispec.exits.fit import Fit
from hispec.exits.job import FitJob
from hispec_cli.options import Format
from hispec_cli.ui.console import say
from hispec_cli.ui.output import write, write_json
from hispec_cli.ui.safe_text import visible

MENDS = {
    "steps": "fit with more --steps, or on more text",
    "budget": "give a longer --budget, or choose deeper --exits",
    "no improvement": "fit on more text that is like what the model will write, or choose deeper --exits",
    "interrupted": "fit longer",
}
"""Advice for exits that are too weak, by the reason why the fit ended."""


def show_fit(job: FitJob, fit: Fit, format_: Format) -> None:
    """Write the exits before and after, the files that were written, and advice."""
    record: dict[str, Any] = {"schema": "hispec.fit-exits/1", "model": job.request.model}
    record |= {"profile": str(job.profile_path), "translators": str(job.translators_path)} | job.describe(fit)
    if format_.is_json:
        write_json(record)
        return
    for exit_ in job.exits:
        before, after = fit.before[exit_], fit.after[exit_]
        verdict = f"can pay, at best {job.best_speedup(fit, exit_):.1f} times the target's speed"
        write(
            f"exit {exit_}: agreement with the whole model {before.agreement:.3f} -> {after.agreement:.3f}, "
            f"divergence {before.kl:.3f} -> {after.kl:.3f} nats; "
            f"{verdict if job.pays(fit, exit_) else 'too weak to gain speed'}\n"
        )
    write(visible(f"wrote {job.profile_path} and {job.translators_path.name}") + "\n")
    if all(fit.after[exit_] == fit.before[exit_] for exit_ in job.exits):
        say("no exit improved: the text may be too short, or the exits good already", "yellow")
    weak = [str(exit_) for exit_ in job.exits if not job.pays(fit, exit_)]
    if weak:
        say(f"too weak to gain speed: exit {' and '.join(weak)}; {MENDS[fit.ended or 'steps']}", "yellow")
    if len(weak) == len(job.exits):
        return
    say(f'try it: hispec generate --profile {shlex.quote(str(job.profile_path))} "..." --verify')

"""Caveats of a run's figures, which are shown wherever the figures are."""

from collections.abc import Iterable, Iterator, Sequence

from hispec.bench.record import ArmFigures, Setup

FEW = 10
"""Prompts below which intervals come out too narrow."""


def few_prompts(prompts: int | None) -> str | None:
    """Return the caveat for figures from few prompts; None where there are enough, or where their number is not
    known.
    """
    if prompts == 1:
        return "One prompt gives no interval: other prompts may come out otherwise."
    if prompts is not None and 1 < prompts < FEW:
        return f"{prompts} prompts are few: the intervals are narrower than they should be."
    return None


def fewest_prompts(arms: Iterable[ArmFigures]) -> int | None:
    """Return the prompts of the arm that answered the fewest, None where no arm tells."""
    return min((arm.prompts for arm in arms if arm.prompts), default=None)


def caveats_of(setup: Setup, arms: Sequence[ArmFigures]) -> Iterator[str]:
    """Yield the sentences of `Report.caveats`."""
    if setup.status == "interrupted":
        answers = ", ".join(f"{arm.name} {arm.answers}" for arm in arms)
        yield f"The run was interrupted. Answers measured: {answers}; speed-ups use those that both arms gave."
    if setup.synthetic_weights:
        yield "The weights were drawn at random: " + (
            "how often exits agree with the whole model was chosen, and with it the speed-up; accuracy means nothing."
            if setup.environment.get("agreement") is not None
            else "acceptance, accuracy and so the speed-up mean nothing."
        )
    if (few := few_prompts(fewest_prompts(arms))) is not None:
        yield few

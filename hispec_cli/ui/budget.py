"""Messages about a budget that is too small."""

from rich.console import Console

from hispec.budget import Budget
from hispec_cli.ui.console import say


def say_if_not_kept(budget: Budget, console: Console, least: float = 0.0) -> bool:
    """Print a message if a budget is too small, and what happens then.

    Args:
        budget: the time budget of the command.
        console: the console to print on.
        least: the approximate seconds that the smallest effort with a result still takes.

    Returns:
        Whether it was said.
    """
    if budget.left >= least:
        return False
    more = f", and the least that gives a result takes about {least:.0f} s more" if round(least) else ""
    say(
        f"the budget of {budget.seconds:g} s cannot be kept: {budget.spent:.0f} s have gone by{more}; "
        "the minimum is done, Ctrl-C ends it",
        "yellow",
        console,
    )
    return True

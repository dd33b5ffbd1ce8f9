"""What the live view shows, as a pure function of the engine's events.

`reduce(state, event)` is the next state; nothing here reads a clock, a terminal or a model, so a recorded trace gives
the same states as the run it was recorded from. Events that cannot follow what came before are refused: the view
doubles as a check that the engine did what it says.
"""

from enum import StrEnum
from typing import NamedTuple

from hispec.events import Committed, Drafted, Event, Finished, FinishReason, Judged
from hispec.metrics import Stats

SHOWN_SECONDS = 0.25
"""How long struck tokens, and corrections that are already final, are shown as such, in event time; at the most until
the target judges again."""


class Standing(StrEnum):
    """How far a token has come."""

    draft = "draft"
    accepted = "accepted"
    """An intermediate level let it through."""
    correction = "correction"
    """A level wrote it in the place of one that it refused."""
    struck = "struck"
    """Refused, or written after one that was."""
    validated = "validated"
    """The target's own: final."""


class Mark(StrEnum):
    """What a level did with one token in the current cycle; a row of them is that level's part of it."""

    proposed = "p"
    accepted = "a"
    corrected = "c"
    dropped = "d"


class Token(NamedTuple):
    """A piece of text with its standing; `since` is the time of the event that gave it that, in seconds."""

    text: str
    standing: Standing
    since: float
    final: bool = False
    """Validated by the target; so may a correction be."""

    @property
    def waiting(self) -> bool:
        """Whether the target has yet to judge it."""
        return not self.final and self.standing is not Standing.struck


class ViewState(NamedTuple):
    """One moment of a generation. A cycle is what happens from one pass of the target to the next.

    Attributes:
        stats: the figures so far; never changed in place.
        settled: validated text with nothing left to show about it; it only ever grows.
        recent: what follows: validated tokens, struck ones and those that wait for the target, in reading order.
        held: validated text that is not the answer's yet, since it may become a stop text; it follows the last
            validated token.
        cycle: for each level, lowest first, its `Mark`s in the current cycle.
        closed: whether the target has ended the current cycle.
        finish_reason: why it ended, None while it runs.
    """

    stats: Stats
    settled: str = ""
    recent: tuple[Token, ...] = ()
    held: str = ""
    cycle: tuple[str, ...] = ()
    closed: bool = True
    finish_reason: FinishReason | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels' names, the target last."""
        return (*(level.name for level in self.stats.levels), self.stats.target)

    @property
    def validated(self) -> str:
        """The answer so far."""
        return self.settled + "".join(token.text for token in self.recent if token.final)


def reduce(state: ViewState, *events: Event) -> ViewState:
    """The state after some more events, the same whether they come one by one or together, which is cheaper.

    Raises:
        ValueError: when an event cannot follow: an unknown level, a judgement of more tokens than wait.
    """
    if not events:
        return state
    if state.finish_reason is not None:
        raise ValueError("it goes on after its end")
    stats = state.stats.copy()
    for event in events:
        stats.see(event)
        match event:
            case Drafted():
                state = _drafted(state, event)
            case Judged():
                state = _judged(state, event)
            case Committed():
                state = _committed(state, event)
            case Finished():
                break
    state = _age(state._replace(stats=stats), event.t)
    if isinstance(event, Finished):
        state = state._replace(settled=state.validated, recent=(), held="", finish_reason=event.finish_reason)
    return state


def _drafted(state: ViewState, event: Drafted) -> ViewState:
    own = event.level == state.stats.target
    texts = event.texts or ("",) * len(event.token_ids)
    if len(texts) != len(event.token_ids):
        raise ValueError("a draft has more or fewer texts than tokens")
    standing = Standing.validated if own else Standing.draft
    new = tuple(Token(text, standing, event.t) for text in texts)
    state = _marked(state, event.level, Mark.proposed * len(new))
    return state._replace(recent=state.recent + new)


def _judged(state: ViewState, event: Judged) -> ViewState:
    if own := event.level == state.stats.target:
        state = _age(state, event.t, shown=0.0)
    waiting = [at for at, token in enumerate(state.recent) if token.waiting]
    refused = event.proposed - event.accepted
    if not 0 <= event.accepted <= event.proposed <= len(waiting) or event.proposed == 0:
        raise ValueError(f"{event.proposed} tokens are judged and {event.accepted} accepted, while {len(waiting)} wait")
    if (refused > 0) != (event.correction is not None):
        raise ValueError("a refusal has no correction, or a correction no refusal")
    recent = list(state.recent)
    for number, at in enumerate(waiting[-event.proposed :]):
        kept = number < event.accepted
        standing = Standing.struck if not kept else Standing.validated if own else Standing.accepted
        recent[at] = recent[at]._replace(standing=standing, since=event.t)
    marks = Mark.accepted * event.accepted
    if refused:
        # It stands where the refused token stood: what follows was refused with it.
        recent.append(Token(event.correction_text, Standing.correction, event.t))
        marks += Mark.corrected + Mark.dropped * (refused - 1)
    return _marked(state, event.level, marks)._replace(recent=tuple(recent))


def _committed(state: ViewState, event: Committed) -> ViewState:
    waiting = [at for at, token in enumerate(state.recent) if token.waiting]
    count = len(event.token_ids)
    if waiting and count > len(waiting):
        raise ValueError(f"{count} tokens are validated, while {len(waiting)} wait")
    recent, chosen = list(state.recent), waiting[:count]
    pieces = [state.held, *(recent[at].text for at in chosen)]
    known = "".join(pieces)
    if known.startswith(event.text):
        held, left = known[len(event.text) :], len(event.text)
        for number, piece in enumerate(pieces):
            pieces[number] = piece[:left]
            left -= len(pieces[number])
    else:  # the target drew it itself, or decoding it in one go gives another text
        held, pieces = "", [event.text, *("" for _ in chosen)]
    for at, text in zip(chosen, pieces[1:], strict=True):
        standing = recent[at].standing if recent[at].standing is Standing.correction else Standing.validated
        recent[at] = Token(text, standing, recent[at].since, final=True)
    if pieces[0]:
        recent.insert(chosen[0] if chosen else len(recent), Token(pieces[0], Standing.validated, event.t, final=True))
    return _age(state._replace(recent=tuple(recent), held=held), event.t)


def _marked(state: ViewState, level: str, marks: str) -> ViewState:
    """Add to a level's part of the cycle; the first step after the target's begins a new one."""
    levels = state.levels
    if level not in levels:
        raise ValueError(f"the level {level!r} is not one of {', '.join(levels)}")
    cycle = list(("",) * len(levels) if state.closed else state.cycle)
    cycle[levels.index(level)] += marks
    return state._replace(cycle=tuple(cycle), closed=level == levels[-1])


def _age(state: ViewState, now: float, shown: float = SHOWN_SECONDS) -> ViewState:
    """Let marks fade that have been shown for that long, and settle what is plain validated text."""
    old = now - shown
    recent: list[Token] = []
    settled: list[str] = []
    for token in state.recent:
        if token.since <= old:
            if token.standing is Standing.struck:
                continue
            if token.final and token.standing is Standing.correction:
                token = token._replace(standing=Standing.validated)
        if token.standing is Standing.validated and token.final and not recent:
            settled.append(token.text)
        else:
            recent.append(token)
    return state._replace(settled=state.settled + "".join(settled), recent=tuple(recent))

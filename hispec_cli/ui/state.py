"""The state of the live view, as a pure function of the engine's events.

`reduce(state, event)` is the next state; nothing here reads a clock, a terminal or a model, so a recorded trace gives
the same states as the run it was recorded from. Events that cannot follow what came before are refused: the view
doubles as a check that the engine did what it says.
"""

from enum import StrEnum
from typing import NamedTuple

from hispec.events import Committed, Drafted, Event, Finished, FinishReason, Verified
from hispec.metrics import Stats

SHOWN_SECONDS = 0.25
"""The event time for which struck tokens, and corrections that are already final, are shown as such; at most until the
target verifies again.
"""


class TokenStatus(StrEnum):
    """The standing of a token: how far it has been verified."""

    draft = "draft"
    accepted = "accepted"
    """An intermediate level let it through."""
    correction = "correction"
    """A level wrote it in place of a token that it rejected."""
    struck = "struck"
    """Refused, or written after one that was."""
    validated = "validated"
    """The target's own: final."""


class Mark(StrEnum):
    """The action of a level on one token in the current cycle; a row of them is shown for each level."""

    proposed = "p"
    accepted = "a"
    corrected = "c"
    dropped = "d"


class Token(NamedTuple):
    """A piece of text with its standing; `since` is the time of the event that gave it that, in seconds."""

    text: str
    status: TokenStatus
    since: float
    final: bool = False
    """Validated by the target; so may a correction be."""

    @property
    def waiting(self) -> bool:
        """Return whether the target has yet to verify it."""
        return not self.final and self.status is not TokenStatus.struck


class ViewState(NamedTuple):
    """One moment of a generation. A cycle is what happens from one pass of the target to the next.

    Attributes:
        stats: the figures so far; never changed in place.
        settled: validated text with nothing left to show about it; it only ever grows.
        recent: the tokens after these: validated ones, struck ones and those that wait for the target, in reading
            order.
        held: validated text that is not the answer's yet, since it may become a stop text; it follows the last
            validated token.
        cycle: the `Mark`s of each level in the current cycle, lowest level first.
        closed: whether the target has ended the current cycle.
        finish_reason: the reason why it ended, None while it runs.
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
        """Return the levels' names, the target last."""
        return (*(level.name for level in self.stats.levels), self.stats.target)

    @property
    def validated(self) -> str:
        """Return the answer so far."""
        return self.settled + "".join(token.text for token in self.recent if token.final)


def reduce(state: ViewState, *events: Event) -> ViewState:
    """Return the state after some more events, the same whether they come one by one or together, which is cheaper.

    Raises:
        ValueError: an event cannot follow: its level is unknown, or it verifies more tokens than wait.
    """
    fold = _Fold(state)
    for event in events:
        fold.see(event)
    return fold.state()


class _Fold:
    """A state that is being changed, in lists of its own."""

    def __init__(self, state: ViewState) -> None:
        self.stats = state.stats.copy()
        self.settled, self.recent, self.held = state.settled, list(state.recent), state.held
        self.levels = state.levels
        self.cycle = list(state.cycle)
        self.closed, self.finish_reason = state.closed, state.finish_reason
        self.now: float | None = None

    def state(self) -> ViewState:
        if self.now is not None:
            self.age(SHOWN_SECONDS)
        return ViewState(
            self.stats,
            self.settled,
            tuple(self.recent),
            self.held,
            tuple(self.cycle),
            self.closed,
            self.finish_reason,
        )

    def see(self, event: Event) -> None:
        if self.finish_reason is not None:
            raise ValueError("it continues after its end")
        self.now = event.t
        match event:
            case Drafted():
                self.drafted(event)
            case Verified():
                self.verified(event)
            case Committed():
                self.committed(event)
            case Finished():
                self.settled += "".join(token.text for token in self.recent if token.final)
                self.recent, self.held, self.finish_reason = [], "", event.finish_reason
        self.stats.see(event)  # last: only of an event that can follow

    def drafted(self, event: Drafted) -> None:
        texts = event.texts or ("",) * len(event.token_ids)
        if len(texts) != len(event.token_ids):
            raise ValueError("a draft has more or fewer texts than tokens")
        status = TokenStatus.validated if event.level == self.levels[-1] else TokenStatus.draft
        self.mark(event.level, Mark.proposed * len(texts))
        self.recent += [Token(text, status, event.t) for text in texts]

    def verified(self, event: Verified) -> None:
        target = event.level == self.levels[-1]
        if target:
            self.age(0.0)
        waiting = self.waiting()
        refused = event.proposed - event.accepted
        if not 0 <= event.accepted <= event.proposed <= len(waiting) or event.proposed == 0:
            raise ValueError(
                f"{event.proposed} tokens are verified and {event.accepted} accepted, while {len(waiting)} wait"
            )
        if refused and event.correction is None:
            raise ValueError("a rejection has no correction")
        accepted = TokenStatus.validated if target else TokenStatus.accepted
        for number, at in enumerate(waiting[-event.proposed :]):
            status = accepted if number < event.accepted else TokenStatus.struck
            self.recent[at] = Token(self.recent[at].text, status, event.t)
        marks = Mark.accepted * event.accepted
        if refused:
            # It replaces the rejected token; the tokens after that were rejected with it.
            self.recent.append(Token(event.correction_text, TokenStatus.correction, event.t))
            marks += Mark.corrected + Mark.dropped * (refused - 1)
        elif event.correction is not None:
            self.recent.append(Token(event.correction_text, accepted, event.t))
            marks += Mark.accepted
        self.mark(event.level, marks)

    def committed(self, event: Committed) -> None:
        waiting, count = self.waiting(), len(event.token_ids)
        if waiting and count > len(waiting):
            raise ValueError(f"{count} tokens are validated, while {len(waiting)} wait")
        chosen = waiting[:count]
        pieces = [self.held, *(self.recent[at].text for at in chosen)]
        known = "".join(pieces)
        if known.startswith(event.text):
            self.held, left = known[len(event.text) :], len(event.text)
            for number, piece in enumerate(pieces):
                pieces[number] = piece[:left]
                left -= len(pieces[number])
        else:  # the target drew it itself, or decoding it in one go gives another text
            self.held, pieces = "", [event.text, *("" for _ in chosen)]
        for at, text in zip(chosen, pieces[1:], strict=True):
            _, status, since, _ = self.recent[at]
            if status is not TokenStatus.correction:
                status = TokenStatus.validated
            self.recent[at] = Token(text, status, since, final=True)
        if pieces[0]:
            first = chosen[0] if chosen else len(self.recent)
            self.recent.insert(first, Token(pieces[0], TokenStatus.validated, event.t, final=True))
        self.age(SHOWN_SECONDS)

    def waiting(self) -> list[int]:
        """Return the places of the tokens that the target has yet to verify."""
        return [
            at for at, (_, status, _, final) in enumerate(self.recent) if not final and status is not TokenStatus.struck
        ]

    def mark(self, level: str, marks: str) -> None:
        """Add to a level's marks of the cycle; the first step after the target's begins a new cycle."""
        if level not in self.levels:
            raise ValueError(f"the level {level!r} is not one of {', '.join(self.levels)}")
        if self.closed:
            self.cycle = [""] * len(self.levels)
        self.cycle[self.levels.index(level)] += marks
        self.closed = level == self.levels[-1]

    def age(self, shown: float) -> None:
        """Let marks fade that have been shown for that many seconds, and settle what is plain validated text."""
        assert self.now is not None
        recent: list[Token] = []
        for token in self.recent:
            if token.since <= self.now - shown:
                if token.status is TokenStatus.struck:
                    continue
                if token.final and token.status is TokenStatus.correction:
                    token = token._replace(status=TokenStatus.validated)
            if token.final and token.status is TokenStatus.validated and not recent:
                self.settled += token.text
            else:
                recent.append(token)
        self.recent = recent

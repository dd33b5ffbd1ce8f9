"""The figures of one generation, computed from its events."""

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from hispec.events import PHASES, Committed, Drafted, Event, Prefilled, Verified

if TYPE_CHECKING:
    from hispec.decoding.hierarchy import Hierarchy, Level


def exit_name(exit_layer: int, weights: str | None = None) -> str:
    """Return the name of an exit: `exit 2`, or `exit 2 int4` for that of a quantized copy."""
    return f"exit {exit_layer}" + (f" {weights}" if weights else "")


@dataclass
class LevelStats:
    """The tokens that a level below the target proposed to the next level, and how many of them that level accepted.

    Attributes:
        name: the name of the level.
        model: the name of the model that the level reads.
        exit_layer: the exit layer of the level.
        weights: the weight format of the copy that the level reads, None where it reads the model's own weights.
        proposed: tokens.
        accepted: the number of proposed tokens that were accepted.
        accepted_lengths: item k is the number of verifications that accepted exactly k tokens.
        proposed_at: item i is how often a verified run had a token at position i.
        accepted_at: item i is how often that token was accepted.
    """

    name: str
    model: str
    exit_layer: int
    proposed: int = 0
    accepted: int = 0
    accepted_lengths: list[int] = field(default_factory=list)
    proposed_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    weights: str | None = None

    def see(self, proposed: int, accepted: int) -> None:
        """Add one verification by the next level."""
        self.proposed += proposed
        self.accepted += accepted
        self.accepted_lengths += [0] * (accepted + 1 - len(self.accepted_lengths))
        self.accepted_lengths[accepted] += 1
        for counts, upto in ((self.proposed_at, proposed), (self.accepted_at, accepted)):
            counts += [0] * (proposed - len(counts))
            for position in range(upto):
                counts[position] += 1

    def copy(self) -> "LevelStats":
        """Return a copy of the counts, which later events do not change."""
        return replace(
            self,
            accepted_lengths=[*self.accepted_lengths],
            proposed_at=[*self.proposed_at],
            accepted_at=[*self.accepted_at],
        )

    def plus(self, other: "LevelStats") -> "LevelStats":
        """Return the counts of the same level in another generation added."""
        return replace(
            self,
            proposed=self.proposed + other.proposed,
            accepted=self.accepted + other.accepted,
            accepted_lengths=_added(self.accepted_lengths, other.accepted_lengths),
            proposed_at=_added(self.proposed_at, other.proposed_at),
            accepted_at=_added(self.accepted_at, other.accepted_at),
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Return the share of tokens that was accepted; None if none was proposed."""
        return self.accepted / self.proposed if self.proposed else None


@dataclass
class Stats:
    """Counts and seconds of one generation; feed it every event.

    A target pass is any pass through the target's last layers: the prefill, a token of its own, or a verification.
    """

    levels: list[LevelStats]
    target: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """The number of prompt tokens that were in the KV cache from an earlier answer."""
    new_tokens: int = 0
    target_passes: int = 0
    time_to_first_token_s: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _standing: str = field(default="", repr=False, compare=False)
    """The level that proposed or verified last."""

    @classmethod
    def of(cls, hierarchy: "Hierarchy") -> "Stats":
        """Return empty figures for a hierarchy."""
        own = hierarchy.stack_of(-1).name

        def empty(level: "Level") -> LevelStats:
            model = "n-gram" if level.stack is None else own if level.weights else level.stack.name
            return LevelStats(level.name, model, level.exit_layer, weights=level.weights)

        return cls(levels=[empty(level) for level in hierarchy.levels[:-1]], target=hierarchy.target.name)

    def copy(self) -> "Stats":
        """Return a copy of the figures, which later events do not change."""
        return replace(self, levels=[level.copy() for level in self.levels], seconds=dict(self.seconds))

    def see(self, event: Event) -> None:
        """Take one event into account."""
        match event:
            case Prefilled():
                self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
                self.target_passes += 1
                self._spend("prefill", event.seconds)
            case Drafted():
                self.target_passes += event.level == self.target
                self._spend(event.level, event.seconds)
                self._standing = event.level
            case Verified():
                self.target_passes += event.level == self.target
                self._spend(event.level, event.seconds)
                self._level(self._standing).see(event.proposed, event.accepted)
                self._standing = event.level
            case Committed():
                self.new_tokens += len(event.token_ids)
                if self.time_to_first_token_s is None:
                    self.time_to_first_token_s = event.t

    @property
    def total_seconds(self) -> float:
        """Return the seconds that the engine worked, prompt included, without the time of listeners."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """Return the new tokens divided by `total_seconds`."""
        return self.new_tokens / self.total_seconds if self.total_seconds else 0.0

    @property
    def tokens_per_target_pass(self) -> float:
        """Return new tokens for each pass through the target; plain decoding has 1."""
        return self.new_tokens / self.target_passes if self.target_passes else 0.0

    def to_record(self) -> dict[str, Any]:
        """Return the `stats` object of `hispec.generate/1`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "tokens_per_second": self.tokens_per_second,
            "time_to_first_token_s": self.time_to_first_token_s,
            "seconds": {**self.seconds, "total": self.total_seconds},
            "target_passes": self.target_passes,
            "tokens_per_target_pass": self.tokens_per_target_pass,
            "levels": [
                {
                    "name": level.name,
                    "model": level.model,
                    "exit_layer": level.exit_layer,
                    **({"weights": level.weights} if level.weights else {}),
                    "proposed": level.proposed,
                    "accepted": level.accepted,
                    "acceptance_rate": level.acceptance_rate,
                }
                for level in self.levels
            ],
        }

    def _spend(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def _level(self, name: str) -> LevelStats:
        """Return the level whose tokens were verified; a policy may leave out levels between it and the verifying
        one.
        """
        return next((level for level in self.levels if level.name == name), self.levels[-1])


def _added(a: list[int], b: list[int]) -> list[int]:
    return [x + y for x, y in zip_longest(a, b, fillvalue=0)]

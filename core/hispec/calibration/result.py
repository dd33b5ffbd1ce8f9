"""The result of a calibration, and the names by which users know the configurations in it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hispec.bench.caveats import few_prompts
from hispec.calibration.recording import LevelSpec, RecordedTexts
from hispec.calibration.search import PLAIN, Configuration, HierarchyBuilder, Scorer, SearchResult
from hispec.calibration.timing import Speed, Timings


@dataclass
class CalibrationResult:
    """The result of a calibration.

    Attributes:
        winner: the fastest configuration by timed decoding, unless a baseline is significantly faster on unseen
            prompts.
        ties: finalists that may be as fast, by the confidence interval of the ratio.
        found: all replays.
        timings: the timings of the finalists, on the calibration prompts.
        check: the timings of winner and baselines, on unseen prompts.
        scorer: the scorer, with costs, recorded texts and the adaptive policy's knowledge.
        agreement: the share of tokens on which a level spec agrees with the target, by level spec.
        seconds: the seconds of each phase.
    """

    winner: Configuration
    ties: list[Configuration]
    found: SearchResult
    timings: Timings
    check: Timings
    scorer: Scorer
    agreement: dict[LevelSpec, float]
    seconds: dict[str, float] = field(default_factory=dict)

    def speed(self, configuration: Configuration) -> Speed:
        """Return the speed on prompts that were not calibrated on."""
        return self.check.speed(self.check.configurations.index(configuration))

    def ratio(self, one: Configuration, other: Configuration) -> Speed:
        """Return the ratio of two speeds on prompts that were not calibrated on."""
        place = self.check.configurations.index
        return self.check.ratio(place(one), place(other))

    @property
    def prompts_checked(self) -> int:
        """Return how many prompts the check was timed on."""
        return len({answer.prompt for answer in self.check.answers})

    @property
    def caveat(self) -> str | None:
        """Return a caveat if the check had few prompts."""
        return few_prompts(self.prompts_checked)

    @property
    def defaults(self) -> Configuration | None:
        """Return what decodes without a profile; None where it was not timed."""
        return self.baselines().get("defaults")

    @property
    def over_defaults(self) -> Speed | None:
        """Return how many times as fast the winner is as decoding without a profile; None where that was not timed."""
        return None if self.defaults is None else self.ratio(self.winner, self.defaults)

    @property
    def beats_defaults(self) -> bool:
        """Return whether the winner is faster than decoding without a profile, by more than its noise."""
        over = self.over_defaults
        return over is None or (over.ci95 is not None and over.ci95[0] > 1)

    def baselines(self) -> dict[str, Configuration]:
        """Return the first baseline of each kind by its name: see `baseline_names`."""
        return baselines_among(self.check.configurations, self.scorer.builder)


def baselines_among(configurations: Iterable[Configuration], builder: HierarchyBuilder) -> dict[str, Configuration]:
    """Return the first configuration of each kind that `baseline_names` knows.

    A single layer as published goes without that name where it is the first of all.
    """
    found: dict[str, Configuration] = {}
    for configuration in configurations:
        for name in baseline_names(configuration, builder):
            found.setdefault(name, configuration)
    if found.get("single-layer") == found.get("single-layer-published"):
        found.pop("single-layer-published", None)
    return found


def baseline_names(configuration: Configuration, builder: HierarchyBuilder) -> list[str]:
    """Return the names by which users know a configuration, if there are any.

    `defaults` is what decodes without a profile. Below the target `single-layer` has an exit or a quantized copy,
    `two-model` a whole other model; as published there are only exits of the full weights, one or two.
    """
    specs = configuration.specs
    if configuration == PLAIN:
        return ["autoregressive"]
    if configuration.uncalibrated:
        return ["defaults"]
    if configuration.adaptive or configuration.ngram or not specs:
        return []
    if specs[0].model != builder.target:
        return ["two-model"] if len(specs) == 1 else []
    published = [] if configuration.quantized else [f"{configuration.mode}-published"]
    return published if len(specs) == 2 else ["single-layer", *published]


def agreement_of(recorded: RecordedTexts, target: LevelSpec) -> dict[LevelSpec, float]:
    """Return for each level spec the share of recorded tokens on which it agrees with the target."""
    agreed: dict[LevelSpec, int] = {}
    tokens = 0
    for text in recorded.texts:
        tokens += len(text.tokens)
        own = text.predictions[target].argmax
        for spec, prediction in text.predictions.items():
            agreed[spec] = agreed.get(spec, 0) + sum(a == b for a, b in zip(prediction.argmax, own, strict=True))
    return {spec: count / tokens for spec, count in agreed.items()}

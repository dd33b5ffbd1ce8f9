"""Predicts decoding speeds on GPUs from a cost model whose constants are all here; `gpu.py` compares them with
measurements.

One sequence is decoded, from recorded graphs, with fixed lengths. In microseconds, for a card that reads B bytes in each:

    matrix        fixed + bytes / (B * share of the format)
    layer         four matrices + small kernels + norms + attention (+ two copies where there are several rows, as in every
                  pass of the target's weights)
    head          matrix + arg-max
    pass          layers + head; every run of drafts and every verification waits once for the device
    several cards staged: crossings between them; tensor-parallel: bytes / cards, two sums over cards a layer, one of
        a whole head; a reduced one is whole on every card

A run of n tokens that are accepted with probability a each gives g(a, n) = 1 + a + ... + a^(n-1) tokens, as in `limits.py`.
The probabilities are the agreements of the levels of a small early-exit model with its target. An exit beneath another
level is accepted with the ratio of the two agreements, which assumes that the deeper one is right where the shallower is.

    python benchmarks/predict.py                # the tables of docs/performance.md and docs/devices.md
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from cards import CARDS, CROSS_US, REDUCE_US
from common import save
from limits import tokens_of_run

from hispec.models.checkpoint import Checkpoint
from hispec.models.config import ModelConfig
from hispec.models.dtypes import bits_per_weight
from hispec.models.graphs import ONE_WIDTH
from hispec.models.sharding import Shard

MODELS = {
    "1B": "facebook/layerskip-llama3.2-1B",
    "8B": "facebook/layerskip-llama3-8B",
    "70B": "facebook/layerskip-llama2-70B",
    "2.7B": "princeton-nlp/Sheared-LLaMA-2.7B",
}
AGREEMENT = {1: 0.68, 2: 0.75, 4: 0.80, "int4": 0.976, "2.7B": 0.70}
"""With the target, on lab-ee: exits by sixteenths of the depth, a copy in 4 bits; of a small model of its own: assumed."""
HEAD_SIZE = 4096
"""The size of the heads of exits; a whole copy or model has a whole head."""
DRAFTS, WAITING, SINGLE = (1, 2, 3, 4, 6, 8), (4, 6, 8, 12, 16), (1, 2, 3, 4, 6, 8, 12)
"""Lengths that are tried; the best counts."""


@dataclass(frozen=True)
class Costs:
    """The costs of every part besides its bytes, in microseconds; `share` is a ratio."""

    matrix: float = 2.5
    small: float = 2.3
    small_per_layer: int = 7
    norm: float = 3.2
    norms_per_layer: int = 2
    attention: float = 5.1
    attention_per_position: float = 0.0075
    more_rows: float = 4.6
    read_token: float = 15.0
    wait: float = 85.0
    cross: float = CROSS_US
    reduce: float = REDUCE_US
    share: dict[str, float] = field(default_factory=lambda: {"full": 1.0, "int4": 0.6})
    """The share of the bandwidth that products of a format reach."""


@dataclass(frozen=True)
class Machine:
    """Cards of one kind.

    Attributes:
        read: TB/s of one.
        cards: the number of cards.
        tensor: whether matrices are shared; else layers are spread.
    """

    read: float
    cards: int = 1
    tensor: bool = False
    costs: Costs = field(default_factory=Costs)

    def matrix(self, inputs: int, outputs: int, weights: str, *, shared: bool = True) -> float:
        """Return the microseconds of a product with few rows."""
        bits = 16 if weights == "full" else bits_per_weight(weights, inputs, "cuda")
        share = self.read * self.costs.share[weights] * (self.cards if self.tensor and shared else 1)
        return self.costs.matrix + inputs * outputs * bits / 8 / (share * 1e6)

    def span(self, config: ModelConfig, layers: float, weights: str, rows: int, length: int) -> float:
        """Return the microseconds of some layers."""
        costs = self.costs
        each = sum(self.matrix(*shape, weights) for shape in config.layer_shapes)
        each += costs.small * costs.small_per_layer + costs.norm * costs.norms_per_layer
        each += costs.attention + costs.attention_per_position * length + costs.more_rows * (rows > 1)
        each += 2 * costs.reduce * self.tensor
        crossed = 0 if self.tensor else int(layers * self.cards / config.num_layers - 1e-9)
        crossed += crossed > 0  # and back to the head
        return layers * each + costs.cross * crossed

    def head(self, config: ModelConfig, weights: str, size: int | None) -> float:
        """Return the microseconds of a head and its argmax."""
        read = self.matrix(config.hidden_size, size or config.vocab_size, weights, shared=size is None)
        return read + self.costs.read_token + self.costs.reduce * (self.tensor and size is None)


@dataclass(frozen=True)
class Level:
    """A level below the target.

    Attributes:
        layers: the number of layers that it reads.
        weights: their format.
        agreement: its agreement with the target.
        head_size: the size of its head; None for the whole head.
        config: the configuration of a separate model.
    """

    layers: float
    weights: str
    agreement: float
    head_size: int | None = None
    config: ModelConfig | None = None


def speed(
    machine: Machine, config: ModelConfig, levels: list[Level], lengths: tuple[int, ...], weights: str, length: int
) -> float:
    """Return tokens per second of a hierarchy of at most two levels below the target."""
    wait = machine.costs.wait

    def cost(level: Level, after: Level | None, rows: int) -> float:
        goes_on = after is not None and after.weights == level.weights and after.config is level.config
        layers = level.layers - (after.layers if goes_on and after is not None else 0)
        own = level.config or config
        shared = machine.tensor and Shard(0, machine.cards).divides(own)
        alone = Machine(machine.read, 1, False, machine.costs) if level.config and not shared else machine
        # Every pass of the target's weights has the one width, whatever its tokens.
        rows = ONE_WIDTH if level.weights == weights and level.config is None else rows
        head = weights if level.config is None else level.weights  # a copy reads the target's own
        return alone.span(own, layers, level.weights, rows, length) + alone.head(own, head, level.head_size)

    target = Level(config.num_layers, weights, 1.0)
    if not levels:
        return 1e6 / (cost(target, None, 1) + wait)
    drafts = lengths[0] * cost(levels[0], None, 1) + wait
    if len(levels) == 1:
        return (
            1e6 * tokens_of_run(levels[0].agreement, lengths[0]) / (drafts + cost(target, levels[0], lengths[0]) + wait)
        )
    low, high = levels
    cycle = drafts + cost(high, low, lengths[0]) + wait
    cycles = lengths[1] / tokens_of_run(min(1.0, low.agreement / high.agreement), lengths[0])
    round_ = cycles * cycle + cost(target, high, lengths[1]) + wait
    return 1e6 * tokens_of_run(high.agreement, lengths[1]) / round_


def kinds(config: ModelConfig, weights: str = "full") -> Iterator[tuple[str, list[Level]]]:
    """Yield the kinds of hierarchies that are compared, for a target in some format."""
    sixteenth = config.num_layers / 16

    def exit_at(at: int, form: str) -> Level:
        return Level(max(1, round(at * sixteenth)), form, AGREEMENT[at], HEAD_SIZE)

    yield "plain", []
    if weights != "full":  # the target's own exits: its weights are the quantized ones
        yield "exit > target", [exit_at(1, weights)]
        yield "exit > exit > target", [exit_at(1, weights), exit_at(4, weights)]
        return
    copy = Level(config.num_layers, "int4", AGREEMENT["int4"])
    yield "exit > target", [exit_at(1, "full")]
    yield "exit > exit > target", [exit_at(1, "full"), exit_at(4, "full")]
    yield "int4 exit > target", [exit_at(1, "int4")]
    yield "int4 > target", [copy]
    yield "int4 exit > int4 > target", [exit_at(1, "int4"), copy]


def best(machine: Machine, config: ModelConfig, levels: list[Level], weights: str, length: int) -> dict[str, Any]:
    """Return the speed at the best lengths."""
    grid = [(), [(one,) for one in SINGLE], [(d, w) for d, w in product(DRAFTS, WAITING) if d <= w]][len(levels)]
    tried = {lengths: speed(machine, config, levels, lengths, weights, length) for lengths in grid or [()]}
    lengths = max(tried, key=lambda one: tried[one])
    return {"tokens_per_second": round(tried[lengths], 1), "lengths": list(lengths)}


def config_of(model: str) -> ModelConfig:
    """Return the configuration that ships for a model."""
    return Checkpoint(MODELS[model], dummy=True).config


def predictions(length: int = 512, costs: Costs = Costs()) -> list[dict[str, Any]]:
    """Return rows: card, cards, model, kind, and what it gives. Layouts that the memory cannot hold are left out."""
    found = []

    def add(card: str, cards: int, layout: str, model: str, weights: str, kind: str, levels: list[Level]) -> None:
        machine = Machine(CARDS[card].read_tb_s, cards, layout == "tensor-parallel", costs)
        config = config_of(model)
        copy = any(level.weights != weights for level in levels)
        size = config.parameters * (2 if weights == "full" else 0.65) + copy * config.parameters * 0.63
        if size / 1e9 > 0.95 * CARDS[card].memory_gb * cards:
            return
        row = best(machine, config, levels, weights, length)
        found.append(
            {"card": card, "cards": cards, "layout": layout, "model": model, "weights": weights, "kind": kind, **row}
        )

    for card, model in product(CARDS, ("1B", "8B", "70B")):
        for weights in ("full", "int4") if model == "70B" else ("full",):
            for kind, levels in kinds(config_of(model), weights):
                add(card, 1, "one", model, weights, kind, levels)
    small = config_of("2.7B")
    for card, cards, layout in product(CARDS, (2, 4, 8), ("staged", "tensor-parallel")):
        config = config_of("70B")
        draft = Level(small.num_layers, "full", AGREEMENT["2.7B"], None, small)
        copy = Level(config.num_layers, "int4", AGREEMENT["int4"])
        for kind, levels in [*kinds(config), ("2.7B > int4 > target", [draft, copy])]:
            add(card, cards, layout, "70B", "full", kind, levels)
    for row in found:
        plain = next(
            one
            for one in found
            if one["kind"] == "plain" and all(one[k] == row[k] for k in ("card", "cards", "layout", "model", "weights"))
        )
        row["over_plain"] = round(row["tokens_per_second"] / plain["tokens_per_second"], 2)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return a table with a line for each machine and model, and a column for each kind."""
    names = list(dict.fromkeys(row["kind"] for row in rows))
    lines: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[k] for k in ("model", "weights", "card", "cards", "layout"))
        lines.setdefault(key, {})[row["kind"]] = row
    text = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for (model, weights, card, cards, layout), own in lines.items():
        where = card if cards == 1 else f"{cards} {card}, {layout}"
        shown = [
            f"{own[name]['tokens_per_second']:.0f} ({own[name]['over_plain']:.2f})" if name in own else ""
            for name in names
        ]
        text.append(f"| {model}{'' if weights == 'full' else ' ' + weights}, {where} | {' | '.join(shown)} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512, help="positions of the text")
    args = parser.parse_args()
    rows = predictions(args.length)
    record = {
        "computed": True,
        "length": args.length,
        "cards": {name: asdict(card) for name, card in CARDS.items()},
        "microseconds": asdict(Costs()),
        "agreement": {str(key): value for key, value in AGREEMENT.items()},
        "words_of_exits": HEAD_SIZE,
        "rows": rows,
    }
    save("predicted-gpu", record, show=False)
    print(table([row for row in rows if row["cards"] == 1]), "\n")
    print(table([row for row in rows if row["cards"] > 1]))


if __name__ == "__main__":
    main()

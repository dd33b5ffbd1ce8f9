"""Computes the speed of 2 to 8 GPUs, or of several nodes of them, from a cost model; nothing is measured here.

One sequence is decoded, so a pass takes as long as its weights take to be read. `w` bytes a layer, `H` bytes of the head,
`B` bytes a second read by one GPU, `P` GPUs, `g(a, n) = (1 - a^n) / (1 - a)` tokens from n in a row that are accepted with
chance a each:

    span(n layers)      layer-wise: n w / B + (crossings) t_cross       tensor-parallel: n (w / (P B) + 2 t_reduce)
                        and never below n t_launch, the time that the processor takes to start a layer
    head                layer-wise: H / B                               tensor-parallel: H / (P B) + t_reduce
    autoregressive      1 / (span(L) + head)
    single-layer        g(a, k) / (k (span(E) + head) + span(L - E) + head)
    hispec              g(a2, N_i) / (N_i / g(a1, N_d) (N_d (span(E1) + head) + span(E2 - E1) + head) + span(L - E2) + head)

Layers go to devices as `hispec.models.placement.plan_devices` puts them: the head is on the first, and so are shallow exits.
"""

import argparse
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from cards import CARDS, CROSS_US, REDUCE_BETWEEN_NODES_US, REDUCE_US
from common import save
from limits import tokens_of_run
from transformers import AutoConfig

from hispec.models.checkpoint import Checkpoint
from hispec.models.placement import plan_devices

KV_TOKENS = 4096


@dataclass(frozen=True)
class Machine:
    """The assumptions about GPUs and links; each is an option of this script."""

    memory_gb: float = CARDS["H200"].memory_gb
    bandwidth_tb_s: float = CARDS["H200"].read_tb_s
    reduce_us: float = REDUCE_US
    reduce_between_nodes_us: float = REDUCE_BETWEEN_NODES_US
    cross_us: float = CROSS_US


@dataclass(frozen=True)
class Shape:
    """The sizes of a model in bytes."""

    layers: int
    layer: int
    head: int
    others: int
    kv_layer: int


def shape_of(model: str) -> Shape:
    """Return the sizes in bfloat16, from the configuration that ships."""
    config = Checkpoint(model, dummy=True).config
    hidden, size = config.hidden_size, config.head_size
    attention = hidden * size * (2 * config.num_heads + 2 * config.num_kv_heads)
    layer = 2 * (attention + 3 * hidden * config.intermediate_size + 2 * hidden)
    head = 2 * hidden * config.vocab_size
    return Shape(config.num_layers, layer, head, 0 if config.tied else head, 4 * config.num_kv_heads * size * KV_TOKENS)


class Sharding:
    """Times of spans and heads, in seconds.

    Args:
        shape: the sizes of the model.
        machine: its GPUs.
        gpus: the number of GPUs in all.
        nodes: the number of nodes.
        tensor: matrices are shared; else layers are spread.
        places: per layer its device, where layers are spread.
        launch: seconds that a processor takes to start one layer.
    """

    def __init__(
        self, shape: Shape, machine: Machine, gpus: int, nodes: int, tensor: bool, places: list[Any], launch: float
    ) -> None:
        self.shape, self.gpus, self.tensor, self.places, self.launch = shape, gpus, tensor, places, launch
        self.bandwidth = machine.bandwidth_tb_s * 1e12
        self.reduce = (machine.reduce_us if nodes == 1 else machine.reduce_between_nodes_us) * 1e-6
        self.cross = machine.cross_us * 1e-6

    def span(self, first: int, last: int) -> float:
        """Return the seconds of layers first..last-1 and of the transfer to the head."""
        count = last - first
        if self.tensor:
            layer = self.shape.layer / (self.gpus * self.bandwidth) + 2 * self.reduce
            return count * max(layer, self.launch)
        used = [self.places[max(first - 1, 0)], *self.places[first:last], self.places[0]]
        crossings: int = sum(bool(here != there) for here, there in pairwise(used))
        return count * max(self.shape.layer / self.bandwidth, self.launch) + crossings * self.cross

    @property
    def head(self) -> float:
        """Return the seconds of the head."""
        if self.tensor:
            return self.shape.head / (self.gpus * self.bandwidth) + self.reduce
        return self.shape.head / self.bandwidth

    def autoregressive(self) -> float:
        """Return tokens per second."""
        return 1 / (self.span(0, self.shape.layers) + self.head)

    def single_layer(self, draft: int, length: int, chance: float) -> float:
        """Return tokens per second."""
        drafts = length * (self.span(0, draft) + self.head)
        return tokens_of_run(chance, length) / (drafts + self.span(draft, self.shape.layers) + self.head)

    def hispec(self, exits: tuple[int, int], lengths: tuple[int, int], chances: tuple[float, float]) -> float:
        """Return tokens per second."""
        draft, middle = exits
        cycle = lengths[0] * (self.span(0, draft) + self.head) + self.span(draft, middle) + self.head
        cycles = lengths[1] / tokens_of_run(chances[0], lengths[0])
        target = self.span(middle, self.shape.layers) + self.head
        return tokens_of_run(chances[1], lengths[1]) / (cycles * cycle + target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="facebook/layerskip-llama2-70B")
    parser.add_argument("--exits", type=int, nargs=2, default=(10, 20))
    parser.add_argument("--lengths", type=int, nargs=2, default=(2, 4), help="N_d and N_i")
    parser.add_argument("--chances", type=float, nargs=3, default=(0.55, 0.70, 0.75), help="a, a1 and a2")
    parser.add_argument("--launch-us", type=float, default=500.0, help="least time of a layer of transformers")
    for name, value in asdict(Machine()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    args = parser.parse_args()
    machine = Machine(**{name: getattr(args, name) for name in asdict(Machine())})
    shape = shape_of(args.model)
    config = AutoConfig.from_pretrained(str(Checkpoint(args.model).shipped_config))
    exits, lengths = (args.exits[0], args.exits[1]), (args.lengths[0], args.lengths[1])
    rows = []
    spread = [("layer-wise", gpus, 1) for gpus in (2, 3, 4, 6, 8)]
    shared = [("tensor-parallel", gpus, nodes) for gpus, nodes in ((2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (8, 4))]
    for kind, gpus, nodes in spread + shared:
        tensor = kind == "tensor-parallel"
        limits = dict.fromkeys(range(gpus), int(0.9 * machine.memory_gb * 1e9)) | {"cpu": 0}
        where = {} if tensor else plan_devices(config, args.model, torch.bfloat16, 16, limits, exits[1])
        places = [device for module, device in where.items() if ".layers." in module] or [0] * shape.layers
        each = [places.count(device) * (shape.layer + shape.kv_layer) for device in dict.fromkeys(places)]
        each[0] += shape.head + shape.others
        whole = shape.layers * (shape.layer + shape.kv_layer) + shape.head
        row: dict[str, Any] = {
            "kind": kind,
            "gpus": gpus,
            "nodes": nodes,
            # An embedding is held whole by every rank.
            "most_gb_on_one": round((whole / gpus + shape.others if tensor else max(each)) / 1e9, 1),
            "layers": None if tensor else [places.count(device) for device in dict.fromkeys(places)],
        }
        for name, launch in (("limit", 0.0), ("transformers", args.launch_us * 1e-6)):
            sharding = Sharding(shape, machine, gpus, nodes, tensor, places, launch)
            plain = sharding.autoregressive()
            best = sharding.hispec(exits, lengths, (args.chances[1], args.chances[2]))
            row[name] = {
                "autoregressive": round(plain, 1),
                "single_layer": round(sharding.single_layer(exits[0], lengths[1], args.chances[0]), 1),
                "hispec": round(best, 1),
                "speedup": round(best / plain, 2),
            }
        rows.append(row)
    assumptions = {
        **asdict(machine),
        "model": args.model,
        "exits": exits,
        "lengths": lengths,
        "chances": list(args.chances),
        "launch_us": args.launch_us,
        "kv_tokens": KV_TOKENS,
        "layer_gb": round(shape.layer / 1e9, 3),
        "head_gb": round(shape.head / 1e9, 3),
    }
    save("devices", {"computed": True, "assumptions": assumptions, "arrangements": rows})
    print(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of docs/devices.md."""
    lines = [
        "| arrangement | GB on the fullest GPU | limit: autoregressive | single-layer | hispec "
        "| started by a processor: autoregressive | hispec |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        where = f"{row['gpus']} GPUs" + (f" in {row['nodes']} nodes" if row["nodes"] > 1 else "")
        layers = f" ({' + '.join(map(str, row['layers']))} layers)" if row["layers"] else ""
        limit, started = row["limit"], row["transformers"]
        speeds = (
            limit["autoregressive"],
            limit["single_layer"],
            limit["hispec"],
            started["autoregressive"],
            started["hispec"],
        )
        cells = f"{row['most_gb_on_one']:.1f}", *(f"{speed:.1f}" for speed in speeds)
        lines.append(f"| {row['kind']}, {where}{layers} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

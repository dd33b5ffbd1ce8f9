"""Common parts of the scripts that compare all kinds of hierarchies with the target alone; results are resumable."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import RESULTS, environment, save

from hispec import Engine
from hispec.adaptation import performance_model
from hispec.decoding.decoder import Decoder
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.models.checkpoint import Checkpoint
from hispec.models.loading import load_stack
from hispec.models.placement import Placement
from hispec.models.stack import LayerStack
from hispec.models.transformers_stack import TransformersStack
from hispec.policies.adaptive import AdaptivePolicy
from hispec.policies.base import Policy
from hispec.policies.static import StaticPolicy
from hispec.profile import load_profile, profile_for_model, resolve_model


class Kind(NamedTuple):
    """A kind of hierarchy, with an example and its policy."""

    name: str
    hierarchy: Hierarchy
    policy: Callable[[Hierarchy], Policy]

    def decoder(self, plain: Decoder) -> Decoder:
        """Return a decoder of this hierarchy whose text must be that of another decoder."""
        return replace(plain, hierarchy=self.hierarchy, policy=lambda: self.policy(self.hierarchy))


@dataclass(frozen=True)
class Comparison:
    """The target alone, the hierarchies that it is compared with, and the results so far.

    Attributes:
        engine: the target alone.
        kinds: the hierarchies on the target.
        name: the name of the result's file.
        result: the result of the prompts that are done; it is written after each.
    """

    engine: Engine
    kinds: list[Kind]
    name: str
    result: dict[str, Any]

    def keep(self) -> None:
        """Write the result to its file."""
        save(self.name, self.result, show=False)


def add_arguments(parser: ArgumentParser, max_new_tokens: int, dtype: str) -> None:
    """Add the options of all comparisons; the arguments are defaults."""
    parser.add_argument("--model", default="tiny", help="a folder or a GGUF file; by default the shipped model")
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument(
        "--levels", choices=LEVELS, default="exits", help="below the target, beside n-grams and a small model"
    )
    parser.add_argument("--draft-length", type=int, default=3)
    parser.add_argument("--validation-period", type=int, default=8)
    parser.add_argument("--dtype", default=dtype)
    parser.add_argument("--stack", default="auto")
    parser.add_argument("--width", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--name", required=True, help="name of the result; an existing one of the same settings is continued"
    )


def comparison(args: Namespace) -> Comparison:
    """Load the model of a command line, and an earlier result of the same settings, perhaps of another machine."""
    torch.set_num_threads(args.threads)
    shipped = args.model == "tiny"
    folder = resolve_model("builtin:tiny") if shipped else args.model
    profile = load_profile("tiny") if shipped else profile_for_model(folder, 16, 1, 2)
    engine = Engine.from_profile(profile, dtype=args.dtype, stack=args.stack, width=args.width, mode="autoregressive")
    target = engine.hierarchy.stack_of(-1)
    lengths = args.draft_length, args.validation_period
    small = None if str(folder).endswith(".gguf") else first_layers(folder, args.dtype, 2)
    settings = {
        "model": "tiny" if shipped else Path(folder).name,
        "max_new_tokens": args.max_new_tokens,
        "lengths": list(lengths),
        "dtype": engine.environment["dtype"],
        "stack": target.kind,
        # Left out for exits, so that results from before there was a choice are continued.
        **({"levels": args.levels} if args.levels != "exits" else {}),
    }
    path = RESULTS / f"{args.name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if any(result.get(key) != value for key, value in settings.items()):
        result = {**settings, "environments": [], "prompts": 0, "results": {}}
    own = environment(args.threads) | {"width": engine.environment["width"]}
    if own not in result.setdefault("environments", []):
        result["environments"].append(own)
    return Comparison(engine, list(LEVELS[args.levels](target, small, lengths)), args.name, result)


def first_layers(model: str, dtype: str, count: int) -> Level:
    """Return a level that reads a model's first layers as a model of its own."""
    stack = load_stack(Checkpoint(model), Placement(dtype=dtype, stack="transformers"))
    assert isinstance(stack, TransformersStack)
    stack.model.model.layers = stack.model.model.layers[:count]
    stack.model.config.num_hidden_layers = count
    return Level("small model", TransformersStack(stack.model, stack.name), count)


def kinds_of_exits(target: LayerStack, small: Level | None, lengths: tuple[int, int]) -> Iterator[Kind]:
    """Yield hierarchies of exits under both policies, with n-grams, and with a small model where there is one."""
    depth = target.num_layers
    ngrams, last = Level.of_ngrams(4, 8), Level("target", target, depth)
    exits = [Level(f"exit {at}", target, at) for at in sorted({max(1, depth // 16), depth // 4, depth // 2})]
    static = partial(with_lengths, lengths)

    yield Kind("exit > target", Hierarchy([exits[0], last]), static)
    yield Kind("exit > exit > target", Hierarchy([*exits[:2], last]), static)
    yield Kind("exits > target", Hierarchy([*exits, last]), static)
    if small is not None:
        yield Kind("model > exit > target", Hierarchy([small, exits[1], last]), static)
    yield Kind("n-grams > target", Hierarchy([ngrams, last]), static)
    yield Kind("n-grams > exit > exit > target", Hierarchy([ngrams, *exits[:2], last]), static)
    yield Kind("exit > exit > target, adaptive", Hierarchy([*exits[:2], last]), adaptive)


def kinds_of_copies(target: LayerStack, small: Level | None, lengths: tuple[int, int]) -> Iterator[Kind]:
    """Yield hierarchies of quantized copies under both policies, with n-grams, and with a small model where there is one."""
    depth = target.num_layers
    ngrams, last = Level.of_ngrams(4, 8), Level("target", target, depth)
    int4, int8 = (Level(weights, target.quantized(weights), depth, weights=weights) for weights in ("int4", "int8"))
    part = Level("int4 exit", int4.stack, depth - max(1, depth // 16), weights="int4")
    static = partial(with_lengths, lengths)

    yield Kind("int4 > target", Hierarchy([int4, last]), static)
    yield Kind("int8 > target", Hierarchy([int8, last]), static)
    yield Kind("int4 exit > int8 > target", Hierarchy([part, int8, last]), static)
    yield Kind("int4 > int8 > target", Hierarchy([int4, int8, last]), static)
    if small is not None:
        yield Kind("model > int8 > target", Hierarchy([small, int8, last]), static)
    yield Kind("n-grams > int8 > target", Hierarchy([ngrams, int8, last]), static)
    yield Kind("n-grams > int4 > target, adaptive", Hierarchy([ngrams, int4, last]), adaptive)


def with_lengths(lengths: tuple[int, int], hierarchy: Hierarchy) -> Policy:
    """Return the policy of fixed draft length and validation period."""
    return StaticPolicy.of(hierarchy, *lengths)


def adaptive(hierarchy: Hierarchy) -> Policy:
    """Return the policy that decides as it goes, at assumed costs."""
    return AdaptivePolicy(performance_model(hierarchy, None))


LEVELS = {"exits": kinds_of_exits, "copies": kinds_of_copies}
"""The kinds of hierarchies that `--levels` chooses from."""

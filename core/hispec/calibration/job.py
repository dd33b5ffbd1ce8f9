"""From a loaded engine to what is to be calibrated."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from hispec.api import Engine
from hispec.bench.runner import describe_machine
from hispec.budget import Budget
from hispec.calibration.search import Space
from hispec.calibration.session import Job
from hispec.calibration.traces import Reader
from hispec.counts import counted
from hispec.errors import ProfileError, UsageError
from hispec.frequencies import frequent_ids
from hispec.levels import open_translators
from hispec.models.digest import digests_of_profile
from hispec.models.stack import LayerStack, ReducedHead
from hispec.settings import SETTINGS

MOST_EXITS = 16
"""Exits that are looked at where nobody says which."""

LEVELS = {"target", "draft", "intermediate"}
"""Keys of a profile that measurements depend on."""

GIVEN = tuple(name for name, setting in SETTINGS.items() if setting.calibration == "given")
"""Settings that measurements depend on, beside those that the weights were loaded with."""

WORDS = (256, 1024, 4096, 16384)
"""Sizes of reduced heads, those of at most half the vocabulary."""


def job_of(
    engine: Engine,
    prompts: Sequence[list[int]],
    budget: Budget,
    *,
    exits: Sequence[int] = (),
    draft_tokens: Sequence[int] = (),
    validate_every: Sequence[int] = (),
    most: int = 256,
    seed: int = 0,
) -> Job:
    """What is to be calibrated.

    Args:
        engine: loaded with the profile, in mode `hispec`.
        prompts: token ids.
        budget: of the command.
        exits: to look at; by default up to `MOST_EXITS`, evenly spaced in the lower three quarters of the depth, and
            those that have translators.
        draft_tokens: N_d to look at.
        validate_every: N_i to look at.
        most: tokens of an answer.
        seed: of all that is drawn.

    Raises:
        UsageError: an exit that is too deep, or too few prompts.
    """
    target = engine.profile.target.model
    stack = engine.stacks[target]
    file = open_translators(engine.profile)
    fitted = () if file is None else file.provenance.exits
    chosen = sorted(set(exits)) or sorted({*default_exits(stack.num_layers), *fitted})
    if chosen[-1] >= stack.num_layers or chosen[0] < 1:
        raise UsageError(
            f"exit {chosen[-1]} was asked for, and {target} has {counted(stack.num_layers, 'layer')}",
            f"give --exit-layers from 1 to {stack.num_layers - 1}",
        )
    if len(prompts) < 6:
        raise UsageError(
            f"{counted(len(prompts), 'prompt')}: too few to calibrate on",
            "give at least 6: more --limit, or another dataset",
        )
    readers = tuple(Reader(stack.name, exit_layer) for exit_layer in chosen)
    drafters = tuple(Reader(other.name, other.num_layers) for model, other in engine.stacks.items() if model != target)
    heads = _heads(engine, [*drafters, *readers])
    space = Space(readers, drafters, words=tuple(sorted({reader.words for reader in heads})))
    if draft_tokens:
        space = replace(space, draft_tokens=tuple(sorted(set(draft_tokens))))
    if validate_every:
        space = replace(space, validate_every=tuple(sorted(set(validate_every))))
    stacks = {stack.name: stack for stack in engine.stacks.values()}
    translators = {
        (stack.name, exit_layer): found.on(stack)
        for exit_layer in chosen
        if file is not None and (found := file.read(exit_layer)) is not None
    }
    return Job(stacks, stack.name, heads, space, list(prompts), engine.eos_ids, most, budget, seed, translators)


def default_exits(depth: int) -> list[int]:
    """Evenly spaced, from the first layer to three quarters of the depth."""
    deepest = max(1, min(depth - 1, round(0.75 * depth)))
    count = min(MOST_EXITS, deepest)
    return sorted({max(1, round((at + 1) * deepest / count)) for at in range(count)})


def _heads(engine: Engine, readers: Sequence[Reader]) -> dict[Reader, ReducedHead]:
    """Reduced heads of all readers, where the profile or the target's folder says which words are frequent."""
    by_model: dict[tuple[str, int], ReducedHead] = {}
    stacks: dict[str, LayerStack] = {stack.name: stack for stack in engine.stacks.values()}
    vocab = engine.hierarchy.stack_of(-1).vocab_size
    for words in (size for size in WORDS if size <= vocab // 2):
        try:
            ids = frequent_ids(engine.profile, words)
        except ProfileError:
            break
        for name, stack in stacks.items():
            own = sorted(id_ for id_ in ids if id_ < min(stack.vocab_size, vocab))
            by_model[name, words] = stack.reduce_head(torch.tensor(own))
    return {
        replace(reader, words=len(head.ids)): head
        for reader in readers
        for (name, _), head in by_model.items()
        if name == reader.model
    }


def fingerprint(engine: Engine, job: Job, dataset: str, processes: int) -> str:
    """Return a digest of everything that measurements depend on: only an equal calibration is resumed."""
    described: dict[str, Any] = {
        "machine": describe_machine(engine, processes),
        "profile": engine.profile.model_dump(mode="json", include=LEVELS),
        "files": digests_of_profile(engine.profile, dummy=engine.settings.load_format == "dummy"),
        "hispec": version("hispec"),
        "space": repr(job.space),
        "dataset": dataset,
        "prompts": job.prompts,
        "ends": sorted(job.eos_ids),
        "most": job.most,
        "seed": job.seed,
        "settings": {name: getattr(engine.settings, name) for name in GIVEN},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

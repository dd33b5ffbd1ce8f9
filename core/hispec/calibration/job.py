"""Defines a calibration: its level specs and search space, from a loaded engine."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import inf
from typing import Any, get_args

import torch

from hispec.api import Engine
from hispec.bench.runner import describe_machine
from hispec.budget import Budget
from hispec.calibration.recording import LevelSpec
from hispec.calibration.run import CalibrationJob
from hispec.calibration.search import Configuration, SearchSpace
from hispec.counts import counted
from hispec.errors import ProfileError, UnavailableError, UsageError
from hispec.frequencies import frequent_ids
from hispec.levels import build_hierarchy, open_translators
from hispec.loading import default_profile
from hispec.memory import chosen_device, estimate
from hispec.models.checkpoint import Checkpoint
from hispec.models.digest import digests_of_profile
from hispec.models.dtypes import GROUP, bits_per_weight
from hispec.models.stack import LayerStack, ReducedHead
from hispec.profile import DraftSection, Profile
from hispec.settings import SETTINGS, Quantization

MAX_EXITS = 16
"""The default exits."""

SHALLOW, MAX_SHALLOW = 4, 4
"""For a copy, the deepest exit as a share of the depth, and the largest number of exits."""

LEVELS = {"target", "draft", "intermediate"}
"""Keys of a profile that measurements depend on."""

GIVEN = tuple(name for name, setting in SETTINGS.items() if setting.calibration == "given")
"""Settings that measurements depend on, besides those of loading."""

HEAD_SIZES = (256, 1024, 4096, 16384)
"""Sizes of reduced heads, those of at most half the vocabulary."""


def job_of(
    engine: Engine,
    prompts: Sequence[list[int]],
    budget: Budget,
    *,
    exits: Sequence[int] = (),
    draft_tokens: Sequence[int] = (),
    validate_every: Sequence[int] = (),
    max_new_tokens: int = 256,
    seed: int = 0,
) -> CalibrationJob:
    """Return the job of a calibration.

    Args:
        engine: loaded with the profile, in mode `hispec`.
        prompts: token ids.
        budget: the time budget of the command.
        exits: the exits to consider; by default up to `MAX_EXITS`, evenly spaced in the lower three quarters of the
            depth, and those that have translators.
        draft_tokens: the values of N_d to consider.
        validate_every: the values of N_i to consider.
        max_new_tokens: tokens of an answer.
        seed: the seed of all random choices.

    Raises:
        UsageError: an exit that is too deep, or too few prompts.
    """
    target = engine.profile.target.model
    stack = engine.stacks[target]
    file = open_translators(engine.profile)
    fitted = () if file is None else file.provenance.exits
    chosen = sorted(set(exits)) or sorted({*exits_to_consider(stack.num_layers), *fitted})
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
    drafters = tuple(
        LevelSpec(other.name, other.num_layers) for model, other in engine.stacks.items() if model != target
    )
    copies = copies_here(engine)
    space = replace(space_of(stack.name, stack.num_layers, chosen, list(copies)), drafters=drafters)
    stacks: dict[str, LayerStack] = {stack.name: stack for stack in (*engine.stacks.values(), *copies.values())}
    heads = _heads(engine, stacks, [*drafters, *space.exits, *space.copies])
    space = replace(space, head_sizes=tuple(sorted({spec.head_size for spec in heads})))
    if draft_tokens:
        space = replace(space, draft_tokens=tuple(sorted(set(draft_tokens))))
    if validate_every:
        space = replace(space, validate_every=tuple(sorted(set(validate_every))))
    translators = {
        (stack.name, exit_layer): found.on(stack)
        for exit_layer in chosen
        if file is not None and (found := file.read(exit_layer)) is not None
    }
    return CalibrationJob(
        stacks,
        stack.name,
        heads,
        space,
        list(prompts),
        engine.eos_ids,
        max_new_tokens,
        budget,
        seed,
        translators,
        defaults_of(engine, copies),
    )


def defaults_of(engine: Engine, formats: Collection[str]) -> Configuration:
    """Return what the target of an engine decodes with where a user names the model, and no profile.

    Args:
        engine: the engine, whose profile does not matter.
        formats: the formats of the quantized copies that the target can have.
    """
    target, own = engine.profile.target, engine.stacks[engine.profile.target.model]
    checkpoint = Checkpoint(target.model, target.revision, engine.settings.load_format == "dummy")
    own_format = engine.settings.quantization == "none" and "int4" in formats
    copies: list[Quantization] = [each for each in get_args(Quantization) if each in formats] if own_format else []
    profile = default_profile(own, engine.tokenizer, checkpoint, copies)
    return Configuration.of_defaults(build_hierarchy(profile, "hispec", {target.model: own}))


def space_of(target: str, depth: int, exits: Sequence[int], formats: Sequence[str]) -> SearchSpace:
    """Return the level specs of a target: its exits, and the shallow exits and the whole depth of its copies.

    Args:
        target: its name.
        depth: its layers.
        exits: the exits of the full weights, ascending.
        formats: the weight formats of the copies.
    """
    shallow = [exit_layer for exit_layer in exits if SHALLOW * exit_layer <= depth][:MAX_SHALLOW] or exits[:1]
    return SearchSpace(
        tuple(LevelSpec(target, exit_layer) for exit_layer in exits),
        copies=tuple(LevelSpec(target, exit_layer, weights=each) for each in formats for exit_layer in shallow),
        whole=tuple(LevelSpec(target, depth, weights=each) for each in formats),
    )


def copies_here(engine: Engine) -> dict[str, LayerStack]:
    """Return the quantized copies of the target by format: those that its stack and device can have, and that fit."""
    target, place = engine.hierarchy.stack_of(-1), chosen_device(engine.settings)
    own = engine.settings.quantization
    found: dict[str, LayerStack] = {}
    for weights in formats_below(own):
        levels = Profile(name="copies", target=engine.profile.target, draft=DraftSection(weights=weights))
        need = estimate(levels, replace(engine.settings, mode="hispec"))
        if need is not None and place is not None and sum(model.copies for model in need.models) > place.free:
            continue
        try:
            found[weights] = target.quantized(weights)
        except UnavailableError:
            continue
    return found


def formats_below(quantization: str) -> list[Quantization]:
    """Return the formats of copies that take less memory than weights which are quantized so, or not (`none`)."""
    formats: tuple[Quantization, ...] = get_args(Quantization)
    bits = {each: bits_per_weight(each, GROUP, "cuda") for each in formats}
    own = bits_per_weight(quantization, GROUP, "cuda") if quantization != "none" else inf
    return sorted((each for each in formats if bits[each] < own), key=lambda each: bits[each])


def exits_to_consider(depth: int) -> list[int]:
    """Return evenly spaced, from the first layer to three quarters of the depth."""
    deepest = max(1, min(depth - 1, round(0.75 * depth)))
    count = min(MAX_EXITS, deepest)
    return sorted({max(1, round((at + 1) * deepest / count)) for at in range(count)})


def _heads(
    engine: Engine, stacks: Mapping[str, LayerStack], specs: Sequence[LevelSpec]
) -> dict[LevelSpec, ReducedHead]:
    """Return reduced heads of all level specs, if the profile or the target's folder has token frequencies."""
    by_model: dict[tuple[str, int], ReducedHead] = {}
    vocab = engine.hierarchy.stack_of(-1).vocab_size
    for head_size in (size for size in HEAD_SIZES if size <= vocab // 2):
        try:
            ids = frequent_ids(engine.profile, head_size)
        except ProfileError:
            break
        for name, stack in stacks.items():
            own = sorted(id_ for id_ in ids if id_ < min(stack.vocab_size, vocab))
            by_model[name, head_size] = stack.reduce_head(torch.tensor(own))
    return {
        replace(spec, head_size=len(head.ids)): head
        for spec in specs
        for (name, _), head in by_model.items()
        if name == spec.stack
    }


def fingerprint(engine: Engine, job: CalibrationJob, dataset: str, processes: int) -> str:
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
        "most": job.max_new_tokens,
        "seed": job.seed,
        "settings": {name: getattr(engine.settings, name) for name in GIVEN},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

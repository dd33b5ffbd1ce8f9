"""Loads the models of a profile in three steps: plan, fetch, build.

Planning refuses everything that can be refused before weights are downloaded or read. Random weights are another way to
build: `hispec.models.loading` has both.
"""

import platform
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from hispec.early_exit import find_exit
from hispec.errors import UnavailableError
from hispec.generation import GenerationOptions, read_generation_options
from hispec.grammar_mask import Grammars
from hispec.levels import check_copies, check_drafter, deepest_exit, open_translators
from hispec.memory import HUB_TIMEOUT, PROMPT_TOKENS, check_profile, copies_fit, estimate
from hispec.models.agreement import set_agreement
from hispec.models.checkpoint import Checkpoint, checkpoints_of
from hispec.models.download import fetch_weights
from hispec.models.graphs import GraphedStack, with_graphs
from hispec.models.kernels import fastest_copy
from hispec.models.loading import draw_stack, load_stack
from hispec.models.placement import Placement
from hispec.models.stack import LayerStack
from hispec.models.staged_stack import StagedStack
from hispec.models.tokenizer import load_tokenizer
from hispec.models.translator import digest_of_model
from hispec.policies.performance_model import PerformanceModel
from hispec.precedence import complete_settings, read_agreement
from hispec.profile import Profile, check_depths, exits_of_target, profile_for_model, without_copies
from hispec.progress import Watch, unwatched
from hispec.ranks import Ranks, check_ranks
from hispec.settings import Quantization, Settings
from hispec.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Check = Callable[["PreTrainedTokenizerBase", int], None]
"""Given the target's tokenizer and the positions of its context; what it raises ends the loading."""


@dataclass(frozen=True)
class LoadedModels:
    """The models of a profile, and what decoding must know of them.

    Attributes:
        profile: the profile, with the levels that its models can have.
        settings: the settings that the models were loaded with, completed by the target's generation config.
        stacks: the stacks by the names that the profile has for the models, the target's among them.
        tokenizer: the target's.
        eos_ids: ids that end an answer.
        environment: versions, device and dtypes, for the record.
        generation: the options of the checkpoint's generation config that are not settings.
        ranks: this process and its peers, if they share the target's matrices.
        performance_model: the performance models of hierarchies on these models, by all that they depend on.
    """

    profile: Profile
    settings: Settings
    stacks: Mapping[str, LayerStack]
    tokenizer: "PreTrainedTokenizerBase"
    eos_ids: frozenset[int]
    environment: dict[str, Any]
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    ranks: Ranks | None = None
    performance_model: dict[Hashable, PerformanceModel] = field(default_factory=dict)

    @cached_property
    def grammars(self) -> Grammars:
        """Return the compiler of grammars for the target's vocabulary."""
        target = self.stacks[self.profile.target.model]
        return Grammars(self.tokenizer, target.vocab_size, self.eos_ids, target.device)


@dataclass(frozen=True)
class Plan:
    """A plan of what to load and how, after all checks that need no weights.

    Attributes:
        profile: the profile whose models will be loaded.
        settings: the settings, completed by the target's generation config.
        placements: the placement of each model.
        checkpoints: the checkpoints by the names that the profile has for the models, the target's first.
        tokenizer: the target's.
        generation: the options of the checkpoint's generation config that are not settings.
    """

    profile: Profile
    settings: Settings
    placements: Mapping[str, Placement]
    checkpoints: Mapping[str, Checkpoint]
    tokenizer: "PreTrainedTokenizerBase"
    generation: GenerationOptions

    @property
    def target(self) -> Checkpoint:
        """Return the target's checkpoint."""
        return self.checkpoints[self.profile.target.model]


def load(
    profile: Profile,
    settings: Settings,
    origins: Mapping[str, str],
    *,
    prompt_tokens: int | None = None,
    force: bool = False,
    watch: Watch = unwatched,
    check: Check = lambda *_: None,
) -> LoadedModels:
    """Load the models of a profile.

    Args:
        profile: the profile whose models are loaded.
        settings: the settings; the target's generation config need not have been applied to them.
        origins: the source of each setting, as `resolve_settings` returns it.
        prompt_tokens: the expected length of the prompt in tokens, for the estimate of the KV cache in `hispec.memory`.
        force: load what does not seem to fit the device's memory.
        watch: a callback that receives the progress of downloading and of reading the weights.
        check: called before weights are downloaded or read.

    Raises:
        UsageError: a setting, profile or architecture that cannot be decoded.
        UnavailableError: weights, device, memory or network are missing.
    """
    plan = make_plan(profile, settings, origins, prompt_tokens, force=force)
    check(plan.tokenizer, plan.target.config.context)
    if plan.target.dummy:
        return with_default_levels(draw(plan), plan)
    fetch(plan, watch)
    return with_default_levels(build(plan, watch), plan)


def make_plan(
    profile: Profile,
    settings: Settings,
    origins: Mapping[str, str],
    prompt_tokens: int | None = None,
    *,
    force: bool = False,
) -> Plan:
    """Return the plan of what is loaded, and how; arguments and errors are those of `load`."""
    profile = settled(profile, settings, prompt_tokens, force=force)
    checkpoints = checkpoints_of(profile, settings.mode, dummy=settings.load_format == "dummy")
    own = profile.target.model
    target = checkpoints[own]
    check_drafter(profile, settings.mode, settings.lookup)
    placements = _place(profile, settings, checkpoints, prompt_tokens)
    translators = open_translators(profile)
    for name, checkpoint in checkpoints.items():
        check_depths(profile, name, checkpoint.config.num_layers)
        reason = placements[name].check(checkpoint.config, name)
        if name == own:
            check_copies(profile, settings.mode, reason)
    if translators is not None:
        translators.check_shape(own, target.config.hidden_size, target.config.num_layers)
    generation_config = target.generation_config()
    settings = complete_settings(settings, origins, generation_config)
    if settings.tensor_parallel:
        check_ranks(own, target.config)
    elif not force:
        check_profile(profile, settings, prompt_tokens)
    tokenizer = load_tokenizer(target)
    for name, checkpoint in checkpoints.items():
        if name != own and not checkpoint.dummy:
            check_vocabulary(tokenizer, load_tokenizer(checkpoint), own, name)
    generation = read_generation_options(generation_config, target.config.vocab_size, target.config.eos_ids)
    return Plan(profile, settings, placements, checkpoints, tokenizer, generation)


def _place(
    profile: Profile, settings: Settings, checkpoints: Mapping[str, Checkpoint], prompt_tokens: int | None
) -> dict[str, Placement]:
    """Return where each model goes. Spread over devices, the target leaves room on the first one for those that draft;
    of ranks, each holds those whole that they cannot share evenly.

    A small model that crossed devices for every token would be slower than what it drafts for, and an even share of it
    is nothing that the others need.
    """
    asked = Placement.of(settings)
    if asked.shard is not None:
        shared = {
            name: asked.shard.divides(one.config) or name == profile.target.model for name, one in checkpoints.items()
        }
        return {name: asked if divided else replace(asked, shard=None) for name, divided in shared.items()}
    if not asked.spread:
        return dict.fromkeys(checkpoints, asked)
    need = estimate(profile, settings, prompt_tokens=prompt_tokens or PROMPT_TOKENS, timeout=HUB_TIMEOUT)
    needs = {} if need is None else {each.model: each for each in need.models}
    found: dict[str, Placement] = {}
    taken = 0
    for name in reversed(list(checkpoints)):  # the target last
        config, each = checkpoints[name].config, needs.get(name)
        held = None if each is None else each.weights + each.copies + each.kv_cache + each.workspace
        original = checkpoints[name].load_original() if config.original is None else config.original
        shallow = deepest_exit(profile, name) if name == profile.target.model else config.num_layers
        found[name] = replace(asked, shallow=shallow).settled(config, original, name, held, taken)
        if held is not None and not found[name].spread and not found[name].stages:
            taken += held
    return found


def settled(profile: Profile, settings: Settings, prompt_tokens: int | None = None, *, force: bool = False) -> Profile:
    """Return a profile without the quantized copies that are assumed for it, where they cannot be made or held.

    Args:
        profile: a profile; if its levels were chosen by a user, it is unchanged.
        settings, prompt_tokens, force: the arguments of `load`.

    Raises:
        UsageError: a model that cannot be run as the settings ask.
    """
    if not profile.assumed:
        return profile
    own = profile.target.model
    config = checkpoints_of(profile, settings.mode, dummy=settings.load_format == "dummy")[own].config
    placement = Placement.of(settings)
    # Ranks need not agree on whether the memory suffices.
    if placement.check(config, own) is not None or settings.quantization != "none" or placement.shard is not None:
        return without_copies(profile)
    try:
        if not force:
            check_profile(profile, settings, prompt_tokens)
    except UnavailableError:
        return without_copies(profile)
    return profile


def with_default_levels(models: LoadedModels, plan: Plan) -> LoadedModels:
    """Return models with the default levels of their target, where its levels are assumed: see `default_profile`."""
    profile, target = models.profile, plan.target
    # Ranks would have to find the same.
    if not profile.assumed or plan.settings.mode == "autoregressive" or models.ranks is not None:
        return models
    draft = None if profile.draft is None else profile.draft.exit_layer
    stack = models.stacks[target.name]
    formats: tuple[Quantization, ...] = ()
    if profile.single_layer is not None:
        larger = profile_for_model(target.name, stack.num_layers, draft, None, "int8")
        formats = ("int4", "int8") if copies_fit(larger, plan.settings) else ("int4",)
    levels = default_profile(stack, models.tokenizer, target, formats, draft)
    if exits_of_target(levels) == exits_of_target(profile) and levels.single_layer == profile.single_layer:
        return models
    drafting = {name: getattr(levels, name) for name in ("draft", "intermediate", "single_layer", "decoding")}
    return replace(models, profile=profile.model_copy(update=drafting))


def default_profile(
    stack: LayerStack,
    tokenizer: "PreTrainedTokenizerBase",
    checkpoint: Checkpoint,
    formats: Collection[Quantization],
    draft: int | None = None,
) -> Profile:
    """Return the profile that a model decodes with where a user names the model, and no profile.

    Args:
        stack: the model, loaded; what its KV cache holds stays.
        tokenizer: its tokenizer.
        checkpoint: the checkpoint that the weights come from.
        formats: the formats that a quantized copy of it may have; none if levels may not read copies.
        draft: layers that draft; by default those of a usable early exit, if it turns out to have one.
    """
    if draft is None:
        named = profile_for_model(checkpoint.name, stack.num_layers, None, None)
        draft = None if exits_of_target(named) else find_exit(stack, tokenizer, checkpoint)
    weights = fastest_copy(checkpoint.config, stack.device, formats)
    profile = profile_for_model(checkpoint.name, stack.num_layers, draft, None, weights)
    return profile if formats else without_copies(profile)


def fetch(plan: Plan, watch: Watch = unwatched) -> None:
    """Download the weights that are not on this machine; arguments and errors as `load`."""
    fetch_weights(plan.checkpoints.values(), watch)
    if (translators := open_translators(plan.profile)) is not None:
        translators.check_model(plan.target.name, digest_of_model(plan.target, plan.target.config.num_layers))


def build(plan: Plan, watch: Watch = unwatched) -> LoadedModels:
    """Read the weights; arguments and errors as `load`."""
    shared = plan.settings.tensor_parallel
    ranks = Ranks(plan.placements[plan.target.name].device) if shared else None
    stacks = {
        name: with_graphs(load_stack(checkpoint, plan.placements[name], watch), plan.settings.graphs)
        for name, checkpoint in plan.checkpoints.items()
    }
    environment = _environment(stacks, plan)
    if ranks is not None:
        environment["tensor_parallel"] = ranks.count
    if plan.settings.quantization != "none":
        environment["quantization"] = plan.settings.quantization
    eos_ids = plan.generation.eos_ids or plan.target.config.eos_ids
    return LoadedModels(
        plan.profile, plan.settings, stacks, plan.tokenizer, eos_ids, environment, plan.generation, ranks
    )


def draw(plan: Plan) -> LoadedModels:
    """Draw the weights at random, which know no end; errors as `load`."""
    drawn = {name: draw_stack(checkpoint, plan.placements[name]) for name, checkpoint in plan.checkpoints.items()}
    stacks = {name: with_graphs(stack, plan.settings.graphs) for name, (stack, _) in drawn.items()}
    environment = _environment(stacks, plan) | {"weights": "dummy"}
    if plan.settings.quantization != "none":
        environment["quantization"] = plan.settings.quantization
    if (asked := plan.settings.dummy_agreement) is not None:
        reached = set_agreement(*drawn[plan.target.name], read_agreement(asked, exits_of_target(plan.profile)))
        environment["agreement"] = {"asked": list(asked), "measured": reached.like(asked)}
    return LoadedModels(plan.profile, plan.settings, stacks, plan.tokenizer, frozenset(), environment)


def _environment(stacks: Mapping[str, LayerStack], plan: Plan) -> dict[str, Any]:
    """Return the device, dtypes and versions that the target runs with."""
    stack = stacks[plan.target.name]
    cuda = stack.device.type == "cuda"
    spread = getattr(getattr(stack, "model", None), "hf_device_map", {})
    where = [str(device) for module, device in spread.items() if module.rpartition(".")[2].isdigit()]
    if isinstance(stack, StagedStack):
        where = [str(device) for device in stack.devices]
    layers = {"layers": {device: where.count(device) for device in dict.fromkeys(where)}} if where else {}
    return layers | {
        "device": torch.cuda.get_device_name(stack.device) if cuda else str(stack.device),
        "dtype": str(stack.dtype).removeprefix("torch."),
        "stack": stack.kind,
        "graphs": isinstance(stack.stages[0] if isinstance(stack, StagedStack) else stack, GraphedStack),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "revision": plan.target.commit_here or plan.target.revision,
        **(plan.target.held(plan.settings.quantization) or {}),
    }

"""Loads a checkpoint as a layer stack.

`load_stack` reads its weights, `draw_stack` draws them at random. What is new about a weight format belongs to one of these
places: the files of another format to `hispec.models.tensors`, weights that are held otherwise to
`hispec.models.fused_weights`, and which of the stacks runs a model to `load_stack`.
"""

import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hispec.errors import UnavailableError, UsageError
from hispec.machine import give_back_memory
from hispec.models.checkpoint import Checkpoint
from hispec.models.config import ModelConfig
from hispec.models.dummy import build_dummy, build_quantized_dummy, modules_on
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import FusedWeights
from hispec.models.placement import Placement
from hispec.models.read_progress import ReadProgress
from hispec.models.stack import LayerStack
from hispec.models.staged_stack import StagedStack
from hispec.models.tensors import Tensors
from hispec.models.transformers_stack import TransformersStack
from hispec.progress import Doing, Watch, unwatched

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_stack(checkpoint: Checkpoint, placement: Placement, watch: Watch = unwatched) -> LayerStack:
    """Load weights, of safetensors or a GGUF file, into a layer stack.

    Args:
        checkpoint: the checkpoint to load.
        placement: dtype, stack and devices.
        watch: called at the start with the number of bytes to read, and again with the progress.

    Raises:
        UnavailableError: weights that are missing, truncated or do not fit the configuration; no memory; no network.
        UsageError: the configuration is invalid, as for `Checkpoint.config`, or the fused stack was requested and
            cannot run it.
    """
    name, config = checkpoint.name, checkpoint.config
    if placement.check(config, name) is not None:
        return _load_transformers_stack(checkpoint, placement, watch)
    with checkpoint.explaining():
        tensors = checkpoint.tensors()
        config = _untied(config, tensors)
        dtype = config.settle_dtype(placement.dtype_for(config), tensors.dtype)
        shard = placement.shard
        if shard is not None:
            config = shard.config(config)
        stages = [
            FusedWeights(config, getattr(torch, dtype), device, placement.fused_quantization, span, shard)
            for device, span in _spans(placement, config.num_layers)
        ]
        names = frozenset().union(*(stage.names for stage in stages))
        own_only = placement.stack == "fused" or placement.fused_quantization is not None
        if not own_only and not names <= tensors.stored.keys():
            del stages  # so that there are never two copies
            return _load_transformers_stack(checkpoint, placement, watch)  # may know the names
        reading = ReadProgress("reading", name, tensors.files, watch)
        absent = [missing for stage in stages for missing in stage.fill(tensors, reading.add)]
    _check_complete(absent, checkpoint)
    _tell_unused(tensors.stored.keys() - names - {HEAD}, name)
    if placement.fused_quantization is not None:
        give_back_memory()
    stacks = [FusedStack(config, stage, name) for stage in stages]
    return stacks[0] if len(stacks) == 1 else StagedStack(stacks)


def _spans(placement: Placement, layers: int) -> Iterator[tuple[torch.device, range]]:
    """Yield the devices of the fused stack, and which layers each of them has."""
    at = 0
    for device, count in placement.stages or ((placement.device, layers),):
        yield device, range(at, at + count)
        at += count


def draw_stack(checkpoint: Checkpoint, placement: Placement) -> tuple[LayerStack, dict[str, Tensor]]:
    """Make a stack with random weights; arguments and errors as `load_stack`.

    Returns:
        The stack, and its weights by their names in a checkpoint, as views; none of quantized ones.
    """
    name, config = checkpoint.name, checkpoint.config
    if config.quantized:
        raise UsageError(f"{name} has quantized weights, which cannot be drawn", "choose a model that is not quantized")
    original = None if placement.check(config, name) is None else checkpoint.load_original
    dtype = config.settle_dtype(placement.dtype_for(config), None)
    with checkpoint.explaining():
        if placement.fused_quantization is not None:
            quantized = placement.fused_quantization
            return build_quantized_dummy(config, getattr(torch, dtype), placement.device, name, quantized), {}
        return build_dummy(config, getattr(torch, dtype), placement.device, name, original)


def draw_modules(checkpoint: Checkpoint, stack: FusedStack) -> Any:
    """Return the model of `transformers` on a stack's random weights, which are not held twice; see `modules_on`."""
    return modules_on(stack, checkpoint.load_original())


def check_weights(checkpoint: Checkpoint) -> None:
    """Refuse weights that are here and cannot be loaded, by the headers of their files; those of a hub may be yet to come.

    Raises:
        UnavailableError: weights that are missing, damaged or do not fit the configuration.
        UsageError: the configuration is invalid, as for `Checkpoint.config`.
    """
    config = checkpoint.config
    with checkpoint.explaining():
        if not checkpoint.is_local and not all(map(checkpoint.find, checkpoint.shards())):
            return
        tensors = checkpoint.tensors()
        absent: list[str] = []
        if config.why_not_fused is None:
            weights = FusedWeights(config, torch.float32, torch.device("meta"))
            kinds = set(map(_kind, tensors.stored))  # a kind that is nowhere has a name that `transformers` may know
            absent = [name for name in weights.misfits(tensors) if _kind(name) in kinds]
    _check_complete(absent, checkpoint)


def _untied(config: ModelConfig, tensors: Tensors) -> ModelConfig:
    """Return the configuration, not tied where the checkpoint holds a head that is not its embedding.

    `transformers` uses that head, even if the configuration ties it.
    """
    if config.tied and {HEAD, EMBEDDING} <= tensors.stored.keys() and not tensors.are_equal(HEAD, EMBEDDING):
        return replace(config, tied=False)
    return config


def _load_transformers_stack(checkpoint: Checkpoint, placement: Placement, watch: Watch) -> TransformersStack:
    """Load a model as `transformers` does; arguments and errors as `load_stack`."""
    name, config = checkpoint.name, checkpoint.config
    original = checkpoint.load_original() if config.original is None else config.original
    from transformers import AutoModelForCausalLM, GenerationConfig

    asked = placement.dtype_for(config)
    with checkpoint.explaining():
        tensors = checkpoint.tensors()  # raises errors that the library does not always report
        options = placement.options(original, name, getattr(torch, config.settle_dtype(asked, tensors.dtype)))
        doing: Doing = "reading" if placement.quantization == "none" else "quantizing"
        with ReadProgress(doing, name, tensors.files, watch).by_transformers():
            loaded, report = AutoModelForCausalLM.from_pretrained(
                **_source_of(checkpoint),
                config=original,
                dtype=asked if asked == "auto" else getattr(torch, asked),
                attn_implementation="sdpa",
                trust_remote_code=False,
                output_loading_info=True,
                generation_config=GenerationConfig(),  # the checkpoint's own is read, and its options applied, elsewhere
                **options,
            )
        if not options:
            loaded = loaded.to(placement.device)
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    _check_complete(lacking, checkpoint)
    _tell_unused(report["unexpected_keys"], name)
    return TransformersStack(loaded, name)


def _source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say where weights are: in safetensors, or in a GGUF file."""
    if checkpoint.gguf_file is None:
        return {
            "pretrained_model_name_or_path": checkpoint.model,
            "revision": checkpoint.commit,
            "use_safetensors": True,
        }
    import transformers

    plain = getattr(transformers, "GgufConfig", None)  # releases without it know no other way
    return checkpoint.gguf_arguments() | ({} if plain is None else {"quantization_config": plain(dequantize=True)})


def _tell_unused(names: Collection[str], model: str) -> None:
    """Warn of tensors of a checkpoint that no part of its model uses, like `transformers`."""
    unused = sorted(name for name in names if not name.endswith(".rotary_emb.inv_freq"))  # which is computed
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        warnings.warn(f"{model} has no use for {unused[0]}{more} of its checkpoint, left out", stacklevel=2)


def _kind(name: str) -> str:
    """Return the name of a tensor without the number of its layer."""
    return re.sub(r"\.\d+\.", ".", name)


def _check_complete(absent: list[str], checkpoint: Checkpoint) -> None:
    """Refuse weights of which something is missing or misshapen."""
    if absent:
        raise UnavailableError(
            f"the weights of {checkpoint.model} are incomplete: {absent[0]} is missing or misshapen "
            f"({len(absent)} in all)",
            "download or save the model again",
        )

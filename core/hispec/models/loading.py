"""From a model's name to a loaded layer stack, with every failure named."""

import json
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor

from hispec.errors import UnavailableError, UsageError
from hispec.models.checkpoint import WEIGHTS, Checkpoint, download, first_dtype, holds_equal
from hispec.models.config import FAMILIES, ModelConfig, check_rotary, describe_foreign, parse_config, rope_type_of
from hispec.models.dummy import build_dummy, dummy_tokenizer, modules_on
from hispec.models.explain import explain, explain_tokenizer
from hispec.models.fused_stack import FusedStack, why_not_fused
from hispec.models.fused_weights import FusedWeights
from hispec.models.metadata import check_folder, shipped_config
from hispec.models.parts import check_architecture, not_in_spans
from hispec.models.placement import Placement
from hispec.models.reading import Reading
from hispec.models.rotary import check_frequencies
from hispec.models.shape import fastest_dtype
from hispec.models.stack import LayerStack
from hispec.models.transformers_stack import TransformersStack
from hispec.models.values import CURE as VALUE_CURE
from hispec.models.values import check_values
from hispec.progress import Doing, Watch, unwatched

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The library narrates its retries; what matters of it is in the error that ends them.
hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]

ALONE = Placement()
"""On one device, as the checkpoint has it."""
ADAPTER = "adapter_config.json"
"""Where peft is installed, the classes of `transformers` load what it describes on top of the weights."""
HEAD = "lm_head.weight"
GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one; anything else is what torch calls a device.

    Raises:
        UsageError: for a name that torch does not know.
        UnavailableError: for a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("the meta device computes nothing")
    except RuntimeError:
        raise UsageError(f"{name!r} is not a device", "use auto, cpu, cuda or cuda:N") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UnavailableError(f"this machine has no usable device {name!r}", "use --device auto or cpu") from None
    return device


def load_config(model: str, revision: str | None, *, dummy: bool = False) -> ModelConfig:
    """Read a model's configuration and refuse what cannot be decoded hierarchically.

    Args:
        model: a local folder or a hub id.
        revision: of a hub id.
        dummy: take the configuration that ships for the model, where one does.

    Raises:
        UsageError: no such folder, or an unsupported architecture.
        UnavailableError: the hub cannot be reached or has no such model.
    """
    shipped = shipped_config(model) if dummy else None
    if shipped is not None:
        values = json.loads(shipped.read_text(encoding="utf-8"))
        try:
            return parse_config(values)
        except KeyError:
            config = _load_original_config(str(shipped), None)
            return parse_config(config.to_dict(), config)
    check_folder(model)
    checkpoint = Checkpoint(model, revision)
    try:
        checkpoint.find("config.json")
    except Exception as error:  # told at once: `transformers` would try, and wait, all over again
        raise explain(error, model, revision) from error
    if checkpoint.is_local and (Path(model) / ADAPTER).is_file():
        raise UsageError(
            f"{model} has an adapter ({ADAPTER}) beside its weights, and hispec applies none",
            f"merge it into the weights by merge_and_unload of peft, or move {ADAPTER} out of the folder",
        )
    values = _read_config(checkpoint)
    check_values(values, model)
    _check_names(values, model)
    try:
        return parse_config(values)
    except KeyError:  # something is left to defaults, or not known here
        config = _load_original_config(model, revision)
    check_rotary(rope_type_of(config), model)
    if config.model_type in FAMILIES:
        parsed = parse_config(config.to_dict(), config)
        check_frequencies(parsed, model)
        return parsed
    try:
        check_architecture(config, model)
        return describe_foreign(config, model)
    except AttributeError as error:  # sizes under names of its own, or none
        raise not_in_spans(config.model_type, model, f"a configuration of its own: {error}") from error
    except Exception as error:
        raise explain(error, model, revision) from error


def _read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `config.json` says; a file that is no JSON object is an `UnavailableError`."""
    try:
        return checkpoint.read_json("config.json")
    except ValueError as error:
        raise UnavailableError(
            f"config.json of {checkpoint.model} is no JSON object: {error}", "download or save the model again"
        ) from error


def _check_names(values: Mapping[str, Any], name: str) -> None:
    """Refuse a dtype or an activation that does not exist.

    Raises:
        UsageError: naming the key.
    """
    for key in ("dtype", "torch_dtype"):
        if (dtype := values.get(key)) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise UsageError(f"config.json of {name}: {key} {dtype!r} is no dtype", VALUE_CURE)
    if values.get("model_type") in FAMILIES and (activation := values.get("hidden_act", "silu")) != "silu":
        from transformers.activations import ACT2FN

        if activation not in ACT2FN:
            raise UsageError(f"config.json of {name}: hidden_act {activation!r} is no activation", VALUE_CURE)


def load_tokenizer(model: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer that belongs to a model; errors as `load_config`."""
    _quiet_transformers()
    try:
        # A class that takes everything from tokenizer.json needs none of what `AutoTokenizer` would import first.
        checkpoint = Checkpoint(model, revision)
        generic = checkpoint.read_json("tokenizer_config.json").get("tokenizer_class")
        if generic in GENERIC_TOKENIZERS:
            from transformers import PreTrainedTokenizerFast as loader  # noqa: N813
        else:
            from transformers import AutoTokenizer as loader  # noqa: N813
        # From a folder, because the library asks a hub for much that is not needed, and again and again where it is
        # out of reach.
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(
            checkpoint.tokenizer_folder(), trust_remote_code=False
        )
    except Exception as error:
        raise explain_tokenizer(error, model, revision) from error
    if not tokenizer.is_fast:
        raise UsageError(
            f"the tokenizer of {model} is a {type(tokenizer).__name__}, which has no tokenizer.json and cannot be streamed",
            "choose a model with a tokenizer.json",
        )
    return tokenizer


def load_dummy_tokenizer(model: str, vocab_size: int) -> "PreTrainedTokenizerBase":
    """The tokenizer for a model of random weights: its own where it lies in the model's folder, else bytes."""
    if (Path(model) / "tokenizer.json").is_file():
        return load_tokenizer(model, None)
    return dummy_tokenizer(vocab_size)


def load_dummy_stack(
    model: str, revision: str | None, dtype: str, device: torch.device, name: str, stack: str = "auto"
) -> tuple[LayerStack, dict[str, Tensor]]:
    """A stack with random weights; arguments and errors as `load_stack`.

    Returns:
        The stack, and its weights by their names in a checkpoint, as views.
    """
    config = load_config(model, revision, dummy=True)
    if config.quantized:
        raise UsageError(f"{name} has quantized weights, which cannot be drawn", "choose a model that is not quantized")
    reason = check_stack(config, name, stack)
    dtype = _faster(dtype, config, device)
    own = DTYPES[dtype if dtype in DTYPES else config.dtype if config.dtype in DTYPES else "float32"]
    source = str(shipped_config(model) or model)
    original = None
    if stack == "transformers" or reason is not None:

        def original() -> Any:
            return _load_original_config(source, revision)

    try:
        return build_dummy(config, own, device, name, original)
    except Exception as error:
        raise explain(error, model, revision) from error


def load_dummy_modules(model: str, revision: str | None, stack: FusedStack) -> Any:
    """The model of `transformers` on a stack's random weights, which are not drawn or held twice; see `modules_on`."""
    return modules_on(stack, _load_original_config(str(shipped_config(model) or model), revision))


def check_stack(config: ModelConfig, name: str, stack: str, placement: Placement = ALONE) -> str | None:
    """Return why a model does not run on the fused stack, None where it does.

    Raises:
        UsageError: the fused stack is asked for and cannot run it, or quantized weights shall be quantized again.
    """
    if config.quantized and placement.quantization != "none":
        raise UsageError(f"the weights of {name} are quantized already", "leave out --quantization")
    reason = why_not_fused(config) or placement.special
    if stack == "fused" and reason is not None:
        raise UsageError(f"{name} does not run on the fused stack: {reason}", "use --stack auto or transformers")
    return reason


def load_generation_config(model: str, revision: str | None) -> dict[str, Any]:
    """A model's `generation_config.json`, empty where it is broken; errors as `load_config`.

    Where there is none its options are looked for in `config.json`, as `transformers` does.
    """
    try:
        checkpoint, name = Checkpoint(model, revision), "generation_config.json"
        return checkpoint.read_json(name if checkpoint.find(name) is not None else "config.json")
    except ValueError as error:
        warnings.warn(f"generation_config.json is no JSON object and left out: {error}", stacklevel=2)
        return {}
    except Exception as error:
        raise explain(error, model, revision) from error


def fetch_weights(models: Mapping[str, str | None], watch: Watch = unwatched) -> None:
    """Download the weights of models that are not on this machine, all that lacks being known before anything is fetched.

    Args:
        models: local folders or hub ids, and their revisions.
        watch: see `hispec.models.checkpoint.download`.

    Raises:
        UnavailableError: no weights in safetensors, a shard that is not there, no room on the disk, no network.
    """
    missing = []
    for model, revision in models.items():
        try:
            checkpoint = Checkpoint(model, revision)
            missing += [(checkpoint, name, size) for name, size in checkpoint.missing().items()]
        except Exception as error:
            raise explain(error, model, revision) from error
    download(missing, watch)


def check_weights(model: str, revision: str | None) -> None:
    """Refuse weights that are here and cannot be loaded, by the headers of their files; those of a hub may be yet to come.

    Raises:
        UnavailableError: weights that are missing, damaged or do not fit the configuration.
        UsageError: as `load_config`.
    """
    config = load_config(model, revision)
    try:
        checkpoint = Checkpoint(model, revision)
        if not checkpoint.is_local and not all(map(checkpoint.find, checkpoint.shards() or [WEIGHTS])):
            return
        files = checkpoint.weight_files()
        absent: list[str] = []
        if why_not_fused(config) is None:
            weights = FusedWeights(config, torch.float32, torch.device("meta"))
            kinds = set(map(_kind, files))  # a kind that is nowhere has a name that `transformers` may know
            absent = [name for name in weights.misfits(files) if _kind(name) in kinds]
    except Exception as error:
        raise explain(error, model, revision) from error
    _check_complete(absent, model)


def load_stack(
    model: str,
    revision: str | None,
    dtype: str,
    device: torch.device,
    name: str,
    stack: str = "auto",
    placement: Placement = ALONE,
    watch: Watch = unwatched,
) -> LayerStack:
    """Load weights (safetensors only) into a layer stack.

    Args:
        model: a local folder or a hub id.
        revision: of a hub id.
        dtype: a key of `DTYPES`, or `auto` for the checkpoint's own; see `hispec.models.shape.fastest_dtype`.
        device: where the weights go, unless they are spread.
        name: how users know the model.
        stack: `fused`, `transformers`, or `auto` for the fused one where it applies.
        placement: over several devices or processes, or quantized.
        watch: told at the start how many bytes will be read, and again as it goes on.

    Raises:
        UnavailableError: weights that are missing, truncated or do not fit the configuration; no memory; no network.
        UsageError: as `load_config`; a model that the fused stack is asked for and cannot run.
    """
    config = load_config(model, revision)
    dtype = _faster(dtype, config, device, placement)
    reason = check_stack(config, name, stack, placement)
    if stack == "transformers" or reason is not None:
        return _load_transformers_stack(model, revision, dtype, device, name, placement, watch)
    try:
        files = Checkpoint(model, revision).weight_files()
        config = _untied(config, files)
        weights = FusedWeights(config, _choose_dtype(dtype, config, files), device)
        if stack == "auto" and not weights.parts.keys() <= files.keys():  # under names that `transformers` may know
            del weights  # two copies never exist at once
            return _load_transformers_stack(model, revision, dtype, device, name, placement, watch)
        absent = weights.fill(files, Reading("reading", name, files.values(), watch).add)
    except Exception as error:
        raise explain(error, model, revision) from error
    _check_complete(absent, model)
    _tell_unused(files.keys() - weights.names - {HEAD}, name)
    return FusedStack(config, weights, name)


def _untied(config: ModelConfig, files: dict[str, Path]) -> ModelConfig:
    """Return the configuration, not tied where the checkpoint holds a head that is not its embedding.

    `transformers` then uses that head, whatever the configuration says.
    """
    head, embedding = HEAD, "model.embed_tokens.weight"
    if config.tied and {head, embedding} <= files.keys() and not holds_equal(files, head, embedding):
        return replace(config, tied=False)
    return config


def _load_transformers_stack(
    model: str, revision: str | None, dtype: str, device: torch.device, name: str, placement: Placement, watch: Watch
) -> TransformersStack:
    """The stack of a model as `transformers` loads it; arguments and errors as `load_stack`."""
    config = _load_original_config(model, revision)
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        checkpoint = Checkpoint(model, revision)
        files = checkpoint.weight_files()  # names what is wrong with them, which the library does not always
        shape = load_config(model, revision)
        options = placement.options(config, name, _choose_dtype(dtype, shape, files), device)
        doing: Doing = "reading" if placement.quantization == "none" else "quantizing"
        with Reading(doing, name, files.values(), watch).by_transformers():
            loaded, report = AutoModelForCausalLM.from_pretrained(
                model,
                config=config,
                revision=checkpoint.commit,
                dtype=DTYPES.get(dtype, "auto"),
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                generation_config=GenerationConfig(),  # the checkpoint's own is read, and its options applied, elsewhere
                **options,
            )
        if not options:
            loaded = loaded.to(device)
    except Exception as error:
        raise explain(error, model, revision) from error
    _check_complete(sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]), model)
    _tell_unused(report["unexpected_keys"], name)
    return TransformersStack(loaded, name)


def _load_original_config(model: str, revision: str | None) -> Any:
    """The configuration as `transformers` understands it; errors as `load_config`."""
    from transformers import AutoConfig

    _quiet_transformers()
    try:
        commit = Checkpoint(model, revision).commit
        return AutoConfig.from_pretrained(model, revision=commit, trust_remote_code=False)
    except Exception as error:
        raise explain(error, model, revision) from error


def _faster(dtype: str, config: ModelConfig, device: torch.device, placement: Placement = ALONE) -> str:
    """The dtype that is asked for; for `auto`, one that is faster than the checkpoint's own."""
    if dtype != "auto" or config.quantized or placement.special is not None:
        return dtype
    fastest = fastest_dtype(config.dtype, config.hidden_size, device.type)
    return dtype if fastest is None or fastest == config.dtype else fastest


def _choose_dtype(dtype: str, config: ModelConfig, files: dict[str, Path]) -> torch.dtype:
    """The dtype that is asked for; the checkpoint's own is what its configuration says, else that of its tensors."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    if config.dtype in DTYPES:
        return DTYPES[config.dtype]
    return first_dtype(files) or torch.float32


def _tell_unused(names: Collection[str], model: str) -> None:
    """Warn of tensors of a checkpoint that no part of its model uses, as `transformers` does, which has no use for them."""
    unused = sorted(name for name in names if not name.endswith(".rotary_emb.inv_freq"))  # computed anew
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        warnings.warn(f"{model} has no use for {unused[0]}{more} of its checkpoint, left out", stacklevel=2)


def _kind(name: str) -> str:
    """The name of a tensor without the number of its layer."""
    return re.sub(r"\.\d+\.", ".", name)


def _check_complete(absent: list[str], model: str) -> None:
    """Refuse weights of which something is missing or misshapen."""
    if absent:
        raise UnavailableError(
            f"the weights of {model} are incomplete: {absent[0]} is missing or misshapen ({len(absent)} in all)",
            "download or save the model again",
        )


def _quiet_transformers() -> None:
    """What matters of the library's narration is in the error that ends it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

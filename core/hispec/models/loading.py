"""From a model's name to a loaded layer stack, with every failure named."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hispec.errors import HispecError, UnavailableError, UsageError
from hispec.models.transformers_stack import TransformersStack, check_supported

# Both libraries narrate their retries and fallbacks; what matters of it is in the error that ends them.
transformers_logging.set_verbosity_error()
hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]

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


def load_config(model: str, revision: str | None) -> Any:
    """Read a model's configuration and refuse what cannot be decoded hierarchically.

    Args:
        model: a local folder or a hub id.
        revision: of a hub id.

    Raises:
        UsageError: no such folder, or an unsupported architecture.
        UnavailableError: the hub cannot be reached or has no such model.
    """
    if _looks_local(model) and not (Path(model) / "config.json").is_file():
        raise UsageError(
            f"no model at {model}: it has no config.json", "pass a folder saved by save_pretrained, or a hub id"
        )
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _explain(error, model) from error
    check_supported(config, model)
    return config


def load_tokenizer(model: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model; errors as `load_config`."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model, revision=revision, trust_remote_code=False
        )
    except Exception as error:
        raise _explain(error, model) from error
    return tokenizer


def load_stack(model: str, revision: str | None, dtype: str, device: torch.device, name: str) -> TransformersStack:
    """Load weights (safetensors only) into a layer stack.

    Args:
        model: a local folder or a hub id.
        revision: of a hub id.
        dtype: a key of `DTYPES`, or `auto` for the checkpoint's own.
        device: where the weights go.
        name: how users know the model.

    Raises:
        UnavailableError: weights that are missing, truncated or do not fit the configuration; no memory; no network.
        UsageError: as `load_config`.
    """
    config = load_config(model, revision)
    transformers_logging.disable_progress_bar()
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            model,
            config=config,
            revision=revision,
            dtype=DTYPES.get(dtype, "auto"),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        loaded = loaded.to(device)
    except Exception as error:
        raise _explain(error, model) from error
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise UnavailableError(
            f"the weights of {model} are incomplete: {absent[0]} is missing or misshapen ({len(absent)} in all)",
            "download or save the model again",
        )
    return TransformersStack(loaded, name)


def _looks_local(model: str) -> bool:
    return Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") > 1


def _explain(error: Exception, model: str) -> HispecError:
    """Translate what the loading libraries raise; what is unknown is reported in its own first line."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, HispecError):
        return error
    if isinstance(error, SafetensorError):
        return UnavailableError(f"the weights of {model} are damaged: {line}", "download or save the model again")
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return UnavailableError(
            f"not enough memory for {model}", "choose a smaller model, a smaller dtype or another device"
        )
    unknown = isinstance(error, ValueError) and ("model type" in line or "model_type" in line)
    if unknown or isinstance(error, KeyError):
        return UsageError(
            f"{model} has an architecture that is not known here", "choose a Llama, Mistral or Qwen model"
        )
    if _looks_local(model):
        return UnavailableError(
            f"{model} cannot be loaded: {line}", "check that the folder is complete, or save it again"
        )
    if isinstance(error, OSError | HfHubHTTPError | LocalEntryNotFoundError):
        return UnavailableError(
            f"{model} is neither here nor to be had from the hub: {line}",
            "check the name and the network, or pass a local folder",
        )
    return UnavailableError(f"{model} cannot be loaded: {line}", "run again with --debug for the whole story")

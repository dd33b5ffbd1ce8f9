"""Translates errors of the loading libraries into a message and a hint."""

from collections.abc import Mapping
from typing import Any, Protocol

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from hispec.errors import HispecError, UnavailableError, UsageError, is_out_of_memory

NOT_TO_BE_HAD = (*HfHubHTTPError.__bases__, HFValidationError)
"""The errors that are raised when the hub does not answer properly. A network failure raises a class of the HTTP
library below the hub's client, httpx or httpx2 by its version; the client's own error derives from the same base.
"""


class Explained(Protocol):
    """The properties of a checkpoint that the messages depend on, see `hispec.models.checkpoint.Checkpoint`."""

    @property
    def model(self) -> str:
        """Return the name that the loading libraries have for it."""

    @property
    def revision(self) -> str | None:
        """Return the revision of a hub id."""

    @property
    def looks_local(self) -> bool:
        """Return whether its name is that of a folder."""

    @property
    def has_tokenizer(self) -> bool:
        """Return whether the vocabulary of a tokenizer is on this machine."""

    def read_here(self, name: str) -> Mapping[str, Any] | None:
        """Return the object in a file on this machine."""


def explain_tokenizer(error: Exception, checkpoint: Explained) -> HispecError:
    """Translate an error that a model's tokenizer raised; arguments as `explain`."""
    if isinstance(error, NOT_TO_BE_HAD) or is_out_of_memory(error):
        return explain(error, checkpoint)
    if "auto_map" in (checkpoint.read_here("tokenizer_config.json") or {}):
        return _own_code(checkpoint.model)
    if not checkpoint.has_tokenizer:
        return UnavailableError(
            f"{checkpoint.model} has no tokenizer: neither tokenizer.json nor another vocabulary",
            "add the tokenizer of the model that it was made from: save_pretrained of transformers writes one",
        )
    return UnavailableError(
        f"the tokenizer of {checkpoint.model} cannot be loaded: {_first_line(error)}",
        "check that its files are complete, or download or save the model again",
    )


def explain(error: Exception, checkpoint: Explained) -> HispecError:
    """Translate an error; of an unknown error, the first line is reported.

    Args:
        error: an error of a library.
        checkpoint: the checkpoint that was being loaded.
    """
    model, line = checkpoint.model, _first_line(error)
    if isinstance(error, SafetensorError):
        return UnavailableError(f"the weights of {model} are damaged: {line}", "download or save the model again")
    if is_out_of_memory(error):
        return UnavailableError(
            f"not enough memory for {model}", "choose a smaller model, a smaller dtype or another device"
        )
    if isinstance(error, ImportError):  # libraries of the quantization that a checkpoint's configuration names
        return UnavailableError(
            f"{model} needs a package that is not installed: {line}", "install it, or choose a model that does without"
        )
    if isinstance(error, StrictDataclassError):  # the first line names the key, the last one the reason
        reason = " ".join(str(error).split())
        return UsageError(
            f"config.json of {model}: {reason}", "correct config.json, or download or save the model again"
        )
    if isinstance(error, ValueError | KeyError) and (unknown := _unknown(checkpoint)) is not None:
        return unknown
    if checkpoint.looks_local:
        return UnavailableError(
            f"{model} cannot be loaded: {line}", "check that the folder is complete, or save it again"
        )
    if (refusal := _refused_by_hub(error, checkpoint)) is not None:
        return refusal
    if isinstance(error, NOT_TO_BE_HAD):
        if constants.HF_HUB_OFFLINE:
            return UnavailableError(
                f"{model} is not on this machine, and the hub is not asked while offline",
                "check the name, run once without --offline and HF_HUB_OFFLINE, or pass a local folder",
            )
        return UnavailableError(
            f"{model} is not on this machine and cannot be downloaded: {line}",
            "check the name and the network, or pass a local folder",
        )
    return UnavailableError(f"{model} cannot be loaded: {line}", "run again with --debug for the traceback")


def _unknown(checkpoint: Explained) -> HispecError | None:
    """Return the error for a model whose architecture `transformers` does not support as a language model; else
    None.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config, model = checkpoint.read_here("config.json"), checkpoint.model
    if config is None or config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    if "auto_map" in config:
        return _own_code(model)
    return UsageError(f"{model} has an unknown architecture", "choose a Llama, Mistral or Qwen model")


def _own_code(model: str) -> UsageError:
    return UsageError(
        f"{model} needs code from its checkpoint, and hispec runs no such code",
        "choose a model that transformers knows by itself",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refused_by_hub(error: Exception, checkpoint: Explained) -> HispecError | None:
    """Return the error for a request that the hub refused."""
    model = checkpoint.model
    if isinstance(error, GatedRepoError):
        return UnavailableError(
            f"{model} is gated: whoever downloads it must have accepted its licence",
            f"accept it at {constants.ENDPOINT}/{model}, then log in with: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return UnavailableError(
            f"{model} has no revision {checkpoint.revision or 'main'}",
            f"choose one from {constants.ENDPOINT}/{model}/tree/main",
        )
    if isinstance(error, RepositoryNotFoundError):
        return UnavailableError(
            f"the hub has no model {model}, or does not show it",
            "check the name; for a private one, log in with: hf auth login; or pass a local folder",
        )
    return None

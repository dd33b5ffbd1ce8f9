"""The tokenizer that belongs to a checkpoint."""

from typing import TYPE_CHECKING

from hispec.errors import UsageError
from hispec.models.checkpoint import Checkpoint
from hispec.models.dummy import dummy_tokenizer
from hispec.models.hub import quieten_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer. With random weights it is the folder's own if there is one, else a tokenizer of bytes.

    Raises:
        UnavailableError: the tokenizer is not available, or cannot be loaded.
        UsageError: one that cannot be streamed, or a vocabulary without room for bytes.
    """
    own = checkpoint.gguf_file is not None or checkpoint.here("tokenizer.json")
    if checkpoint.dummy and not (checkpoint.is_local and own):
        return dummy_tokenizer(checkpoint.config.vocab_size)
    quieten_transformers()
    with checkpoint.explaining(tokenizer=True):
        if checkpoint.gguf_file is not None:
            return _load_from_gguf(checkpoint)
        # A class that takes everything from tokenizer.json needs none of what `AutoTokenizer` would import first.
        generic = checkpoint.read("tokenizer_config.json").get("tokenizer_class")
        if generic in GENERIC_TOKENIZERS:
            from transformers import PreTrainedTokenizerFast as loader  # noqa: N813
        else:
            from transformers import AutoTokenizer as loader  # noqa: N813
        # Loaded from a folder, because the library would ask the hub for many files that are not needed, and ask again
        # and again if it does not answer.
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(
            checkpoint.tokenizer_folder(), trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise UsageError(
            f"the tokenizer of {checkpoint.model} is a {type(tokenizer).__name__}, which has no tokenizer.json and "
            "cannot be streamed",
            "choose a model with a tokenizer.json",
        )
    return tokenizer


def _load_from_gguf(checkpoint: Checkpoint) -> "PreTrainedTokenizerBase":
    """Load the tokenizer that a GGUF file describes, with its chat template; errors as those of `from_pretrained`.

    `AutoTokenizer` makes the same one after it has read the file's configuration, which takes it ten times as long.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(**checkpoint.gguf_arguments())
    return tokenizer

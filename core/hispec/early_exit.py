"""A test whether a model without a profile was trained for early exit. Its name rarely says so."""

from typing import TYPE_CHECKING

import torch

from hispec.files import remember, remembered
from hispec.models.checkpoint import Checkpoint
from hispec.models.stack import LayerStack
from hispec.models.translator import digest_of_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = (
    "The sun rises in the east and sets in the west. A train leaves the station at 9 o'clock and travels 60 miles an "
    "hour for 3 hours. How far does it go? It goes 60 * 3 = 180 miles. Water is made of hydrogen and oxygen."
)
"""An ordinary text."""

POSITIONS = 48
"""The most positions of the text that are read: a pass of so few rows costs little more than a pass of one."""

DEPTH = 1 / 8
"""The share of the layers after which the exit is tried: where LayerSkip's models are read, and the paper drafts."""

AGREEMENT = 0.3
"""The share of positions where the exit must name the whole model's token. Models that were trained for early exit reach
.45 to .7 here, ordinary ones less than .1."""

FILE = "exits.json"
"""The exits that were found, in the user's cache folder, by the digest of the model."""

MAX_REMEMBERED = 200
"""The number of models whose results are cached; the oldest are dropped first."""


def find_exit(stack: LayerStack, tokenizer: "PreTrainedTokenizerBase", checkpoint: Checkpoint) -> int | None:
    """Return the exit layer that drafts for a model; None for a model that was not trained for early exit.

    The answer is remembered, for weights that are stored.

    Args:
        stack: the model, loaded; what its KV cache holds stays.
        tokenizer: its tokenizer.
        checkpoint: the checkpoint that the weights come from.
    """
    exit_layer = max(1, round(DEPTH * stack.num_layers))
    if exit_layer >= stack.num_layers:
        return None
    digest = None if checkpoint.dummy else digest_of_model(checkpoint, stack.num_layers)
    known = remembered(FILE)
    agreement = known.get(digest) if digest else None
    if not isinstance(agreement, float):
        agreement = measure_agreement(stack, tokenizer, exit_layer)
        if digest:
            known[digest] = round(agreement, 3)
            remember(FILE, dict(list(known.items())[-MAX_REMEMBERED:]))
    return exit_layer if agreement >= AGREEMENT else None


@torch.inference_mode()
def measure_agreement(stack: LayerStack, tokenizer: "PreTrainedTokenizerBase", exit_layer: int) -> float:
    """Return the share of a text's positions where an exit's argmax is the whole model's; 0 for a text of no tokens.

    Args:
        stack: the model, loaded; what its KV cache holds stays.
        tokenizer: its tokenizer.
        exit_layer: number of layers that the exit has run.
    """
    encoded = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    token_ids = [token for token in encoded if token < stack.vocab_size][: min(POSITIONS, stack.context)]
    if not token_ids:
        return 0.0
    with stack.cache.lock, stack.cache.borrowed(len(token_ids)):
        stack.reserve(len(token_ids))
        hidden = stack.run(stack.embed(token_ids), 0, exit_layer, 0, prompt=True)
        early = stack.head(hidden).argmax(-1)
        whole = stack.head(stack.run(hidden, exit_layer, stack.num_layers, 0, prompt=True)).argmax(-1)
    return float((early == whole).double().mean())

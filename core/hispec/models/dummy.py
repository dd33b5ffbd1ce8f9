"""Models made of random weights: any supported architecture from its `config.json`, to see speed and memory first.

Nothing is downloaded for the models that shipped profiles name: `configs/ORG--NAME.json` has their public shapes.
What such a model writes is noise. Only its sizes, and therefore its costs, are those of the model that it stands for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor

from hispec.counts import counted
from hispec.errors import UsageError
from hispec.models.config import ModelConfig
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import FusedWeights
from hispec.models.sharding import Shard
from hispec.models.stack import LayerStack
from hispec.models.tensors import Stored, Tensors
from hispec.models.transformers_stack import TransformersStack
from hispec.settings import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES = 256
SHARPNESS = 2.0
"""The scale of queries and keys: attention that picks few positions makes every prediction depend on the whole text."""


def build_dummy(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, name: str, original: Callable[[], Any] | None
) -> tuple[LayerStack, dict[str, Tensor]]:
    """Return a stack whose weights are allocated on the device and filled there.

    Args:
        config: the shape.
        dtype: the dtype of all weights.
        device: the device on which they are drawn.
        name: the name that users know the model by.
        original: returns the configuration of `transformers` if its modules are to run the layers, else None.

    Returns:
        The stack, and its weights by their names in a checkpoint, as views.
    """
    if original is None:
        weights = FusedWeights(config, dtype, device)
        fill(weights.parts)
        return FusedStack(config, weights, name), weights.parts
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(original(), dtype=dtype, attn_implementation="sdpa").eval()
    parts = {key: parameter.data for key, parameter in model.named_parameters()}
    fill(parts)
    return TransformersStack(model, name), parts


class DrawnTensors(Tensors):
    """The tensors of a checkpoint that exists nowhere: each is drawn, on the device, when it is read.

    Args:
        parts: weights by their names in a checkpoint; only their shapes matter.
        dtype: the dtype of the drawn numbers.
        device: the device on which they are drawn.
    """

    _draw: Callable[[tuple[int, ...]], Tensor]

    def __init__(self, parts: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__({name: Stored("", tuple(part.shape), None) for name, part in parts.items()})
        object.__setattr__(self, "_draw", partial(torch.empty, dtype=dtype, device=device))  # its class is frozen

    def read(self, names: Iterable[str], shard: Shard | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield the drawn tensors, the same at each call; see `Tensors.read`. `shard` is ignored, since parts are
        drawn.
        """
        for name in names:
            drawn = self._draw(self.stored[name].shape)
            fill({name: drawn}, seed=crc32(name.encode()))
            yield name, drawn


def build_quantized_dummy(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, name: str, quantization: Quantization
) -> FusedStack:
    """Return a stack of quantized random weights, made layer by layer; arguments as `build_dummy`."""
    weights = FusedWeights(config, dtype, device, quantization)
    weights.fill(DrawnTensors(weights.parts, dtype, device))
    return FusedStack(config, weights, name)


def modules_on(stack: FusedStack, original: Any) -> Any:
    """Return a model of `transformers` whose parameters are the weights of a stack, without a second copy.

    Args:
        stack: the stack whose weights are drawn.
        original: the model's configuration of `transformers`.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(original, dtype=stack.dtype, attn_implementation="sdpa").eval()
    model.load_state_dict(stack.parts, strict=False, assign=True)
    model.tie_weights()
    with torch.device(stack.device):  # its frequencies are in no checkpoint
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if lacking := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise RuntimeError(f"{stack.name} has no {lacking[0]}")
    return model


@torch.no_grad()
def fill(parts: Mapping[str, Tensor], seed: int = 0) -> None:
    """Draw weights in place: norms 1 (of queries and keys `SHARPNESS`), biases 0, matrices normal with variance 1 / inputs, as a model starts training.

    Every branch then adds about as much to the hidden state as every other, and logits have about unit variance.
    """
    rng: dict[torch.device, torch.Generator] = {}
    for name, part in parts.items():
        if name.endswith("bias"):
            part.zero_()
        elif part.dim() == 1:
            part.fill_(SHARPNESS if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0)
        else:
            generator = rng.setdefault(part.device, torch.Generator(part.device).manual_seed(seed))
            sharp = SHARPNESS if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
            part.normal_(0, sharp * part.shape[1] ** -0.5, generator=generator)


def dummy_tokenizer(vocab_size: int) -> "PreTrainedTokenizerBase":
    """Return a tokenizer for ids without meaning: text becomes its UTF-8 bytes; an id above them is written as its
    number.

    Raises:
        UsageError: a vocabulary that has no room for the bytes.
    """
    if vocab_size < BYTES:
        raise UsageError(
            f"a vocabulary of {counted(vocab_size, 'token')} cannot hold the {BYTES} bytes that stand in for its tokenizer",
            "choose a model with a larger vocabulary, or one whose folder has a tokenizer",
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = alphabet + [f"\u0120{id_}" for id_ in range(BYTES, vocab_size)]  # U+0120 is a space in this alphabet
    backend = Tokenizer(models.BPE(vocab={word: id_ for id_, word in enumerate(vocabulary)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=backend)
    return tokenizer

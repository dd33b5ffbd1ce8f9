"""The configuration of a model in a GGUF file, and the names of its tensors, as checkpoints of the Llama family have them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hispec.errors import UnavailableError, UsageError
from hispec.models.dtypes import STORED
from hispec.models.families import FAMILIES
from hispec.models.gguf import AGAIN, CutShortError, Header, parse_header
from hispec.models.gguf_names import ARCHITECTURES, FACTORS
from hispec.models.gguf_tensors import numbers_of

if TYPE_CHECKING:
    pass

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The keys of rotary embeddings that all of them share."""


def values_of(header: Header, path: Path, name: str) -> dict[str, Any]:
    """Return the values that a `config.json` of the model would have.

    Outside of `ARCHITECTURES` it is the architecture alone: `transformers` must read the rest.

    Args:
        header: the header of the file.
        path: the file, or as much of it as `needed` tells.
        name: the model, as the user named it.

    Raises:
        UnavailableError: the header lacks a size, or has an invalid one.
        UsageError: experts, or rotary embeddings that a GGUF file does not describe well enough.
    """
    family = header.architecture
    form = {"model_type": family, "gguf": "blocks" if header.in_blocks else "plain"}
    if not header.in_blocks:
        form["dtype"] = STORED[header.dtype]
    if family not in ARCHITECTURES:
        return form
    say = header.metadata.get

    def must(key: str) -> Any:
        value = say(f"{family}.{key}")
        if value is None:
            raise UnavailableError(f"the GGUF file {name} does not say {family}.{key}", AGAIN)
        if not isinstance(value, int | float) or value <= 0:
            raise UnavailableError(f"the GGUF file {name} says that {family}.{key} is {str(value)[:60]}", AGAIN)
        return value

    if say(f"{family}.expert_count"):
        raise UsageError(f"{name} is a mixture of experts, which is not read from GGUF", "choose another model")
    if "token_embd.weight" not in header.tensors:
        raise UnavailableError(f"the weights of {name} are incomplete: token_embd.weight is missing", AGAIN)
    heads, hidden = must("attention.head_count"), must("embedding_length")
    size = say(f"{family}.attention.key_length") or say(f"{family}.rope.dimension_count")
    biased = "blk.0.attn_q.bias" in header.tensors
    ends = (say(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    return form | {
        "num_hidden_layers": must("block_count"),
        "hidden_size": hidden,
        "intermediate_size": must("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": must("attention.head_count_kv")
        if f"{family}.attention.head_count_kv" in header.metadata
        else heads,
        "head_dim": size or FAMILIES[family].head_size or hidden // heads,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": must("context_length"),
        "rms_norm_eps": must("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rotary(header, path, name),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **({"use_sliding_window": False} if FAMILIES[family].window == "switched" else {}),
        **({"mlp_bias": False} if FAMILIES[family].mlp_bias else {}),
        **({"attention_bias": biased} if FAMILIES[family].attention_bias == "configured" else {}),
        "bos_token_id": say("tokenizer.ggml.bos_token_id"),
        "eos_token_id": sorted({end for end in ends if end is not None}) or None,
        "pad_token_id": say("tokenizer.ggml.padding_token_id"),
    }


def needed(data: bytearray, name: str) -> int:
    """Return the number of bytes of a file that `values_of` reads: if that is not known, at least twice as many as
    there are.

    Args:
        data: the beginning of a file.
        name: the model, as the user named it.

    Raises:
        UnavailableError, UsageError: the header is invalid, as for `parse_header`.
    """
    try:
        header = parse_header(data, name)
    except CutShortError:
        return 2 * len(data)
    return header.tensors[FACTORS].start + header.tensors[FACTORS].size if FACTORS in header.tensors else 0


def _rotary(header: Header, path: Path, name: str) -> dict[str, Any]:
    """Return the parameters of the rotary embedding.

    Those of Llama 3.1 and its successors are held as the factors that they come to, the largest of which tells them all.
    """
    family, say = header.architecture, header.metadata.get
    theta = {"rope_theta": say(f"{family}.rope.freq_base", 10000.0)}
    scaling = say(f"{family}.rope.scaling.type", "none")
    if scaling == "linear":
        return {"rope_type": "linear", "factor": say(f"{family}.rope.scaling.factor", 1.0), **theta}
    if scaling != "none":
        raise UsageError(
            f"{name} has {scaling!r} rotary embeddings, which are not read from GGUF", "choose the model in safetensors"
        )
    if FACTORS not in header.tensors:
        return {"rope_type": "default", **theta}
    factors = numbers_of(path, header.tensors[FACTORS])
    return {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3, **theta}

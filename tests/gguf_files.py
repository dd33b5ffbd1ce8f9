"""GGUF files of random models, written with the package of llama.cpp as its converter does it."""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from hispec.profile import resolve_model
from tests.support import random_model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
"""Blocks of 32 numbers fit into every row."""
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


def small_model(family="llama", **changes):
    """A random model that fits the vocabulary of the shipped one, or another that is asked for."""
    vocabulary = len(_tokens())
    return random_model(family, **{"vocab": vocabulary, **SIZES, **changes})


def write(path, model, kind=Kind.Q4_0, *, tables=None, kinds=None, architecture=None, **metadata):
    """Write a model with its matrices in some kind of blocks; returns the path.

    Args:
        path: the path of the file; its folder is made.
        model: a model of `transformers`.
        kind: the tensor type of the layers' matrices.
        tables: kind of the embedding and the head; by default 8 bits, or `kind` where that is plain numbers.
        kinds: the types of some tensors, by their names in the file, which replace `kind`.
        architecture: the name of the family in the file, where llama.cpp has another one.
        metadata: keys with `.` written as `__`, in addition to those of the model's configuration; None leaves one out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    config, plain = model.config, kind in (Kind.F32, Kind.F16, Kind.BF16)
    arch = architecture or config.model_type
    writer = gguf.GGUFWriter(path, arch)
    known = {
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.rope.dimension_count": getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        "general.name": "random",
        **_vocabulary(),
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    for key, value in known.items():
        _add(writer, key, value)
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH.LLAMA if arch == "llama" else _arch(arch), config.num_hidden_layers
    )
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem, _, ending = name.rpartition(".")
        numbers = tensor.float().numpy()
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            numbers = turned(numbers, heads)
        of = (tables or (kind if plain else Kind.Q8_0)) if stem.endswith(("embed_tokens", "lm_head")) else kind
        of = Kind.F32 if numbers.ndim == 1 else of
        of = (kinds or {}).get(f"{names.get_name(stem)}.{ending}", of)
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", blocks_of(numbers, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def turned(rows, heads):
    """Rows as the converter of llama.cpp lays those of queries and keys out: a head's halves one in the other."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def blocks_of(numbers, kind):
    """The bytes of a tensor in some kind of blocks; those that only llama.cpp makes hold arbitrary small numbers."""
    try:
        return gguf.quantize(numbers, kind)
    except NotImplementedError:
        size, taken = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = numbers.shape
        blocks = np.random.default_rng(0).integers(0, 255, (rows, columns // size, taken), dtype=np.uint8)
        scales = {Kind.Q4_K: (0, 4), Kind.Q5_K: (0, 4), Kind.Q6_K: (208, 210)}[kind]
        blocks[..., slice(*scales)] = np.frombuffer(np.full((scales[1] - scales[0]) // 2, 0.001, np.float16), np.uint8)
        return blocks.reshape(rows, -1)


def _tokens():
    text = json.loads((Path(resolve_model("builtin:tiny")) / "tokenizer.json").read_text())
    ids = text["model"]["vocab"] | {token["content"]: token["id"] for token in text["added_tokens"]}
    return sorted(ids, key=ids.get)


def _vocabulary():
    text = json.loads((Path(resolve_model("builtin:tiny")) / "tokenizer.json").read_text())
    special = {token["content"] for token in text["added_tokens"]}
    tokens = _tokens()
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in text["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def _add(writer, key, value):
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _arch(name):
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)

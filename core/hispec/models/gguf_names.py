"""The names of tensors in GGUF files, as checkpoints of the Llama family have them, and the order of their rows."""

import re

from hispec.models.families import FAMILIES
from hispec.models.gguf import Header

ARCHITECTURES = tuple(name for name, family in FAMILIES.items() if family.gguf)
"""Those that are read here, of which Llama's is Mistral's too; for others `transformers` is asked."""
TABLES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of tensors in GGUF files and in checkpoints of the Llama family, without `blk.N.` and `model.layers.N.`."""
FACTORS = "rope_freqs.weight"
"""The divisors of the rotary frequencies of Llama 3.1 and later models; they are computed from the configuration
instead.
"""


def turned_rows(header: Header, tensor: str) -> int | None:
    """Return the heads whose rows llama.cpp has turned in a tensor, None where the rows are as in any checkpoint.

    It puts the two halves of each head of Llama models side by side, for rotary embeddings that turn neighbours.
    """
    part = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", tensor)
    family = header.architecture
    if part is None or family not in FAMILIES or not FAMILIES[family].turned:
        return None
    heads = header.metadata[f"{family}.attention.head_count"]
    return int(heads if part[1] == "q" else header.metadata.get(f"{family}.attention.head_count_kv", heads))


def name_in_checkpoint(tensor: str) -> str:
    """Return the name of a tensor in checkpoints of the Llama family; an unknown tensor keeps its name."""
    stem, _, kind = tensor.rpartition(".")
    if stem in TABLES:
        return f"{TABLES[stem]}.{kind}"
    if (layer := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)) and layer[2] in PARTS:
        return f"model.layers.{layer[1]}.{PARTS[layer[2]]}.{kind}"
    return tensor

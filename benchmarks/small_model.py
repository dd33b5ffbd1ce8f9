"""A folder with nothing but the configuration of a small model, for dummy weights: `python small_model.py FOLDER LAYERS`."""

import sys
from pathlib import Path

from transformers import AutoConfig

FAMILIES = {"llama": {}, "mistral": {"sliding_window": None}, "qwen2": {}, "qwen3": {}}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def write_config(folder: Path, family: str, layers: int, hidden: int = 64, vocab_size: int = 2000) -> Path:
    """Return the folder, once it holds a `config.json`; a Llama has the rotary embedding of Llama 3."""
    rope = LLAMA3_ROPE if family == "llama" else {"rope_type": "default", "rope_theta": 10000.0}
    AutoConfig.for_model(
        family,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        vocab_size=vocab_size,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        rope_parameters=rope,
        **FAMILIES[family],
    ).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write_config(Path(sys.argv[1]), "llama", int(sys.argv[2]))

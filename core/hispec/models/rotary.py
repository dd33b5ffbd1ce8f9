"""The rotary embedding of every position, tabulated once."""

from math import isfinite

import torch
from torch import Tensor

from hispec.errors import UsageError
from hispec.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Return radians per position of each pair of a head's numbers, float32 [head size / 2], and what scales cosine and
    sine.

    The plain ones are those of RoFormer (Su et al., arXiv 2104.09864, section 3.4.2); scaled ones are `transformers`'.
    """
    if config.rope_type == "default":
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
        return 1.0 / config.rope_theta**exponents, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS[config.rope_type](config.original, torch.device("cpu"))
    return frequencies, float(scale)


def check_frequencies(config: ModelConfig, name: str) -> None:
    """Raise if a rotary embedding cannot be computed, or rotates only a part of each head.

    Args:
        config: the shape.
        name: the model, as the user named it.

    Raises:
        UsageError: naming the parameters.
    """
    try:
        frequencies, scale = inverse_frequencies(config)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        reason = f"{error}" or type(error).__name__
    else:
        if 2 * len(frequencies) == config.head_size and frequencies.isfinite().all() and isfinite(scale):
            return
        whole = 2 * len(frequencies) == config.head_size
        reason = "they are not finite" if whole else "partial_rotary_factor leaves a part of each head unturned"
    raise UsageError(
        f"config.json of {name}: no {config.rope_type} rotary embedding can be made from its parameters: {reason}",
        "correct them, or download or save the model again",
    )


def rotary_tables(
    config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of positions 0..positions-1, each [positions, 1, head size].

    A head x is rotated as `x * cos + swap(x) * sin`, where `swap` exchanges its halves: the sines of the first half
    carry the minus sign.
    """
    frequencies, scale = inverse_frequencies(config)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    tables = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    cosines, sines = (table[:, None].to(device, dtype) for table in tables)
    return cosines, sines

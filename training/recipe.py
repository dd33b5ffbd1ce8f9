"""The LayerSkip recipe (arXiv 2404.16710, section 4) as three small formulas and one forward pass.

Layers are counted from 0 to L-1 here; exit e is the state after layer e-1.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM


def layer_dropout(layer: int, num_layers: int, p_max: float) -> float:
    """Return probability that a row skips `layer`: 0 at the first layer, `p_max` at the last (equation 1)."""
    return p_max * (math.exp(layer * math.log(2) / (num_layers - 1)) - 1)


def exits_of_step(step: int, num_layers: int, period: int) -> list[int]:
    """Return the rotational curriculum: every `period`-th exit, shifted by one each step, and always the last."""
    return [e for e in range(1, num_layers) if e % period == step % period] + [num_layers]


def exit_weights(exits: list[int]) -> list[float]:
    """Return share of each exit in the loss: growing with its depth, from half the last exit's.

    The paper's weights grow with the square of the depth, which on a shallow model leaves the first exits less
    than one per cent; starting at half keeps deeper exits dearer and the draft exits useful.
    """
    return [(exits[-1] + e) / sum(exits[-1] + e for e in exits) for e in exits]


def early_exit_loss(
    model: LlamaForCausalLM,
    ids: Tensor,
    learn: Tensor,
    exits: list[int],
    p_max: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[int, float]]:
    """Run a batch once and sum the losses of `exits`, each read through the shared final norm and head.

    Args:
        ids: token ids, [rows, tokens].
        learn: [rows, tokens] bool, True where the token is to be predicted.
        exits: exits that take part, ascending.
        p_max: layer dropout of the last layer.
        generator: decides which rows skip which layer.

    Returns:
        The loss to minimise, and the plain cross entropy (nats per token) of each exit.
    """
    layers = model.model.layers
    hidden = model.model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rotary = model.model.rotary_emb(hidden, positions)
    picked = learn[:, 1:].reshape(-1).nonzero().squeeze(1)
    targets = ids[:, 1:].reshape(-1)[picked]
    weights = dict(zip(exits, exit_weights(exits), strict=True))
    total = hidden.new_zeros(())
    report: dict[int, float] = {}
    for index, layer in enumerate(layers):
        keep = torch.rand(len(ids), generator=generator) >= layer_dropout(index, len(layers), p_max)
        if keep.all():
            hidden = layer(hidden, position_embeddings=rotary, attention_mask=None)
        elif keep.any():
            rows = keep.nonzero().squeeze(1).to(ids.device)
            hidden = hidden.index_copy(
                0, rows, layer(hidden[rows], position_embeddings=rotary, attention_mask=None).to(hidden.dtype)
            )
        if index + 1 in weights:
            states = hidden[:, :-1].reshape(-1, hidden.shape[-1])[picked]
            loss = cross_entropy(model.lm_head(model.model.norm(states)).float(), targets)
            total = total + weights[index + 1] * loss
            report[index + 1] = loss.item()
    return total, report

"""Tiny random models, and the plain loops that decoding is compared with."""

from itertools import chain, repeat

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.sampling import Sampler, Sampling
from hispec.decoding.state import DecodingState
from hispec.events import Committed
from hispec.models.config import parse_config
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import FusedWeights
from hispec.models.transformers_stack import TransformersStack
from hispec.policies.static import StaticPolicy

PROMPT = [3, 1, 4, 1, 5]
GREEDY = Sampler(Sampling())


def random_model(family="llama", *, seed=0, layers=4, vocab=24, **changes):
    """A model with weights large enough that its layers matter, and deep branches small enough that exits agree
    with the whole model about half of the time. `changes` are of its configuration."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": vocab,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "initializer_range": 0.4,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **changes,
        },
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
    for index, layer in enumerate(model.model.layers):
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.data /= 1 + index
    return model


def fused_stack(model):
    """The fused stack of a loaded model, from copies of its weights."""
    config = parse_config(model.config.to_dict(), model.config)
    weights = FusedWeights(config, model.dtype, model.device)
    state = model.state_dict()
    for name, part in weights.parts.items():
        part.copy_(state[name])
    return FusedStack(config, weights, "fused")


def hierarchy_of(model, *exits, ngrams=None, words=()):
    """A hierarchy on fresh caches: n-grams if asked, the given exits, then the target.

    Args:
        model: a model of `transformers`, or a layer stack.
        exits: ascending.
        ngrams: (longest, tokens) of n-grams that are looked up.
        words: the token ids that the heads of the first exits have, one collection each; all others have every one.
    """
    stack = model if hasattr(model, "kind") else TransformersStack(model, "random")
    heads = [None if known is None else stack.reduce_head(torch.tensor(sorted(known))) for known in words]
    names = ("draft", "intermediate", "third", "fourth")
    levels = [
        Level(name, stack, exit_layer, head)
        for name, exit_layer, head in zip(names, exits, chain(heads, repeat(None)), strict=False)
    ]
    levels = [Level.of_ngrams(*ngrams), *levels] if ngrams else levels
    return Hierarchy([*levels, Level("target", stack, stack.num_layers)])


def decode_ids(hierarchy, periods, *, max_new_tokens=12, eos_ids=(), prompt=PROMPT, after_event=None):
    """All committed ids; `after_event(state, event)` looks in after each event."""
    state = DecodingState(hierarchy, prompt, len(prompt) + max_new_tokens)
    ids = []
    for event in decode(state, StaticPolicy(periods), GREEDY, StopCriteria(max_new_tokens, eos_ids)):
        if isinstance(event, Committed):
            ids += event.token_ids
        if after_event:
            after_event(state, event)
    return ids


def greedy_by_hand(model, count, prompt=PROMPT):
    """Return the output of the model alone: the whole text is run again for every token, without a cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]

"""A loaded `transformers` model as a layer stack: its own modules, driven span by span with our cache."""

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from hispec.errors import HispecError, UnavailableError, UsageError
from hispec.limits import WIDEST
from hispec.models.cache import KVCache
from hispec.models.config import check_rotary, describe, rope_type_of
from hispec.models.families import FAMILIES
from hispec.models.linear import Linear
from hispec.models.parts import find_parts, not_in_spans
from hispec.models.rows import CANDIDATES, RowCounts, Width, choose_rows, in_passes, pad_rows, prompt_rows
from hispec.models.stack import ArgmaxHead, LayerStack, ReducedHead, write_stepwise
from hispec.settings import Quantization

PROBE = 12
"""Tokens of the text that an architecture is tried with."""

_tried = WeakSet[Any]()
"""Models that have been found to run in spans."""


class TransformersStack:
    """A decoder-only model as `transformers` loads it, on one device or several; see `LayerStack` for the protocol.

    A model outside of `hispec.models.families.FAMILIES` is run once in one pass and once in spans, and refused where
    these differ: it then does something between its layers that is not known here.

    Args:
        model: a model with `sdpa` attention; if `accelerate` has spread it, each layer runs where its hook says.
        name: the name that users know the model by.

    Raises:
        UsageError: an architecture that cannot be run in spans, or another attention.
    """

    kind = "transformers"

    def __init__(self, model: Any, name: str) -> None:
        config = model.config
        check_rotary(rope_type_of(config), name)
        self._parts = find_parts(model, name)
        if config._attn_implementation != "sdpa":
            raise UsageError(
                f"{name} is loaded with {config._attn_implementation!r} attention, which masks in another way",
                'load it with attn_implementation="sdpa"',
            )
        if not getattr(config, "is_causal", True):
            raise not_in_spans(config.model_type, name, "attention to what comes after (is_causal is false)")
        self.name = name
        self.model = model.eval()
        self.num_layers: int = len(self._parts.layers)
        sizes = describe(config, name)
        self.vocab_size, self.context = sizes.vocab_size, sizes.context
        self.device = device_of(self._parts.head)
        self.dtype: torch.dtype = self._parts.embedding.weight.dtype
        self.devices = [device_of(layer) for layer in self._parts.layers]
        """Per layer, where it runs."""
        heads = sizes.num_kv_heads // (getattr(model, "tp_size", None) or 1)  # this rank's part
        self.cache = KVCache([(heads, sizes.head_size)] * self.num_layers, self.dtype, self.devices)
        # The modules of the fused families ignore a cap in their configuration.
        capped = config.model_type not in FAMILIES
        self._cap: float | None = getattr(config, "final_logit_softcapping", None) if capped else None
        self._tabulated = 0
        self.rows, self.narrow = RowCounts(), WIDEST
        if config.model_type not in FAMILIES and model not in _tried:
            self._try_spans()
            _tried.add(model)

    def quantized(self, quantization: Quantization, layers: int | None = None) -> LayerStack:
        """Return a stack that reads quantized copies of the first layers' weights and the head's, and shares the
        cache.

        See `LayerStack.quantized`. It always raises, since this stack has no copies.
        """
        raise UnavailableError(
            f"levels of {quantization} weights need the fused stack, and {self.name} runs on the transformers one",
            "leave out --stack transformers, or the weights of the draft and intermediate levels",
        )

    def prepare(self, width: Width) -> None:
        """Make a loaded model ready to run, with passes of some width; see `LayerStack.prepare`."""
        self._tabulated = 0
        self.rows = choose_rows(self, width, CANDIDATES, prompt_rows(self.device))

    @torch.inference_mode()
    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens.

        See `LayerStack.reserve`. Also tabulates the rotary embedding of every position.
        """
        self.cache.grow(positions)
        if self._tabulated != self.cache.positions:
            device = device_of(self._parts.rotary)
            probe = torch.empty(1, 1, 1, dtype=self.dtype, device=device)
            places = torch.arange(self.cache.positions + self.rows.padding, device=device)
            tables = self._parts.rotary(probe, places[None])
            self._rotary = {device: tuple(table.to(device) for table in tables) for device in set(self.devices)}
            self._tabulated = self.cache.positions

    @torch.inference_mode()
    def embed(self, token_ids: list[int]) -> Tensor:
        """Return token ids -> hidden states [n, hidden]; see `LayerStack.embed`."""
        embedding = self._parts.embedding
        embedded: Tensor = embedding(torch.tensor(token_ids, device=device_of(embedding)))
        return embedded

    def clear(self) -> None:
        """Zero the KV cache, which may contain NaN; see `LayerStack.clear`."""
        self.cache.clear()

    @torch.inference_mode()
    def run(self, hidden: Tensor, start_layer: int, end_layer: int, position: int, *, prompt: bool = False) -> Tensor:
        """Run rows [n, hidden] at `position`.

        Run a span in several passes where the length that attention reads grows; see `LayerStack.run`.
        """
        done, at = [], 0
        for rows, padded in self.rows.passes(len(hidden), position, prompt=prompt):
            for part in self.rows.within_buckets(rows, position + at):
                done.append(self._pass(hidden[at : at + part], padded, start_layer, end_layer, position + at))
                at += part
        return done[0] if len(done) == 1 else torch.cat(done)

    def _pass(self, hidden: Tensor, padded: int, start_layer: int, end_layer: int, position: int) -> Tensor:
        """Run rows [n, hidden] through layers in one pass of `padded` rows."""
        rows = len(hidden)
        self.cache.position, self.cache.rows, self.cache.end = position, rows, self.rows.length(position + rows)
        hidden = pad_rows(hidden, padded)[None]
        arguments: dict[torch.device, dict[str, Any]] = {}
        for layer, device in zip(
            self._parts.layers[start_layer:end_layer], self.devices[start_layer:end_layer], strict=True
        ):
            if device not in arguments:
                arguments[device] = self._arguments(padded, position, device)
            result = layer(hidden.to(device), **arguments[device])
            hidden = result[0] if isinstance(result, tuple) else result
        return hidden[0, :rows]

    @torch.inference_mode()
    def head(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """Return the logits of the final norm and the LM head; see `LayerStack.head`."""
        if reduced is None:
            return in_passes(self.rows, self.logits, hidden)
        return self.logits(hidden, reduced)

    def logits(self, hidden: Tensor, reduced: ReducedHead | None = None) -> Tensor:
        """Return the logits as `head` does, [n, hidden] -> [n, vocab]; gradients pass through them."""
        normed = self._parts.norm(hidden.to(device_of(self._parts.norm))).to(self.device)
        logits: Tensor = self._parts.head(normed) if reduced is None else reduced.linear(normed)
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    @torch.inference_mode()
    def reduce_head(self, ids: Tensor) -> ReducedHead:
        """Return a head of the token ids `ids` only, ascending [vocab]; see `LayerStack.reduce_head`."""
        from accelerate.utils import align_module_device

        ids, head = ids.to(self.device), self._parts.head
        if getattr(head, "bias", None) is not None:
            raise UsageError(
                f"the head of {self.name} has a bias, which a reduced one cannot have", "leave the level's head whole"
            )
        with align_module_device(head, self.device):  # while it does not run, it may be on another device
            return ReducedHead(ids, Linear(head.weight.index_select(0, ids).t()))

    def write_run(
        self, token: Tensor, end_layer: int, position: int, count: int, read: ArgmaxHead
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a token through layers 0..end_layer-1, then the token read from it, and so on.

        See `LayerStack.write_run`.
        """
        return write_stepwise(self, token, end_layer, position, count, read)

    def _arguments(self, rows: int, position: int, device: torch.device) -> dict[str, Any]:
        """Return the arguments of every layer on a device."""
        end, mask = position + rows, None
        if rows > 1 or not self.rows.free:
            mask = torch.ones(rows, self.cache.end, dtype=torch.bool, device=device).tril_(position)[None, None]
        rotary = tuple(table[:, position:end] for table in self._rotary[device])
        return {self._parts.cache_argument: self.cache, "attention_mask": mask, "position_embeddings": rotary}

    @torch.inference_mode()
    def _try_spans(self) -> None:
        """Raise if a model's `forward` differs from running its layers one after the other."""
        ids, middle = [(7 * place + 1) % self.vocab_size for place in range(PROBE)], self.num_layers // 2
        whole = self.model(torch.tensor([ids], device=device_of(self._parts.embedding)), use_cache=False).logits[0]
        try:
            self.reserve(PROBE)
            logits = []
            for start, end in ((0, PROBE // 2), (PROBE // 2, PROBE)):
                hidden = self.run(self.embed(ids[start:end]), 0, middle, start)
                logits.append(self.head(self.run(hidden, middle, self.num_layers, start)))
            differences = (torch.cat(logits) - whole.to(self.device)).abs().amax(-1)
        except HispecError:
            raise
        except Exception as error:
            raise not_in_spans(self.model.config.model_type, self.name, "layers that are called otherwise") from error
        tolerance = 1e-4 if self.dtype == torch.float32 else 5e-2  # rounding, of the largest logit
        # The median row: a near tie between experts may send one token another way.
        if not float(differences.float().median()) <= tolerance * float(whole.abs().max()):
            reason = "steps between its layers that are not known here"
            raise not_in_spans(self.model.config.model_type, self.name, reason)


def device_of(module: Any) -> torch.device:
    """Return the device that a module runs on, as `accelerate` may have decided, wherever its weights are now."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")

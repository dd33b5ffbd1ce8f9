"""The fused stack in fixed shapes, so that a device can record a span, or a whole run of drafts, and replay it.

A CUDA graph repeats the same kernels on the same memory. So everything that differs from one span to the next is data
here: rows are padded to one width, the positions are a tensor, attention reads one of a few lengths with a mask for
later positions, and inputs and outputs have fixed buffers. Only the recording needs a GPU; a CPU runs the same code
without it.
"""

import warnings
from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hispec.limits import WIDEST, WIDEST_FIXED
from hispec.models.config import ModelConfig
from hispec.models.fused_stack import FusedStack
from hispec.models.fused_weights import FusedWeights
from hispec.models.passes import Buffers, PassPlace, Window
from hispec.models.rows import RowCounts, Width, prompt_rows
from hispec.models.stack import ArgmaxHead, LayerStack
from hispec.models.staged_stack import StagedStack

WIDTHS = (1, 2, 4, 8, 16, WIDEST_FIXED)
"""The row counts that a span of free width is padded to; a wider one is a prompt's, which runs once and without
padding.
"""

ONE_WIDTH = WIDEST
"""The default number of rows of the target's passes: one product with so many takes a GPU as long as one with a single
row, and few verifications have more.
"""

SHORTEST = 256
"""The shortest length that attention reads, in positions; the next lengths are twice as long, up to the cache's."""

LONGEST_RUN = 32
"""Tokens of the longest run of drafts that is one graph; a longer run is several."""

MAX_RECORDED = 128
"""The number of graphs that are kept; beyond it, the least recently used one is dropped."""

Work = Callable[[], None]
Recorder = Callable[[Work], Work]
"""Records work without doing it, and returns a callable that does it."""


class GraphedStack(FusedStack):
    """A fused stack whose spans and runs of drafts are recorded the second time that they come.

    The first run is the warm-up that a recording needs. If a recording fails, there is one warning, and spans then run
    like those of the fused stack.

    Args:
        config: its shape.
        weights: filled.
        name: the name that users know the model by.
        record: None runs the same code without recording it.
        origin: the model that the stack was made from; see `FusedStack`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: FusedWeights,
        name: str,
        record: Recorder | None = None,
        origin: FusedStack | None = None,
    ) -> None:
        super().__init__(config, weights, name, origin)
        self._record, self._fixed = record, True
        self._allocate(WIDTHS)
        with torch.inference_mode(False):
            self._token = torch.zeros(1, dtype=torch.long, device=self.device)
            """The newest token of a run of drafts."""
            self._run_tokens = torch.zeros(LONGEST_RUN, dtype=torch.long, device=self.device)
            self._run_highest = self._zeros(LONGEST_RUN)
            self._run_hidden = self._zeros(LONGEST_RUN, config.hidden_size)

    def _allocate(self, widths: tuple[int, ...]) -> None:
        """Allocate the buffers of spans of some widths, and drop the graphs in old buffers."""
        self._recorded.clear()
        self._widths = widths
        with torch.inference_mode(False):
            self._rows = self._zeros(widths[-1], self.config.hidden_size)
            """A span's rows, which become its result."""
            self._offsets = torch.arange(widths[-1], device=self.device)
            self._positions = torch.zeros_like(self._offsets)
            self._buffers_of_width = {width: Buffers(self.config, width, self.dtype, self.device) for width in widths}

    @property
    def _recorded(self) -> dict[Hashable, Work | None]:
        """Return the recordings by their stack and key; None for work that was done once and not recorded."""
        return self._shared.recorded

    @classmethod
    def of(cls, stack: FusedStack, record: Recorder | None = None) -> "GraphedStack":
        """Return a stack on the same weights with fixed shapes; `stack` should not be used any more."""
        return cls(stack.config, stack._weights, stack.name, record)

    def _beside(self, weights: FusedWeights, name: str) -> FusedStack:
        return GraphedStack(self.config, weights, name, self._record, self)

    def reserve(self, positions: int) -> None:
        """Make room in the KV cache for `positions` tokens.

        See `LayerStack.reserve`. There is room for the rows that pad the last span, too.

        Recordings go before anything grows: should memory run out half-way, none is left that replays into memory
        that is no more.
        """
        if self.origin is not None:
            self.origin.reserve(positions)
            return
        padding = max(WIDTHS[-1], self._widths[-1])  # for the stacks that share the cache too
        positions = _power_of_two(positions + padding)  # so that the capacity bounds no length of attention
        if positions > self.cache.positions or self._shared.tabulated != self.cache.positions:
            self._recorded.clear()  # they replay into memory that is no more once the first layer has grown
        super().reserve(positions)

    def _tabulate(self, places: int) -> None:
        """Make the tables for a number of positions, and number the columns of the masks; see
        `FusedStack._tabulate`.
        """
        columns = torch.arange(places, device=self.device)
        super()._tabulate(places)
        self._shared.columns = columns

    def embed(self, token_ids: list[int]) -> Tensor:
        """Return token ids -> hidden states [n, hidden], without waiting for the device; see `LayerStack.embed`."""
        if self.device.type != "cuda":
            return super().embed(token_ids)
        ids = torch.tensor(token_ids, pin_memory=True).to(self.device, non_blocking=True)
        embedded: Tensor = F.embedding(ids, self._weights.embedding)
        return embedded

    def prepare(self, width: Width) -> None:
        """Make a loaded model ready to run, with passes of some width.

        See `LayerStack.prepare`. One width serves the whole model, so that there is one recording of each span and length:
        a row cannot depend on how many there are, as they are always as many.
        """
        if self.origin is not None:
            return
        self._weights.pack()
        self._shared.tabulated = 0
        one = ONE_WIDTH if width == "auto" else width
        self.rows = RowCounts() if one == "free" else RowCounts((one,), prompt_rows(self.device))
        self._allocate(self.rows.counts or WIDTHS)

    def prepare_as(self, before: FusedStack) -> None:
        """Make ready to run with the row counts of the first stage; see `LayerStack.prepare`."""
        super().prepare_as(before)
        self._allocate(self.rows.counts or WIDTHS)

    def _pass(self, hidden: Tensor, padded: int, start_layer: int, end_layer: int, position: int) -> Tensor:
        """Run rows [n, hidden] through layers in one pass of `padded` rows.

        Run a span in several parts where the length that attention reads grows; see `FusedStack`.
        """
        width = next((width for width in self._widths if width >= padded), None)
        if width is None or not self._fixed:
            return super()._pass(hidden, padded, start_layer, end_layer, position)
        done, at = [], 0
        while at < len(hidden):
            length = self._length(position + at + 1)
            rows = min(len(hidden) - at, length - position - at)
            self._rows[:rows].copy_(hidden[at : at + rows])
            self._rows[rows:width].zero_()  # padding may have held NaN
            torch.add(self._offsets, position + at, out=self._positions)
            self._do(
                (start_layer, end_layer, width, length), partial(self._run_span, start_layer, end_layer, width, length)
            )
            done.append(self._rows[:rows].clone())
            at += rows
        return done[0] if len(done) == 1 else torch.cat(done)

    def write_run(
        self, token: Tensor, end_layer: int, position: int, count: int, read: ArgmaxHead
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a token through layers 0..end_layer-1, then the token read from it, and so on.

        See `LayerStack.write_run`. Without waiting for any token.
        """
        self._token.copy_(token)
        torch.add(self._offsets, position, out=self._positions)
        parts, begin = [], 0
        while begin < count:
            length = self._length(position + begin + 1)
            steps = min(LONGEST_RUN, count - begin, length - position - begin)
            self._do((read, end_layer, steps, length), partial(self._run_steps, read, end_layer, steps, length))
            parts.append([kept[:steps].clone() for kept in (self._run_tokens, self._run_highest, self._run_hidden)])
            begin += steps
        if len(parts) == 1:
            tokens, highest, hidden = parts[0]
        else:
            tokens, highest, hidden = (torch.cat(part) for part in zip(*parts, strict=True))
        return tokens, highest, hidden

    def _run_span(self, start_layer: int, end_layer: int, width: int, length: int) -> None:
        """Run the first `width` rows through layers, looking at `length` positions."""
        positions = self._positions[:width]
        group = self._group
        beyond = self._shared.columns[:length] > positions[:, None]
        mask = self._zeros(width, length).masked_fill_(beyond, -torch.inf)
        # Attention kernels need masks whose rows are contiguous, which the view of a single row would not be.
        by_group = mask[:, None].expand(width, group, length).reshape(width * group, length).contiguous()
        place = PassPlace(
            self._shared.cos.index_select(0, positions),
            self._shared.sin.index_select(0, positions),
            positions,
            width,
            (Window(0, width, length, by_group),),
            grouped=True,
        )
        self._run_layers(self._rows[:width], self._buffers_of_width[width], place, start_layer, end_layer)

    def _run_steps(self, read: ArgmaxHead, end_layer: int, steps: int, length: int) -> None:
        """Run `steps` tokens one after the other, each read from the one before, in passes of one row and padding."""
        width = self._widths[0]
        self._rows[:width].zero_()
        for step in range(steps):
            row = self._rows[:1]
            row.copy_(F.embedding(self._token, self._weights.embedding))
            self._run_span(0, end_layer, width, length)
            highest, token = read(row)
            self._run_hidden[step : step + 1].copy_(row)
            self._run_highest[step : step + 1].copy_(highest)
            self._run_tokens[step : step + 1].copy_(token)
            self._token.copy_(token)
            self._positions.add_(1)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    def _length(self, end: int) -> int:
        """Return the shortest length that reaches as far as `end`."""
        return max(SHORTEST, _power_of_two(end))

    def _do(self, key: Hashable, work: Work) -> None:
        """Do some work, recorded where it has been; `key` is equal for equal work of this stack."""
        key = self, key
        if not (self._record and self._fixed):
            work()
        elif key not in self._recorded:
            self._recorded[key] = None
            work()
        else:
            replay = self._recorded.pop(key)
            if replay is None:
                replay = self._try_to_record(self._record, work)
            if self._fixed:
                self._recorded[key] = replay  # the last used is the last
            if len(self._recorded) > MAX_RECORDED:
                del self._recorded[next(iter(self._recorded))]
            replay()

    def _try_to_record(self, record: Recorder, work: Work) -> Work:
        """Return a function that replays some work; the work itself, from then on, if it cannot be recorded."""
        try:
            return record(work)
        except Exception as error:
            self._fixed = False
            self._recorded.clear()
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            warnings.warn(
                f"no CUDA graph could be captured; decoding continues without graphs, more slowly: {line}",
                RuntimeWarning,
                stacklevel=2,
            )
            return work


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


class CudaRecorder:
    """Records CUDA graphs, which take their memory from one pool: they never run at the same time.

    What a graph leaves behind is not in the pool, so that the next one may use all of it.

    Args:
        device: the device that they run on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._first: torch.cuda.CUDAGraph | None = None
        """Kept, as a pool without any graph cannot be captured into again."""

    def __call__(self, work: Work) -> Work:
        """Capture some work; the work of other threads of this process does not disturb it."""
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        # The outer of the two streams is the present one, which a capture that fails does not return to by itself.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream()), capture:
            work()
        self._first = self._first or graph
        return graph.replay


def with_graphs(stack: LayerStack, graphs: str) -> LayerStack:
    """Return a stack that has run nothing yet, or the same in fixed shapes.

    Args:
        stack: any.
        graphs: `auto` for a fused stack on CUDA; `on` wherever it is fused: on a CPU nothing is recorded, and the fixed
            shapes cost time; `off` never.
    """
    if isinstance(stack, StagedStack):
        return StagedStack([_in_fixed_shapes(stage, graphs) for stage in stack.stages])
    return _in_fixed_shapes(stack, graphs) if isinstance(stack, FusedStack) else stack


def _in_fixed_shapes(stack: FusedStack, graphs: str) -> FusedStack:
    cuda = stack.device.type == "cuda"
    if isinstance(stack, GraphedStack) or graphs == "off" or (graphs == "auto" and not cuda):
        return stack
    return GraphedStack.of(stack, CudaRecorder(stack.device) if cuda else None)

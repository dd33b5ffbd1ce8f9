"""Limits that are the same wherever they are needed: of user input, and of buffers.

Nothing here imports torch.
"""

MAX_INT = 2**31 - 1
"""The largest count of tokens, rows, steps and so on."""
WIDEST_PASS = 64
"""Rows of the widest pass that `width` may ask for."""
MAX_SEED = 2**63 - 1
"""The largest seed that all random number generators in use accept."""
CACHE_STEP = 256
"""The number of positions by which a KV cache grows, so that a longer text rarely needs a new one."""
FREE_ROWS = 512
"""The rows of a prompt that run together at free widths: enough to keep a processor busy, with small buffers."""
WIDEST = 16
"""Rows of the widest pass that keeps its buffers and masks; a prompt's are given back."""
WIDEST_FIXED = 32
"""Rows of the widest pass of a fixed shape, which a device records; that many pad the end of a text."""
SMALL_MATRIX = 1 << 18
"""Numbers of a layer's largest matrix below which float32 is not packed: a call costs more there than it saves
(benchmarks/processor.py)."""

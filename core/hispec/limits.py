"""Numbers that bound others, the same wherever they are needed: what users may ask for, and what is held at once.

Nothing here imports torch.
"""

MAX_INT = 2**31 - 1
"""The largest count of tokens, rows, steps and so on."""
WIDEST_PASS = 64
"""Rows of the widest pass that `width` may ask for."""
MAX_SEED = 2**63 - 1
"""The largest seed that all random number generators in use accept."""
CACHE_STEP = 256
"""Positions by which a KV cache grows: a longer text seldom needs a new one."""
FREE_ROWS = 512
"""Rows of a prompt that are run at once at free widths: enough to keep a processor busy, and buffers stay small."""
WIDEST = 16
"""Rows of the widest pass that keeps its buffers and masks; a prompt's are given back."""
WIDEST_FIXED = 32
"""Rows of the widest pass of a fixed shape, which a device records; that many pad the end of a text."""
SMALL_MATRIX = 1 << 18
"""Numbers of a layer's largest matrix below which float32 is not packed: a call costs more there than it saves
(benchmarks/processor.py)."""

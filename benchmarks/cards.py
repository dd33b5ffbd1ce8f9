"""Constants of GPUs that computations start from: `predict.py` and `devices.py` read them, `gpu.py` measures them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One kind of GPU.

    Attributes:
        read_tb_s: what it reads in practice, in TB/s.
        memory_gb: what it holds, in 10^9 bytes.
    """

    read_tb_s: float
    memory_gb: float


CARDS = {"H100": Card(3.0, 85.0), "H200": Card(4.3, 149.0)}
"""Nominally they read 3.35 and 4.8 TB/s."""

CROSS_US = 25.0
"""Microseconds for a few rows of hidden states from one GPU to the next."""
REDUCE_US = 15.0
"""Microseconds for the sum of a few rows over the GPUs of a node."""
REDUCE_BETWEEN_NODES_US = 45.0
"""The same over several nodes."""

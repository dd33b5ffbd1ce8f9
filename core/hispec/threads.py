"""Measures with how many threads a CPU decodes fastest.

Threads share the work of a matrix and wait for each other after each. A small model waits more than it computes, a large
one is fed by a memory that a few threads exhaust, a container may be granted less than the processors it sees, and
other processes may be using them.
"""

from collections.abc import Mapping
from time import perf_counter

import torch

from hispec.models.stack import LayerStack

SET_BY_USERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which users set the number of threads."""

SECONDS = 0.02
"""The least time for which each number of threads is measured."""

ROWS = (1, 4)
"""The rows of the spans that are timed: drafting a token, and verifying some."""

WORTH = 0.95
"""More threads must take less than this share of the time, since other processes could use them."""


def tune_threads(stack: LayerStack, environ: Mapping[str, str], known: int | None = None) -> int:
    """Set torch's number of threads to the fastest, unless the user has set one.

    Args:
        stack: a stack that is not decoding; one that is not on a CPU is left as it is.
        environ: environment variables.
        known: an earlier result for this model, which is used if the machine has as many cores.

    Returns:
        Threads that torch computes with from now on.
    """
    max_threads = torch.get_num_threads()
    shared = environ.get("WORLD_SIZE", "1") != "1"  # with processes whose launcher has shared them out
    if stack.device.type != "cpu" or max_threads == 1 or shared or any(environ.get(name) for name in SET_BY_USERS):
        return max_threads
    if known is None or not 1 <= known <= max_threads:
        known = fastest_threads(stack, max_threads)
    torch.set_num_threads(known)
    return known


def fastest_threads(stack: LayerStack, max_threads: int) -> int:
    """Time powers of two up to `max_threads`, and `max_threads`, until more are slower; torch's own number is
    restored.
    """
    before = torch.get_num_threads()
    best, seconds = 1, float("inf")
    try:
        for threads in sorted({*(1 << power for power in range(max_threads.bit_length())), max_threads}):
            torch.set_num_threads(threads)
            taken = _seconds(stack)
            if taken > seconds:
                break
            if taken < WORTH * seconds:
                best, seconds = threads, taken
    finally:
        torch.set_num_threads(before)
    return best


@torch.inference_mode()
def _seconds(stack: LayerStack) -> float:
    """Return the seconds of a layer and the head for one row and for several, the fastest of the runs that the time
    allows.
    """
    stack.cache.lease = None
    stack.reserve(max(ROWS))
    hidden = [stack.embed([0] * rows) for rows in ROWS]
    fastest, end = float("inf"), 0.0
    while not end or perf_counter() < end:
        begin = perf_counter()
        for rows in hidden:
            stack.head(stack.run(rows, 0, 1, 0))
        if end:  # the first time starts the threads
            fastest = min(fastest, perf_counter() - begin)
        else:
            end = perf_counter() + SECONDS
    return fastest

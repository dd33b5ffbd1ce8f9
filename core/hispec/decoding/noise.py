"""Gumbel noise that is a function of the seed, the position in the text and the token id, and of nothing else.

Adding it to log-probabilities and taking the argmax draws from the distribution (the Gumbel-max trick). Every level
adds the same noise at a position, so that a draft is the target's own token as often as their distributions agree
(Daliri, Musco and Suresh, *Coupling without communication and drafter-invariant speculative decoding*, 2024).
"""

from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

SEEDS = 1 << 64
"""Seeds are the whole numbers below this."""

POSITIONS_KEPT = 64
"""The number of positions whose noise is cached, more than ever wait for the target."""

_BITS = (1 << 32) - 1


class GumbelNoise:
    """The noise of one text.

    Args:
        seed: a whole number in [0, `SEEDS`).
        vocab_size: the target's vocabulary size.
        device: the device of the logits.
    """

    def __init__(self, seed: int, vocab_size: int, device: torch.device) -> None:
        self.seed = seed
        with torch.inference_mode(False):
            self._vocabulary = torch.arange(vocab_size, dtype=torch.int64, device=device)
        self._whole = lru_cache(POSITIONS_KEPT)(lambda position: self._of(position, self._vocabulary))

    def at(self, position: int, ids: Tensor | None = None) -> Tensor:
        """Return the noise of a position in the text, float32 [n].

        Args:
            position: the position of the token in the text.
            ids: the tokens that are possible there, int64 [n]; None for the whole vocabulary, whose noise is cached.
        """
        return self._whole(position) if ids is None else self._of(position, ids)

    def _of(self, position: int, ids: Tensor) -> Tensor:
        return gumbel(hash_ids(ids, self.seed, position))


def hash_ids(ids: Tensor, seed: int, position: int) -> Tensor:
    """Hash token ids to 32 bits each, keyed by seed and position.

    A counter-based generator (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011): the key is a BLAKE2b
    digest, made once a position; the ids go through two rounds of an integer mixer. Everything is exact in int64, so
    that every device computes the same bits.

    Args:
        ids: int64 [n], in [0, 2^32).
        seed: a whole number in [0, `SEEDS`).
        position: the position of the token in the text.

    Returns:
        int64 [n], in [0, 2^32), all different.
    """
    key = blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=8).digest()
    first, second = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")
    return _mix(_mix(ids ^ first) ^ second)


def gumbel(bits: Tensor) -> Tensor:
    """Turn hashes into standard Gumbel noise, float32: -log(-log(u)) with u = (bits + 1/2) / 2^32.

    The logarithms are taken in float64: u close to 1 keeps its distance from 1, which is the upper tail, and devices
    whose logarithms differ in the last bit still round to the same float32.
    """
    uniform = (bits.double() + 0.5) * 2.0**-32
    return uniform.log_().neg_().log_().neg_().float()


def _mix(bits: Tensor) -> Tensor:
    """Mix 32 bits, one to one (a multiply-and-shift mixer of Wellons' hash-prospector).

    Both multipliers are below 2^31, so that no product leaves int64.
    """
    bits = bits ^ (bits >> 15)
    bits.mul_(0x2C1B3C6D).bitwise_and_(_BITS).bitwise_xor_(bits >> 12)
    bits.mul_(0x297A2D39).bitwise_and_(_BITS)
    return bits.bitwise_xor_(bits >> 15)

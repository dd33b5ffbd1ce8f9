"""The sampling noise as a random number generator: a pure function, uniform, Gumbel, and independent in every argument."""

import math

import pytest
import torch

from hispec.decoding.noise import POSITIONS_KEPT, SEEDS, GumbelNoise, gumbel, hash_ids

IDS = torch.arange(20_000)
EULER = 0.5772156649
KNOWN = ([3112969031, 1652423157, 3810111296, 584561062], [534032216, 1205235214])


def noise(seed, vocab=20_000):
    return GumbelNoise(seed, vocab, torch.device("cpu"))


def p_value(counts, expected):
    """The chance of counts at least this far from what is expected, by chi-square."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2.0), statistic / 2))


def test_it_is_a_function_of_seed_position_and_token_alone():
    first, again = noise(5), noise(5)
    later = [again.at(position).clone() for position in (9, 3, 7, 3)]
    for at, position in enumerate((9, 3, 7, 3)):
        assert torch.equal(first.at(position), later[at])
    ids = torch.tensor([19_999, 4, 4, 123])
    assert torch.equal(first.at(3, ids), first.at(3)[ids])
    assert torch.equal(noise(5, 200).at(3), first.at(3)[:200])
    for position in range(3 * POSITIONS_KEPT):  # what is kept is bounded, and what comes back is the same
        first.at(position)
    assert torch.equal(first.at(3), later[1])


def test_known_values_stay_what_they_are():
    """The same on every machine and device, today and later: texts of a seed must not change."""
    assert hash_ids(torch.arange(4), 0, 0).tolist() == KNOWN[0]
    assert hash_ids(torch.tensor([0, 128_255]), SEEDS - 1, 2**40).tolist() == KNOWN[1]


def test_hashes_are_32_bits_and_never_collide():
    for seed, position in ((0, 0), (1, 0), (SEEDS - 1, 10**9)):
        bits = hash_ids(IDS, seed, position)
        assert bits.min() >= 0 and bits.max() < 2**32
        assert len(bits.unique()) == len(bits)


@pytest.mark.parametrize("seed", [0, 1, 2**63, SEEDS - 1])
def test_bits_are_uniform(seed):
    """Chi-square over 256 cells of the high and of the low byte; a false alarm in 100,000 a test."""
    bits = torch.cat([hash_ids(IDS, seed, position) for position in range(20)])
    for byte in (bits >> 24, bits & 255):
        assert p_value(torch.bincount(byte, minlength=256).double(), len(bits) / 256) > 1e-5


def test_mean_variance_and_both_tails_are_those_of_a_gumbel_variable():
    drawn = torch.cat([noise(seed).at(position) for seed in range(10) for position in range(10)]).double()
    count = len(drawn)
    assert abs(float(drawn.mean()) - EULER) < 5 * math.pi / math.sqrt(6 * count)
    assert abs(float(drawn.var()) - math.pi**2 / 6) < 0.02
    for level in (-2.0, -1.0, 0.0, 2.0, 5.0, 8.0, 11.0):
        chance = 1 - math.exp(-math.exp(-level))
        assert abs(int((drawn > level).sum()) - count * chance) < 5 * math.sqrt(count * chance * (1 - chance) + 1), (
            level
        )


def test_the_extremes_are_finite():
    lowest, highest = gumbel(torch.tensor([0, 2**32 - 1])).tolist()
    assert lowest == pytest.approx(-math.log(33 * math.log(2)), abs=1e-3)
    assert highest == pytest.approx(33 * math.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0, 0), (0, 1, 0)),
        ((0, 7, 0), (0, 8, 0)),
        ((0, 0, 0), (1, 0, 0)),
        ((0, 0, 0), (2**32, 0, 0)),
        ((3, 1, 0), (1, 3, 0)),
        ((0, 1, 0), (1, 0, 0)),
        ((0, 0, 0), (0, 0, 1)),
        ((0, 0, 0), (0, 0, 256)),
        ((0, 5, 0), (0, 6, 1)),
    ],
)
def test_neighbours_are_uncorrelated(one, other):
    """Between (seed, position, token offset)s: 20,000 tokens, five standard deviations."""
    first, second = (noise(s, 30_000).at(p)[t : t + 20_000].double() for s, p, t in (one, other))
    correlation = float(torch.corrcoef(torch.stack((first, second)))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("vocab", [2, 3, 16])
def test_draws_of_consecutive_positions_and_seeds_are_uniform_and_pairwise_independent(vocab):
    """The token that wins among equally probable ones: pairs of neighbours, by chi-square."""
    by_position = torch.stack([noise(1, vocab).at(at) for at in range(20_000)]).argmax(-1)
    by_seed = torch.stack([noise(seed, vocab).at(0) for seed in range(20_000)]).argmax(-1)
    for winners in (by_position, by_seed):
        pairs = winners[::2] * vocab + winners[1::2]
        assert p_value(torch.bincount(pairs, minlength=vocab**2).double(), len(pairs) / vocab**2) > 1e-5

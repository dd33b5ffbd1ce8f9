"""A toy language model whose every distribution can be written down, for tests of the distribution of samples."""

from itertools import product

import torch

from hispec.decoding.engine import Ending, decode
from hispec.decoding.guesses import Guesser
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.policies import StaticPolicy
from hispec.decoding.rules import Speculative
from hispec.decoding.sampling import Randomness
from hispec.decoding.state import DecodingState
from hispec.events import Committed


class ToyStack:
    """A `LayerStack` whose exits are tables: the logits depend on the exit, the last token and the one before.

    The token before is read from a cache of its own, so a stale row gives wrong logits.
    """

    def __init__(self, tables, name="toy"):
        self.tables = tables  # per exit 1..L: [vocab, vocab, vocab]
        self.name, self.num_layers, self.context = name, len(tables), 1 << 30
        self.vocab_size = tables[0].shape[-1]
        self._seen = [[] for _ in tables]

    @classmethod
    def random(cls, layers, vocab, seed, agreement=1.0, scale=1.5):
        """Exits that resemble the last one the more, the deeper they are."""
        dice = torch.Generator().manual_seed(seed)
        last = torch.randn(vocab, vocab, vocab, generator=dice) * scale
        tables = []
        for layer in range(1, layers + 1):
            share = agreement * layer / layers
            noise = torch.randn(vocab, vocab, vocab, generator=dice) * scale
            tables.append(last if layer == layers else share * last + (1 - share) * noise)
        return cls(tables)

    def reserve(self, positions):
        self._seen = [[None] * positions for _ in self.tables]

    def embed(self, token_ids):
        return torch.tensor([[token, 0, 0] for token in token_ids])

    def run(self, hidden, start_layer, end_layer, position):
        rows = []
        for i, (token, _, layer) in enumerate(hidden.tolist()):
            assert layer == start_layer, "a span must resume where the level below stopped"
            for seen in self._seen[start_layer:end_layer]:
                seen[position + i] = token
            before = self._seen[end_layer - 1][position + i - 1] if position + i else 0
            rows.append([token, before, end_layer])
        return torch.tensor(rows)

    def head(self, hidden):
        return torch.stack([self.tables[layer - 1][before, token] for token, before, layer in hidden.tolist()])


def joint(stack, sampling, prompt, length):
    """The exact probability of every continuation of `length` tokens, [vocab ** length], by enumeration."""
    table, vocab = stack.tables[-1], stack.vocab_size
    probabilities = []
    for continuation in product(range(vocab), repeat=length):
        text, chance = list(prompt), 1.0
        for token in continuation:
            logits = table[text[-2], text[-1]][None]
            chance *= float(sampling.distribution(logits, text)[0, token])
            text.append(token)
        probabilities.append(chance)
    return torch.tensor(probabilities, dtype=torch.float64)


def draw_many(levels, sampling, prompt, length, draws, *, n_d=2, n_i=3, seed=0, blocks=False, ngram=None, rule=None):
    """How often each continuation of `length` tokens came out, [vocab ** length]."""
    hierarchy = Hierarchy(levels)
    vocab = levels[-1].stack.vocab_size
    rule = rule or Speculative(sampling, Randomness(seed), blocks)
    policy = StaticPolicy.of(hierarchy, n_d, n_i)
    counts = torch.zeros(vocab**length, dtype=torch.float64)
    for _ in range(draws):
        state = DecodingState(hierarchy, prompt, len(prompt) + length)
        guesser = Guesser(*ngram) if ngram else None
        index = 0
        for event in decode(state, policy, rule, Ending(length), guesser):
            if isinstance(event, Committed):
                for token in event.token_ids:
                    index = index * vocab + token
        counts[index] += 1
    return counts


def chi_square(counts, probabilities):
    """The probability of counts at least this far from what is expected, if they were drawn as they should be.

    Cells of fewer than five expected counts are pooled.
    """
    expected = probabilities / probabilities.sum() * counts.sum()
    assert counts[probabilities == 0].sum() == 0, "something impossible was drawn"
    large = expected >= 5
    observed = torch.cat((counts[large], counts[~large].sum()[None]))
    wanted = torch.cat((expected[large], expected[~large].sum()[None]))
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2), statistic / 2))


def exits_of(stack, *exits, guesses=False):
    """Levels of one stack, with a level of guesses beneath if asked."""
    levels = [Level(f"exit {exit_layer}", stack, exit_layer) for exit_layer in exits]
    return [*([Level("guesses", None, 0)] if guesses else []), *levels, Level("target", stack, stack.num_layers)]

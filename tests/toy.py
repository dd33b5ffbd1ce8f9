"""A toy language model whose every distribution can be written down, and how drawn texts are compared with it."""

from contextlib import contextmanager
from itertools import chain, product, repeat
from threading import RLock

import torch

from hispec.decoding.engine import StopCriteria, decode
from hispec.decoding.hierarchy import Hierarchy, Level
from hispec.decoding.noise import GumbelNoise
from hispec.decoding.sampling import Sampler
from hispec.decoding.state import DecodingState
from hispec.models.rows import RowCounts
from hispec.models.stack import ReducedHead, write_stepwise
from hispec.policies.static import StaticPolicy


class ToyCache:
    """Per layer and position, the token that was run, and whether by the owner."""

    def __init__(self):
        self.rows, self.lease, self.lock = [], None, RLock()

    @contextmanager
    def borrowed(self, positions):
        lease, rows = self.lease, [list(row) for row in self.rows]
        yield
        self.lease, self.rows[:] = lease, rows


class ToyStack:
    """A `LayerStack` whose exits are tables: the logits depend on the exit, the last token and the one before.

    The token before is read from a cache of its own, so a stale row gives wrong logits. A hidden state is one number
    that encodes (layer, token before, token); single rows are kept ready, as most draws are of single rows.

    With `shares` it reads the cache of another stack, and may not read rows of its own from where that one has run; the
    owner of a cache reads another token from a row that is not its own.
    """

    def __init__(self, tables, name="toy", shares=None):
        self.tables = tables  # per exit 1..L: [vocab, vocab, vocab]
        self.name, self.num_layers, self.context = name, len(tables), 1 << 30
        self.vocab_size = vocab = tables[0].shape[-1]
        self.cache = ToyCache() if shares is None else shares.cache
        self._owns = shares is None
        self.rows, self.device = RowCounts(), torch.device("cpu")
        self.kind, self.dtype = "toy", torch.float32
        self._logits = torch.cat((torch.full((vocab**2, vocab), torch.nan), *(t.view(-1, vocab) for t in tables)))
        self._rows = list(torch.arange(len(self._logits))[:, None, None])
        self._logits_of_row = list(self._logits[:, None])

    @classmethod
    def random(cls, layers, vocab, seed, agreement=1.0, scale=1.5, opposed=False):
        """Exits that resemble the last one the more, the deeper they are; `opposed`: the first is its negative."""
        rng = torch.Generator().manual_seed(seed)
        last = torch.randn(vocab, vocab, vocab, generator=rng) * scale
        tables = []
        for layer in range(1, layers + 1):
            share = agreement * layer / layers
            noise = torch.randn(vocab, vocab, vocab, generator=rng) * scale
            tables.append(last if layer == layers else share * last + (1 - share) * noise)
        return cls([-last, *tables[1:]] if opposed else tables)

    def near(self, share, seed):
        """A stack whose exits resemble this one's."""
        rng = torch.Generator().manual_seed(seed)
        return ToyStack(
            [share * table + torch.randn(table.shape, generator=rng) * (1 - share) for table in self.tables]
        )

    def reserve(self, positions):
        if self._owns:
            self.cache.rows = [[None] * positions for _ in self.tables]

    def clear(self):
        pass

    def embed(self, token_ids):
        return self._hidden(token_ids)

    def write_run(self, *arguments):
        return write_stepwise(self, *arguments)

    def run(self, hidden, start_layer, end_layer, position, *, prompt=False):
        rows = []
        for at, (code,) in enumerate(hidden.tolist(), start=position):
            layer, token = code // self.vocab_size**2, code % self.vocab_size
            assert layer == start_layer, "a span must resume where the level below stopped"
            for seen in self.cache.rows[start_layer:end_layer]:
                seen[at] = token, self._owns
            before, of_owner = self.cache.rows[end_layer - 1][at - 1] if at else (0, True)
            if self._owns and not of_owner:
                before = (before + 1) % self.vocab_size
            rows.append((end_layer * self.vocab_size + before) * self.vocab_size + token)
        return self._hidden(rows)

    def head(self, hidden, reduced=None):
        logits = self._logits_of_row[hidden.item()] if len(hidden) == 1 else self._logits[hidden[:, 0]]
        return logits if reduced is None else logits[:, reduced.ids]

    def reduce_head(self, ids):
        return ReducedHead(ids, ids)

    def _hidden(self, codes):
        return self._rows[codes[0]] if len(codes) == 1 else torch.tensor(codes)[:, None]


def joint(stack, sampling, prompt, length, eos=()):
    """The exact probability of every continuation of `length` tokens, [vocab ** length], by enumeration.

    After an end of text, 0 fills it up.
    """
    table, vocab = stack.tables[-1], stack.vocab_size
    probabilities = []
    for continuation in product(range(vocab), repeat=length):
        text, chance = list(prompt), 1.0
        for token in continuation:
            if text[-1] in eos and len(text) > len(prompt):
                chance *= token == 0
                text.append(text[-1])
                continue
            logits = table[text[-2], text[-1]][None]
            chance *= float(sampling.warp(sampling.processors(logits, text)[0]).softmax(-1)[token])
            text.append(token)
        probabilities.append(chance)
    return torch.tensor(probabilities, dtype=torch.float64)


def sampler_of(levels, sampling, seed):
    """The sampler of one text."""
    stack = levels[-1].stack
    return Sampler(sampling, None if sampling.greedy else GumbelNoise(seed, stack.vocab_size, stack.device))


def write(levels, sampler, prompt, length, *, n_d=2, n_i=3, eos=(), policy_of=None):
    """One continuation of at most `length` tokens; after an end of text, 0 fills it up."""
    hierarchy = Hierarchy(levels)
    state = DecodingState(hierarchy, prompt, len(prompt) + length)
    policy = policy_of(hierarchy) if policy_of else StaticPolicy.of(hierarchy, n_d, n_i)
    for _ in decode(state, policy, sampler, StopCriteria(length, eos)):
        pass
    written = state.tokens[len(prompt) : state.committed]
    return written + [0] * (length - len(written))


@torch.inference_mode()
def draw_many(levels, sampling, prompt, length, draws, **lengths):
    """The number of times that each continuation of `length` tokens occurred, [vocab ** length]; each has its own
    seed.
    """
    counts = torch.zeros([levels[-1].stack.vocab_size] * length, dtype=torch.float64)
    for seed in range(draws):
        counts[tuple(write(levels, sampler_of(levels, sampling, seed), prompt, length, **lengths))] += 1
    return counts.flatten()


@torch.inference_mode()
def draw_windows(levels, sampling, windows, history, **lengths):
    """The number of times that each token followed each history of that many tokens, [vocab ** history, vocab].

    Texts of thirty tokens, each with its own seed like answers; every token that is written is counted.
    """
    vocab, prompt, each = levels[-1].stack.vocab_size, [0, 1] * history, 30
    counts = torch.zeros([vocab] * (history + 1), dtype=torch.float64)
    for seed in range(-(-windows // each)):
        sampler = sampler_of(levels, sampling, seed)
        text = prompt[-history:] + write(levels, sampler, prompt[-history:], each, **lengths)
        for at in range(each):
            counts[tuple(text[at : at + history + 1])] += 1
    return counts.view(-1, vocab)


def transitions(stack, sampling, history):
    """The exact probability of each word after each history, [vocab ** history, vocab]."""
    table = stack.tables[-1].view(-1, stack.vocab_size)
    rows = torch.stack([sampling.warp(row) for row in table])
    return rows.softmax(-1).double().repeat(stack.vocab_size ** (history - 2), 1)


def chi_square(counts, probabilities):
    """The probability of counts at least this far from what is expected, if they were drawn as they should be.

    Args:
        counts: [cells], or [histories, cells] where the words after each history are counted apart. Consecutive words
            of a text may be counted so: given its history each is a fresh draw, so the deviations of different
            histories are uncorrelated (martingale differences) although the windows overlap.
        probabilities: the expected probabilities, of the same shape; rows sum to 1. Cells with fewer than five expected
            are pooled.
    """
    counts, probabilities = counts.view(-1, counts.shape[-1]), probabilities.view(-1, counts.shape[-1])
    assert counts[probabilities == 0].sum() == 0, "something impossible was drawn"
    expected = probabilities / probabilities.sum(-1, keepdim=True) * counts.sum(-1, keepdim=True)
    small = expected < 5
    observed = torch.cat((counts.masked_fill(small, 0), (counts * small).sum(-1, keepdim=True)), -1)
    wanted = torch.cat((expected.masked_fill(small, 0), (expected * small).sum(-1, keepdim=True)), -1)
    used = wanted > 0
    statistic = ((observed - wanted) ** 2)[used].div(wanted[used]).sum()
    freedom = (used.sum(-1) - 1).clamp(min=0).sum()
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def exits_of(stack, *exits, ngrams=None, words=()):
    """Levels of one stack; `ngrams` are (longest, tokens) of n-gram drafts, `words` the token ids that the first exits
    have.
    """
    heads = [None if known is None else stack.reduce_head(torch.tensor(known)) for known in words]
    levels = [
        Level(f"exit {exit_layer}", stack, exit_layer, head)
        for exit_layer, head in zip(exits, chain(heads, repeat(None)), strict=False)
    ]
    return [*([Level.of_ngrams(*ngrams)] if ngrams else []), *levels, Level("target", stack, stack.num_layers)]

"""Break the engine on purpose, one rule at a time, and name the test that notices: `python -m tests.mutations`.

Numbers run some of the mutations only: `python -m tests.mutations 3 8-11`. Each mutation changes a copy of the sources;
the working tree stays as it is. Exits 1 if any goes unnoticed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """One change of one file, and the tests that may notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


DISTRIBUTION, LOSSLESS, STATE = "test_distribution.py", "test_lossless.py", "test_state.py"
CONVERSATION = "../test_conversation.py"
GRAPHS, ROWS, API = "../models/test_graphs.py", "../models/test_rows.py", "../test_api.py"
SHARDING = "../models/test_sharding.py"
CONFIGS = "../models/test_odd_configs.py"
ARMS, DETOKENIZER, TEMPLATES = "../bench/test_arms.py", "../test_detokenizer.py", "../test_chat_template.py"
MUTATIONS = (
    Mutation(
        "a bias added by every rank",
        "../models/sharding.py",
        "        if self.rank and len(whole) == 1",
        "        if False and len(whole) == 1",
        SHARDING,
    ),
    Mutation(
        "ranks that do not add what the others computed",
        "../models/sharding.py",
        "return self._gathered(product).sum(0)",
        "return product",
        SHARDING,
    ),
    Mutation(
        "the logits of ranks in another order",
        "../models/sharding.py",
        "return self._gathered(logits).transpose(0, 1)",
        "return self._gathered(logits).flip(0).transpose(0, 1)",
        SHARDING,
    ),
    Mutation(
        "fixed shapes of several widths",
        "../models/graphs.py",
        "self._allocate(self.rows.counts or WIDTHS)\n\n    def prepare_as",
        "self._allocate(WIDTHS)\n\n    def prepare_as",
        GRAPHS,
    ),
    Mutation(
        "noise that depends on the level",
        "sampling.py",
        "self.noise.at(position)",
        "self.noise.at(position + len(logits.level))",
        DISTRIBUTION,
    ),
    Mutation(
        "noise that depends on how often a position was visited",
        "noise.py",
        "        return gumbel(",
        "        self.seed += 1\n        return gumbel(",
        "test_noise.py",
    ),
    Mutation(
        "the same noise at two positions", "noise.py", "position.to_bytes", "(position // 2).to_bytes", DISTRIBUTION
    ),
    Mutation(
        "drafts without the mask",
        "engine.py",
        "self.samplers = [*[sampler] * self.target",
        "self.samplers = [*[Sampler(Sampling(sampler.sampling.temperature), sampler.noise)] * self.target",
        "test_mask.py",
    ),
    Mutation(
        "n-gram drafts without the mask",
        "drafters.py",
        "        if self.mask is not None:\n",
        "        if False:\n",
        "test_mask.py",
    ),
    Mutation(
        "a mask that processors can leave nothing of",
        "mask.py",
        "stuck = left.amax(-1, keepdim=True).isneginf()",
        "stuck = left.amax(-1, keepdim=True).isnan()",
        "test_mask.py",
    ),
    Mutation(
        "a grammar that remembers rejected tokens",
        "../grammar_mask.py",
        "self._matcher.rollback(len(self._taken) - shared)",
        "len(self._taken)",
        "../test_grammar.py",
    ),
    Mutation(
        "a grammar that keeps what might have followed rejected tokens",
        "../grammar_mask.py",
        "for at, found in self._found.items() if at <= shared}",
        "for at, found in self._found.items()}",
        "../test_grammar.py",
    ),
    Mutation(
        "a grammar too complex to go on, and the rest of the answer free",
        "../grammar_mask.py",
        "        if self._matcher.is_error():\n            raise self._grammar.refused(",
        "        if False:\n            raise self._grammar.refused(",
        "../test_grammar.py",
    ),
    Mutation(
        "log-probabilities of the options told as the model's own",
        "logprobs.py",
        "len(prefix), logits.own, after.own",
        "len(prefix), after.own, after.own",
        "test_logprobs.py",
    ),
    Mutation("the same noise for two seeds", "noise.py", "seed.to_bytes", "(seed // 2).to_bytes", "test_noise.py"),
    Mutation(
        "noise of the place in the pass, not in the text",
        "sampling.py",
        "len(prefix) + i)",
        "i)",
        DISTRIBUTION,
    ),
    Mutation(
        "probabilities in the logits' own dtype", "sampling.py", "logits.float() /", "logits /", "test_sampling.py"
    ),
    Mutation(
        "a token accepted by a lower level and never verified by the target",
        "state.py",
        "for j in range(level + 1):",
        "for j in range(len(self.verified) if level else 1):",
        LOSSLESS,
    ),
    Mutation(
        "the target lenient too",
        "engine.py",
        "level < self.target and self.sampler.lower_top_k > 1",
        "self.sampler.lower_top_k > 1",
        LOSSLESS,
    ),
    Mutation(
        "n-grams past a tentative end of text",
        "drafters.py",
        "        count = next((at for at, token in enumerate(found, 1) if token in self.eos_ids), len(found))\n",
        "        count = len(found)\n",
        LOSSLESS,
    ),
    Mutation(
        "tentative tokens remembered",
        "drafters.py",
        "len(tokens) if committed is None else committed",
        "len(tokens)",
        "test_drafters.py",
    ),
    Mutation(
        "what followed an n-gram first, not last",
        "ngram_cache.py",
        "self._after[tuple(self._texts[at - length :])] = at",
        "self._after.setdefault(tuple(self._texts[at - length :]), at)",
        "test_ngram_cache.py",
    ),
    Mutation("texts without bound", "ngram_cache.py", "> MAX_TOKENS:", "> 1e9:", "test_ngram_cache.py"),
    Mutation(
        "a benchmark that copies its earlier answer to the same prompt",
        "../bench/arms.py",
        "in self._asked:",
        "is None:",
        "../test_lookup.py",
    ),
    Mutation(
        "a run past a tentative end of text",
        "drafters.py",
        "            if token in self.eos_ids or not another:\n",
        "            if not another:\n",
        LOSSLESS,
    ),
    Mutation(
        "a draft past the context of another model",
        "engine.py",
        "min(self.reach, self.limit) - length",
        "self.limit - length",
        LOSSLESS,
    ),
    Mutation(
        "the context of the first other model only",
        "engine.py",
        "min(others, default=self.limit)",
        "(others or [self.limit])[0]",
        LOSSLESS,
    ),
    Mutation(
        "a frontier not lowered",
        "state.py",
        "            self.frontier[j] = min(self.frontier[j], length)\n",
        "            pass\n",
        LOSSLESS,
    ),
    Mutation(
        "a frontier counted before its span is run",
        "state.py",
        "            of_prompt = start < self.prompt_length\n",
        "            of_prompt = start < self.prompt_length\n            self.frontier[level] = upto\n",
        LOSSLESS,
    ),
    Mutation(
        "hidden states kept after a rejection",
        "state.py",
        "self._carried[j] = kept[: self.frontier[j] - self.frontier[above]]",
        "self._carried[j] = kept",
        LOSSLESS,
    ),
    Mutation(
        "drafting past a tentative end of text",
        "engine.py",
        "(tokens[-1] in self.stop.eos_ids or len(tokens) >= self.reach)",
        "len(tokens) >= self.reach",
        LOSSLESS,
    ),
    Mutation(
        "one token more taken over than two texts share",
        "state.py",
        "known = min(shared, earlier",
        "known = min(shared + 1, len(self.tokens) - 1, earlier",
        CONVERSATION,
    ),
    Mutation(
        "an answer takes over the cache by the shallowest level's frontier",
        "state.py",
        "            if level.exit_layer >= exit_layer:\n",
        "            if True:\n",
        STATE,
    ),
    Mutation(
        "a level at lower precision that writes over rows of the target",
        "state.py",
        "for j in (*self.hierarchy.beneath[level], level):",
        "for j in (level,):",
        STATE,
    ),
    Mutation(
        "hidden states resumed from below another precision",
        "hierarchy.py",
        "beneath[-1] if beneath and levels[beneath[-1]].stack is level.stack else None",
        "next((i for i in reversed(beneath) if levels[i].stack is level.stack), None)",
        STATE,
    ),
    Mutation(
        "rows of another precision taken over as the target's",
        "state.py",
        "            if level.stack is not stack:",
        "            if False:",
        STATE,
    ),
    Mutation(
        "a bonus after an end of text",
        "engine.py",
        "self.state.hierarchy.below[level] is None and self.may_draft()",
        "self.state.hierarchy.below[level] is None",
        STATE,
    ),
    Mutation(
        "a cache that another decoding has overwritten",
        "state.py",
        "        if stack.cache.lease is not self._lease:\n            return 0\n",
        "",
        CONVERSATION,
    ),
    Mutation(
        "rows of an answer taken for rows of a prompt",
        "state.py",
        "            if not stack.rows.interchangeable:",
        "            if False:",
        STATE,
    ),
    Mutation(
        "a pass of another width",
        "../models/rows.py",
        "return rows if self.free else next(",
        "return rows or next(",
        ROWS,
    ),
    Mutation(
        "wide counts that are tried at their first places only",
        "../models/rows.py",
        "    if not narrow or narrow == tuple(counts):",
        "    if counts:",
        ROWS,
    ),
    Mutation(
        "packed weights whose row counts are taken for equal",
        "../models/linear.py",
        "        return equal_counts(compute, candidates, len(text))",
        "        return candidates",
        "../models/test_linear.py",
    ),
    Mutation(
        "attention that looks as far as the pass reaches",
        "../models/rows.py",
        "return end if self.free else",
        "return end if True else",
        ROWS,
    ),
    Mutation(
        "steps without the lock of their models",
        "state.py",
        "                locks.enter_context(stack.cache.lock)",
        "                pass",
        API,
    ),
    Mutation(
        "verify compares the hierarchy with itself",
        "../api.py",
        "decoder = self.decoder(Hierarchy([self.hierarchy.target]), generation.grammar)",
        "decoder = self.decoder(None, generation.grammar)",
        API,
    ),
    Mutation(
        "what one answer taught forgotten in the next",
        "../api.py",
        "if key not in known:",
        "if True:",
        "../test_step_timing.py",
    ),
    Mutation(
        "a span that is done already counted again",
        "../policies/step_costs.py",
        "if level is None or level <= above else",
        "if level is None else",
        "../test_step_timing.py",
    ),
    Mutation(
        "tokens after an end kept",
        "state.py",
        "if token in eos_ids), count)",
        "if False), count)",
        LOSSLESS,
    ),
    Mutation(
        "a run on the device whose states are those of its last token, too",
        "state.py",
        "self._reach(level, at + count - 1)",
        "self._reach(level, at + count)",
        GRAPHS,
    ),
    Mutation(
        "a position that a recording holds on to",
        "../models/graphs.py",
        "            positions,\n            width,\n",
        "            int(positions[0]),\n            width,\n",
        GRAPHS,
    ),
    Mutation(
        "recordings of a cache that is no more",
        "../models/graphs.py",
        "self._recorded.clear()  # they replay",
        "pass  # they replay",
        GRAPHS,
    ),
    Mutation(
        "custom_generate penalises in the model's dtype",
        "processors.py",
        "logits.to(torch.float32, copy=True)",
        "logits.clone()",
        "../test_transformers_generate.py",
    ),
    Mutation(
        "only the first of the generation config's eos ids",
        "../generation.py",
        "ids = value if isinstance(value, list)",
        "ids = value[:1] if isinstance(value, list)",
        "../test_generation.py",
    ),
    Mutation(
        "a difference measured on logits that are not processed",
        "../api.py",
        "sampler.scores(state.logits(0, len(text) - 1, len(text)), text).top_two()",
        "state.logits(0, len(text) - 1, len(text)).top_two()",
        "../test_generation.py",
    ),
    Mutation(
        "the arms of transformers inherit the checkpoint's generation config",
        "../models/loading.py",
        "            generation_config=GenerationConfig(),  # the checkpoint's own is read, and its options applied, elsewhere\n",
        "",
        "../test_generation.py",
    ),
    Mutation(
        "every row processed with the whole text",
        "processors.py",
        "text[:, : len(prefix) + i]",
        "text",
        "test_processors.py",
    ),
    Mutation(
        "the final soft cap of logits forgotten",
        "../models/transformers_stack.py",
        "return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)",
        "return logits",
        CONFIGS,
    ),
    Mutation(
        "Qwen's window forgotten when the configuration is read directly",
        "../models/config.py",
        "    window = window_of(values)\n    if",
        '    window = window_of(values) if original or "q" not in name else None\n    if',
        CONFIGS,
    ),
    Mutation(
        "only the first end of text of the configuration",
        "../models/config.py",
        "(value,) if isinstance(value, int) else value)",
        "(value,) if isinstance(value, int) else value[:1])",
        CONFIGS,
    ),
    Mutation(
        "tokens after a stop text kept",
        "../text.py",
        "        if text.stopped:\n            break\n",
        "",
        API,
    ),
    Mutation(
        "tokens after a stop text in events",
        "../text.py",
        "token_ids=event.token_ids[:count], text=piece",
        "text=piece",
        API,
    ),
    Mutation(
        "tokens after a stop text kept in a benchmark",
        "../bench/arms.py",
        "            if self.stopped:\n                break\n",
        "",
        ARMS,
    ),
    Mutation(
        "special tokens that are no part of a stop text",
        "../text.py",
        "self._specials.append((len(text), special))",
        "pass",
        API,
    ),
    Mutation(
        "bytes shown before their run ends",
        "../detokenizer.py",
        "if kind.byte:",
        "if False:",
        DETOKENIZER,
    ),
    Mutation(
        "text after a blank token stripped as if it were the first",
        "../detokenizer.py",
        "text.strip() and (not",
        "(not",
        DETOKENIZER,
    ),
    Mutation(
        "text shown that cleaning up may change",
        "../detokenizer.py",
        "        if self._cleans:\n",
        "        if False:\n",
        DETOKENIZER,
    ),
    Mutation(
        "control tokens of a message taken for the template's",
        "../chat_template.py",
        "        starts = self._spelled(messages, text)\n",
        "        starts = set()\n",
        TEMPLATES,
    ),
    Mutation(
        "a template's own control token taken for a message's",
        "../chat_template.py",
        "set.intersection(*found)",
        "set.union(*found)",
        TEMPLATES,
    ),
    Mutation(
        "rope_scaling beside rope_parameters ignored",
        "../models/config.py",
        'return values.get("rope_scaling") or values.get("rope_parameters") or {}',
        'return values.get("rope_parameters") or {}',
        CONFIGS,
    ),
    Mutation(
        "the head of a tied checkpoint's own ignored",
        "../models/loading.py",
        "        config = _untied(config, tensors)\n",
        "",
        CONFIGS,
    ),
)


def first_failure(mutation: Mutation) -> str | None:
    """The test that fails once the mutation is in, or None."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "core"
        shutil.copytree(ROOT / "core", source, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "profiles", Path(folder) / "profiles")
        path = source / "hispec" / "decoding" / mutation.file
        text = path.read_text(encoding="utf-8")
        if mutation.old not in text:
            raise SystemExit(f"{mutation.name}: {mutation.file} no longer says {mutation.old!r}; mend the mutation")
        path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "--draws=4000",  # enough for mutations: what is rarer than that is for the whole suite
                f"tests/hispec/decoding/{mutation.tests}",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(source), str(ROOT)))},
            capture_output=True,
            text=True,
        )
    failed = re.search(r"^FAILED \S*::(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return failed.group(1) if failed else None


def chosen(arguments: list[str]) -> list[int]:
    """Return the numbers of the mutations to run: those given, as `3` or `8-11`, or all."""
    numbers = []
    for argument in arguments:
        first, _, last = argument.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers or list(range(len(MUTATIONS)))


def main() -> None:
    """Print one line for each mutation: its number, its name, and the test that noticed it."""
    unnoticed = 0
    for number in chosen(sys.argv[1:]):
        mutation = MUTATIONS[number]
        failure = first_failure(mutation)
        unnoticed += failure is None
        print(f"{number:>2} {mutation.name:<50} -> {failure or 'NOT NOTICED'}", flush=True)
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()

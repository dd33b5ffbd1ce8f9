"""Break the engine on purpose, one rule at a time, and name the test that notices: `python -m tests.mutations`.

Each mutation changes a copy of the sources; the working tree stays as it is. Exits 1 if any goes unnoticed.
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


DISTRIBUTION, LOSSLESS, CONVERSATION = "test_distribution.py", "test_lossless.py", "../test_conversation.py"
GRAPHS = "../models/test_graphs.py"
CONFIGS = "../models/test_odd_configs.py"
MUTATIONS = (
    Mutation("the draft's q in the target's ratio", "state.py", "if drawn_from:", "if False:", DISTRIBUTION),
    Mutation(
        "one random stream for all purposes",
        "sampling.py",
        "{self._seed}/{level}/{purpose}",
        "{self._seed}",
        DISTRIBUTION,
    ),
    Mutation(
        "a drawn token dropped for its value",
        "engine.py",
        "        return tuple(self.state.tokens[before:])\n",
        "        if self.state.tokens[-1] == 0:\n"
        "            self.state.rewind(len(self.state.tokens) - 1)\n"
        "            self.draw(0)\n"
        "        return tuple(self.state.tokens[before:])\n",
        DISTRIBUTION,
    ),
    Mutation(
        "the judging level picked by the token's value",
        "engine.py",
        "            case Judge(level):\n",
        "            case Judge(level):\n"
        "                level = len(self.names) - 1 if self.state.tokens[-1] == 0 else level\n",
        DISTRIBUTION,
    ),
    Mutation(
        "a tentative end of text judged by the target at once",
        "engine.py",
        "            case Judge(level):\n",
        "            case Judge(level):\n"
        "                level = level if self.may_draft() or len(self.state.tokens) >= self.limit else -1 % len(self.names)\n",
        DISTRIBUTION,
    ),
    Mutation(
        "one random stream for all levels",
        "sampling.py",
        "{self._seed}/{level}/{purpose}",
        "{self._seed}/{purpose}",
        DISTRIBUTION,
    ),
    Mutation(
        "one random stream for a level's purposes",
        "sampling.py",
        "{self._seed}/{level}/{purpose}",
        "{self._seed}/{level}",
        "test_sampling.py",
    ),
    Mutation(
        "guesses past a tentative end of text",
        "engine.py",
        "            if token in self.ending.eos_ids:\n                break\n",
        "",
        LOSSLESS,
    ),
    Mutation(
        "a run past a tentative end of text",
        "state.py",
        "            if token in ends or not another:\n",
        "            if not another:\n",
        LOSSLESS,
    ),
    Mutation(
        "a run past the context of another model",
        "engine.py",
        "min(self.reach, self.limit)) - before",
        "self.limit) - before",
        LOSSLESS,
    ),
    Mutation(
        "refused tokens redrawn from p, not the residual",
        "rules.py",
        "rest = (share * p - q).clamp(min=0)",
        "rest = p",
        DISTRIBUTION,
    ),
    Mutation(
        "a guess judged as if it were certain", "rules.py", "u[i] * _chance(q[i], token)", "u[i] * 0", DISTRIBUTION
    ),
    Mutation(
        "a block's residual without its share",
        "rules.py",
        "accepted, share = i + 1, keep",
        "accepted, share = i + 1, 1.0",
        DISTRIBUTION,
    ),
    Mutation(
        "a frontier not lowered",
        "state.py",
        "            self.frontier[j] = min(self.frontier[j], length)\n",
        "            pass\n",
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
        "the target lenient too",
        "rules.py",
        "self.lower_top_k > 1 and level < self.target",
        "self.lower_top_k > 1",
        LOSSLESS,
    ),
    Mutation(
        "drafting past a tentative end of text",
        "engine.py",
        "(tokens[-1] in self.ending.eos_ids or len(tokens) >= self.reach)",
        "len(tokens) >= self.reach",
        LOSSLESS,
    ),
    Mutation(
        "one token more taken over than two texts share",
        "state.py",
        "known = min(shared, ",
        "known = min(shared + 1, len(self.tokens) - 1, ",
        CONVERSATION,
    ),
    Mutation(
        "a cache that another decoding has overwritten",
        "state.py",
        "        if stack.lease is not self._lease:\n            return 0\n",
        "",
        CONVERSATION,
    ),
    Mutation(
        "tokens after an end kept",
        "state.py",
        "if word in ends), count)",
        "if False), count)",
        GRAPHS,
    ),
    Mutation(
        "a run on the device whose states are those of its last token, too",
        "state.py",
        "self.frontier[reached] = at + count - 1",
        "self.frontier[reached] = at + count",
        GRAPHS,
    ),
    Mutation(
        "a position that a recording holds on to",
        "../models/graphs.py",
        "            positions,\n            length,\n            grouped",
        "            int(positions[0]),\n            length,\n            grouped",
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
        "masks measured by a cache that has grown without them",
        "../models/fused_stack.py",
        "narrow(1, self._tabulated - position, position + rows)",
        "narrow(1, self.cache.positions - position, position + rows)",
        GRAPHS,
    ),
    Mutation(
        "recordings given up only once the cache has grown",
        "../models/graphs.py",
        "            self._recorded.clear()  # they replay into memory that is no more once the first layer has grown\n"
        "        super().reserve(positions)\n",
        "            super().reserve(positions)\n            self._recorded.clear()\n",
        GRAPHS,
    ),
    Mutation(
        "no numbers kept in the rows that pad a span",
        "../models/graphs.py",
        "            self._rows.zero_()  # a span",
        "            pass  # a span",
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
        "scores = processors(state.logits(0, len(text) - 1, len(text)).full(), text)",
        "scores = state.logits(0, len(text) - 1, len(text)).full()",
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
        'context=context_of(values["max_position_embeddings"], window_of(values))',
        'context=context_of(values["max_position_embeddings"], window_of(values) if original or "q" not in family else None)',
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
        "rope_scaling beside rope_parameters ignored",
        "../models/config.py",
        'return values.get("rope_scaling") or values.get("rope_parameters") or {}',
        'return values.get("rope_parameters") or {}',
        CONFIGS,
    ),
    Mutation(
        "the head of a tied checkpoint's own ignored",
        "../models/loading.py",
        "        config = _untied(config, files)\n",
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


def main() -> None:
    """Print mutation -> test, one a line."""
    unnoticed = 0
    for mutation in MUTATIONS:
        failure = first_failure(mutation)
        unnoticed += failure is None
        print(f"{mutation.name:<50} -> {failure or 'NOT NOTICED'}", flush=True)
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()

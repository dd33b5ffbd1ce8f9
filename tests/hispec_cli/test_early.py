"""Mistakes that options, environment, profile and files show are reported before torch is imported.

All command lines run in one process in which torch cannot be imported: whatever wants it ends with exit code 1.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from transformers import GPTNeoXConfig

RUN = """
import io, json, os, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise RuntimeError(f"{name} was imported")

sys.meta_path.insert(0, NoTorch())
from hispec_cli.app import run

for arguments, environment in json.load(sys.stdin):
    before = dict(os.environ)
    os.environ.update(environment)
    sys.stdin, sys.stderr = io.StringIO(), io.StringIO()
    code = run(arguments)
    errors, sys.stderr = sys.stderr.getvalue(), sys.__stderr__
    os.environ.clear()
    os.environ.update(before)
    print(json.dumps([code, errors]))
"""
GENERATE, CHAT, BENCH, CALIBRATE = ("generate", "x"), ("chat",), ("bench",), ("calibrate",)
FIT = ("fit-exits", "--model", "builtin:tiny", "--text", "TEXT")
DOCTOR = ("doctor",)
BEYOND = str(2**64)


def case(command, *options, says, **environment):
    """A command line that is refused, and what its error says."""
    return (*command, *options), environment, says


CASES = [
    # options that exclude each other
    case(GENERATE, "--live", "--format", "json", says="--live and --format json exclude each other"),
    case(GENERATE, "--format", "jsonl", says="exclude each other", HISPEC_LIVE="1"),
    case(CHAT, "--live", "--format", "plain", says="--live and --format plain exclude each other"),
    case(CHAT, "--live", says="--live needs a terminal"),
    case(CHAT, "--markdown", "--format", "json", says="--markdown and --format json exclude each other"),
    case(GENERATE, "--raw", "--system", "s", says="a system message needs a chat template"),
    case(GENERATE, "--model", "builtin:tiny", "--profile", "tiny", says="both given"),
    case(CHAT, "--model", "builtin:tiny", "--profile", "tiny", says="both given"),
    case(GENERATE, "--device", "cpu", "--device-map", "auto", says="--device names one device"),
    case(CHAT, "--max-memory", "cpu=1GB", says="--max-memory limits"),
    case(BENCH, "--tensor-parallel", says="--tensor-parallel is for hispec generate alone"),
    case(CALIBRATE, says="--tensor-parallel is for hispec generate alone", HISPEC_TENSOR_PARALLEL="1"),
    case(GENERATE, "--tensor-parallel", "--device-map", "auto", says="cannot be combined with --device-map"),
    case(BENCH, "--load-format", "dummy", "--device-map", "auto", says="random weights are drawn on one device"),
    case(GENERATE, "--dummy-agreement", "0.5,0.7", says="--dummy-agreement applies to random weights only"),
    case(BENCH, "--load-format", "dummy", "--dummy-agreement", "0.5", says="has 1 share"),
    case(GENERATE, "--load-format", "dummy", "--dummy-agreement", "0.7,0.5", says="is not rising"),
    # texts
    case(GENERATE, "--stop", "", says="a stop text is empty"),
    case(CHAT, "--stop", "a", "--stop", "", says="a stop text is empty"),
    case(GENERATE, "--stop", "\udcff", says="a stop text is not UTF-8"),
    case(CHAT, "--system", "\udcff", says="the system message is not UTF-8"),
    case(("generate", "\udcff"), says="the prompt is not UTF-8"),
    # levels and models
    case(GENERATE, "--draft-exit", "100", says="--draft-exit is 100, and builtin:tiny has 16 layers"),
    case(CHAT, "--intermediate-exit", "16", says="--intermediate-exit is 16, and builtin:tiny has 16 layers"),
    case(BENCH, "--model", "builtin:tiny", "--draft-exit", "16", says="--draft-exit is 16, and builtin:tiny has 16"),
    case(DOCTOR, "--model", "builtin:tiny", "--draft-exit", "16", says="--draft-exit is 16, and builtin:tiny has 16"),
    case(CALIBRATE, "--draft-exit", "3", says="the intermediate exit (2) must be deeper"),
    case(CALIBRATE, "--exit-layers", "2:20:2", says="exit 20 was asked for, and builtin:tiny has 16 layers"),
    case(CALIBRATE, "--exit-layers", "1:2000000000", says="which holds 2,000,000,000 exits"),
    case(CALIBRATE, "--exit-layers", "1:" + "9" * 5000, says="--exit-layers is"),
    case(FIT, "--exits", "16", says="--exits names 16, and builtin:tiny has 16 layers"),
    case(GENERATE, "--profile", "DEEP", says="draft.exit_layer is 40, and builtin:tiny has 16 layers"),
    case(BENCH, "--profile", "HEAD", says="there are no token frequencies at"),
    case(CHAT, "--profile", "LOST", says="it has no config.json"),
    case(BENCH, "--profile", "ALONE", says="arm hispec needs levels below the target"),
    case(BENCH, "--arms", "hf-assisted,hf", says="arm hf-assisted needs a draft model"),
    case(
        BENCH, "--arms", "hispec,hf", "--quantization", "int8", says="arm hf is of transformers, which cannot compute"
    ),
    case(GENERATE, "--model", "/does/not/exist", says="no model at /does/not/exist"),
    case(DOCTOR, "--model", "/does/not/exist", says="no model at /does/not/exist"),
    case(FIT[:1], "--model", "/does/not/exist", "--text", "TEXT", says="no model at /does/not/exist"),
    # one meant for the other
    case(GENERATE, "--model", "tiny", says="use --profile tiny"),
    case(DOCTOR, "--model", "tiny-adaptive", says="use --profile tiny-adaptive"),
    case(FIT[:1], "--model", "tiny", "--text", "TEXT", says="use --profile tiny"),
    case(CHAT, "--model", "DEEP", says="use --profile "),
    case(GENERATE, "--model", "mine.yml", says="use --profile mine.yml"),
    case(BENCH, "--model", "SAMPLES/config.json", says="give the folder of the model: --model "),
    case(GENERATE, "--profile", "SAMPLES", says="use --model "),
    case(CALIBRATE, "--profile", "some-org/model", says="a model: --model some-org/model"),
    case(CHAT, says="use --model ", HISPEC_PROFILE="SAMPLES"),
    case(GENERATE, "--profile", "builtin:tiny", says="did you mean --model builtin:tiny?"),
    # files
    case(BENCH, "--dataset", "TEXT", says="TEXT"),
    case(BENCH, "--dataset", "/does/not/exist.jsonl", says="there is no file /does/not/exist.jsonl"),
    case(CALIBRATE, "--dataset", "gms8k", says="did you mean gsm8k?"),
    case(CALIBRATE, "--dataset", "PROMPTS", says="has 2 prompts, too few to calibrate on"),
    case(CALIBRATE, "--write", "/does/not/exist.yaml", says="the folder /does/not does not exist"),
    case(BENCH, "-o", "report.txt", says="does not say what to write"),
    case(FIT, "--out", "mine.json", says="--out is mine.json"),
    case(FIT[:3], "--text", "/does/not/exist", says="/does/not/exist cannot be read"),
    case(GENERATE, "--trace", "/does/not/exist", says="cannot be written"),
    case(CHAT, "--session", "BROKEN", says="is 'warm'"),
    # numbers
    *(case(GENERATE, option, BEYOND, says=f"{option} is {BEYOND}") for option in ("--seed", "--top-k")),
    *(case(CHAT, option, BEYOND, says=option) for option in ("--max-new-tokens", "--draft-tokens", "--validate-every")),
    case(BENCH, says=f"HISPEC_SEED is '{BEYOND}'", HISPEC_SEED=BEYOND),
    case(GENERATE, "--seed", "-1", says="--seed is -1"),
    case(GENERATE, says="HISPEC_DRAFT_TOKENS is '99999999999'", HISPEC_DRAFT_TOKENS="99999999999"),
    case(GENERATE, "--profile", "LONG", says="decoding.validate_every is 99999999999"),
    case(CALIBRATE, "--seed", BEYOND, says="--seed"),
    case(CALIBRATE, "--seed", "-1", says="--seed"),
    case(CALIBRATE, "--max-new-tokens", BEYOND, says="--max-new-tokens"),
    case(CALIBRATE, "--budget", "9" * 400, says="--budget is"),
    case(CALIBRATE, "--periods", BEYOND, says="--periods is"),
    *(case(FIT, option, BEYOND, says=option) for option in ("--seed", "--steps", "--row-tokens", "--batch-tokens")),
    *(case(BENCH, option, BEYOND, says=option) for option in ("--limit", "--repeats", "--warmup")),
    case(DOCTOR, "--profile", "tiny", "--prompt-tokens", BEYOND, says="--prompt-tokens"),
    case(DOCTOR, "--profile", "tiny", "--max-new-tokens", BEYOND, says="--max-new-tokens"),
    case(("generate",), "--replay", "x", "--speed", "nan", says="Invalid value for"),
    case(FIT, "--learning-rate", "nan", says="Invalid value for"),
    case(BENCH, "--resume", "-o", "report.json", says="there is nothing to resume"),
    case(GENERATE, "--tensor-parallel", says="--tensor-parallel needs one process for each device"),
    # names
    case(GENERATE, "--device", "abacus", says="'abacus' is not a device"),
    case(CALIBRATE, "--device", "meta", says="'meta' is not a device"),
    case(FIT, "--device", "cuda:1:2", says="'cuda:1:2' is not a device"),
    case(BENCH, says="HISPEC_DEVICE: 'gpu' is not a device", HISPEC_DEVICE="gpu"),
    case(CHAT, "--max-memory", "lots", says="--max-memory"),
    case(BENCH, says="HISPEC_MODE is 'fast'", HISPEC_MODE="fast"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, shipped_model):
    """For each case, its exit code and its output on standard error."""
    folder = tmp_path_factory.mktemp("early")
    samples = folder / "samples"
    samples.mkdir()
    (samples / "config.json").write_text((shipped_model / "config.json").read_text())
    (samples / "generation_config.json").write_text('{"do_sample": true}')
    target = "target: {model: 'builtin:tiny'}\n"
    files = {
        "WARM": target + "draft: {exit_layer: 2}\nsampling: {temperature: 0.5}\n",
        "DEEP": target + "draft: {exit_layer: 40}\n",
        "HEAD": f"target: {{model: {samples}}}\ndraft: {{exit_layer: 2, head: 8}}\n",
        "LOST": target + f"draft: {{model: {folder}/nowhere}}\n",
        "ALONE": target,
        "LONG": target + "decoding: {validate_every: 99999999999}\n",
    }
    places = {"SAMPLES": str(samples)}
    for name, text in files.items():
        places[name] = str(folder / f"{name.lower()}.yaml")
        (folder / f"{name.lower()}.yaml").write_text(text)
    (folder / "TEXT").write_text("plain words\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    places |= {"TEXT": str(folder / "TEXT"), "PROMPTS": str(folder / "prompts.jsonl")}
    sessions = folder / "data" / "hispec" / "sessions"
    sessions.mkdir(parents=True)
    session = {"schema": "hispec.session/1", "options": {"temperature": "warm"}, "turns": []}
    (sessions / "BROKEN.json").write_text(json.dumps(session))

    def placed(text):
        for name, place in places.items():
            if text == name or text.startswith(f"{name}/"):
                return place + text.removeprefix(name)
        return text

    command_lines = [
        (list(map(placed, arguments)), {key: placed(value) for key, value in environment.items()} | {"TERM": "dumb"})
        for arguments, environment, _ in CASES
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "XDG_DATA_HOME": str(folder / "data"), "XDG_CONFIG_HOME": str(folder / "config")},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("at", range(len(CASES)), ids=[" ".join(arguments)[:70] for arguments, *_ in CASES])
def test_it_is_refused_without_torch(outcomes, at):
    code, errors = outcomes[at]
    assert code == 2, errors
    lines = errors.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), errors
    assert CASES[at][2] in errors


@pytest.fixture
def base_model(tmp_path, shipped_model):
    """A folder whose tokenizer has no chat template."""
    model = shutil.copytree(shipped_model, tmp_path / "base")
    (model / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    return model


@pytest.fixture
def foreign_model(tmp_path):
    """A folder with the configuration of a model that only `transformers` runs."""
    GPTNeoXConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2).save_pretrained(
        tmp_path / "foreign"
    )
    return tmp_path / "foreign"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "word " * 2100), "tokens, and the context of tiny holds 2048"),
        (("generate", "x", "--model", "base_model", "--system", "s"), "a system message needs a chat template"),
        (("generate", "x", "--profile", "template"), "the chat template fails"),
        (("chat", "--model", "base_model"), "has no chat template"),
        (("generate", "x", "--model", "foreign_model", "--stack", "fused"), "does not run on the fused stack"),
        (("bench", "--model", "foreign_model", "--stack", "fused"), "does not run on the fused stack"),
    ],
)
def test_what_the_tokenizer_or_the_configuration_tells_is_refused_before_weights_are_had(
    hispec, monkeypatch, tmp_path, request, arguments, message
):
    def loads(*_, **__):
        raise AssertionError("weights were asked for")

    for name in ("fetch_weights", "load_stack", "draw_stack"):
        monkeypatch.setattr(f"hispec.loading.{name}", loads)
    (tmp_path / "broken.yaml").write_text("target: {model: 'builtin:tiny'}\nchat_template: '{{ bad'\n")
    places = {"template": tmp_path / "broken.yaml"}
    given = [request.getfixturevalue(word) if word.endswith("_model") else places.get(word, word) for word in arguments]
    outcome = hispec(*given, stdin="x\n" if arguments[0] == "chat" else None)
    assert outcome.code == 2 and message in outcome.err, outcome.err

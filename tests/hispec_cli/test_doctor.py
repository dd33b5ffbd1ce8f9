"""`hispec doctor`: truthful about this machine, and about a profile before anything is downloaded."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from hispec import doctor, machine
from hispec.machine import Device
from hispec.models.hub import within
from tests.hub import serve


@pytest.fixture
def host(monkeypatch):
    """Set what the host has: gigabytes of memory."""

    def has(gigabytes):
        monkeypatch.setattr(
            machine, "host", lambda name="cpu": Device(name, "CPU", round(gigabytes * 1e9), round(gigabytes * 1e9))
        )
        monkeypatch.setattr(machine, "_gpus", lambda: [])

    return has


def as_json(hispec, *arguments, code=0):
    outcome = hispec("doctor", *arguments, "--json")
    assert outcome.code == code, outcome.err
    assert outcome.err == ""
    record = json.loads(outcome.out)
    assert record["schema"] == "hispec.doctor/1"
    return record["machine"], record["profile"]


def test_the_machine_alone(hispec):
    found, profile = as_json(hispec)
    assert profile is None
    assert {
        "python",
        "torch",
        "transformers",
        "system",
        "threads",
        "cores",
        "devices",
        "cache",
        "hub",
        "packages",
    } == set(found)
    host = found["devices"][-1]
    assert host["name"] == "cpu" and 0 < host["free_bytes"] <= host["total_bytes"]
    assert "float32" in host["dtypes"] and set(host["native_dtypes"]) <= set(host["dtypes"])
    assert found["cache"]["free_bytes"] > 0
    assert found["hub"]["state"] == "offline"  # as the tests are
    assert found["packages"]["torch"] == found["torch"]
    assert set(found["packages"]) >= {"bitsandbytes", "hf-xet", "safetensors"}


def test_text_says_the_same(hispec):
    outcome = hispec("doctor", "--profile", "tiny")
    assert outcome.code == 0
    assert {"python", "torch", "cpu", "threads", "disk", "hub", "packages", "memory", "weights"} <= set(
        outcome.out.split()
    )
    assert "profile tiny: yes, it runs here" in outcome.out


def test_the_shipped_model_runs_anywhere(hispec):
    _, profile = as_json(hispec, "--profile", "tiny")
    assert profile["runs"] is True and profile["problems"] == []
    assert profile["weights"] == {"builtin:tiny": "here"}
    (model,) = profile["models"]
    parts = ("weights_bytes", "kv_cache_bytes", "workspace_bytes")
    assert profile["needed_bytes"] == sum(model[part] for part in parts)
    assert profile["needed_bytes"] <= profile["free_bytes"]


def test_seventy_billion_parameters_do_not_fit_a_machine_without_a_gpu(hispec, host):
    host(64)
    _, profile = as_json(hispec, "--profile", "llama-3b-70b", code=5)
    assert profile["runs"] is False and profile["device"] == "cpu"
    target, draft = profile["models"]
    assert target["weights_bytes"] / 1e9 == pytest.approx(137.9, rel=0.05)
    assert draft["weights_bytes"] / 1e9 == pytest.approx(5.4, rel=0.05)
    messages = [problem["message"] for problem in profile["problems"]]
    assert "64.00 GB are free: 137.95 GB weights of facebook/layerskip-llama2-70B" in messages[0]
    assert sum("are not here, and the hub is offline" in message for message in messages) == 2
    text = hispec("doctor", "--profile", "llama-3b-70b")
    assert text.code == 5
    assert "profile llama-3b-70b: no" in text.out and "137.95 GB  weights" in text.out
    assert "llama-3b-70b needs 187." in text.out


def test_what_fits_depends_on_dtype_mode_and_lengths(hispec, host):
    host(30)
    options = ("--profile", "layerskip-llama3-8b", "--load-format", "dummy")
    assert as_json(hispec, *options)[1]["runs"]
    assert not as_json(hispec, *options, "--dtype", "float32", code=5)[1]["runs"]
    host(150)
    options = ("--profile", "llama-3b-8b-70b", "--load-format", "dummy")
    assert not as_json(hispec, *options, code=5)[1]["runs"]
    assert as_json(hispec, *options, "--mode", "autoregressive")[1]["runs"]
    longer = as_json(hispec, *options, "--mode", "autoregressive", "--prompt-tokens", 100_000, code=5)[1]
    assert longer["positions"] == 100_352 and not longer["runs"]


def test_lengths_are_those_that_generate_would_take_from_the_checkpoint(hispec, host, tmp_path, shipped_model):
    host(30)
    folder = shutil.copytree(shipped_model, tmp_path / "model")
    before = as_json(hispec, "--model", folder)[1]["positions"]
    (folder / "generation_config.json").write_text('{"max_new_tokens": 900}')
    assert (before, as_json(hispec, "--model", folder)[1]["positions"]) == (1280, 2048)


def test_a_full_disk_is_told_before_the_download(hispec, host, monkeypatch):
    host(300)
    monkeypatch.setattr(doctor, "disk_free", lambda folder: 10**9)
    messages = [problem["message"] for problem in as_json(hispec, "--profile", "llama-3b-70b", code=5)[1]["problems"]]
    assert any(
        message.startswith("the download of llama-3b-70b takes ") and "1.00 GB are free" in message
        for message in messages
    )


@pytest.fixture
def pair(tmp_path, shipped_model):
    """A profile of two folders whose vocabularies the test may set apart."""
    for name in ("target", "draft"):
        shutil.copytree(shipped_model, tmp_path / name)
    path = tmp_path / "pair.yaml"
    path.write_text(f"target: {{model: {tmp_path}/target}}\ndraft: {{model: {tmp_path}/draft}}\n")
    return path


def test_vocabularies_are_compared_by_id(hispec, pair):
    assert as_json(hispec, "--profile", pair)[1]["same_vocabulary"] is True
    tokenizer = pair.parent / "draft" / "tokenizer.json"
    values = json.loads(tokenizer.read_text())
    vocabulary = values["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    tokenizer.write_text(json.dumps(values))
    profile = as_json(hispec, "--profile", pair, code=2)[1]
    assert profile["same_vocabulary"] is False
    assert "do not share a vocabulary: id " in profile["problems"][0]["message"]


def test_an_exit_that_is_too_deep_and_missing_weights(hispec, pair):
    (pair.parent / "draft" / "model.safetensors").unlink()
    pair.write_text(pair.read_text() + "intermediate: {exit_layer: 40}\n")
    profile = as_json(hispec, "--profile", pair, code=5)[1]
    messages = " ".join(problem["message"] for problem in profile["problems"])
    assert "intermediate.exit_layer is 40" in messages and f"{pair.parent}/draft has no weights" in messages


def test_mistakes_are_told_at_once(hispec):
    assert hispec("doctor", "--profile", "tyni").code == 2
    assert hispec("doctor", "--profile", "tiny", "--dtype", "float8").code == 2
    lost = as_json(hispec, "--profile", "tiny", "--device", "cuda:77", code=5)[1]
    assert lost["device"] is None and "no such device" in lost["problems"][0]["message"]


def test_names_of_files_are_harmless_on_a_terminal(hispec, tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text('name: "x\\e[31m"\ntarget: {model: "builtin:tiny"}\n')
    assert "\x1b" not in hispec("doctor", "--profile", path).out


@pytest.fixture
def hub(tmp_path, shipped_model):
    shutil.copytree(shipped_model, tmp_path / "hub" / "some-org" / "early-exit")
    profile = tmp_path / "mine.yaml"
    profile.write_text("target: {model: some-org/early-exit, revision: main}\ndraft: {exit_layer: 3}\n")
    return tmp_path


def ask(process, hub, endpoint):
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(hub / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    child = process("doctor", "--profile", hub / "mine.yaml", "--json", **environment)
    out, err = child.communicate(timeout=120)
    assert err == b"", err.decode()
    record = json.loads(out)
    return child.returncode, record["machine"]["hub"]["state"], record["profile"]


def test_a_model_of_the_hub_is_verified_by_its_headers_without_being_downloaded(process, hub, shipped_model):
    with serve(hub / "hub") as (endpoint, _):
        code, state, profile = ask(process, hub, endpoint)
    assert (code, state, profile["runs"]) == (0, "reachable", True)
    assert profile["weights"] == {"some-org/early-exit": "to download"}
    assert profile["models"][0]["source"] == "safetensors"
    size = (shipped_model / "model.safetensors").stat().st_size
    assert profile["download_bytes"] == pytest.approx(size, rel=0.01)
    assert not list(Path(hub / "home").rglob("*.safetensors*"))


def test_a_licence_that_is_not_accepted_is_told_with_its_address(process, hub):
    with serve(hub / "hub", refusals={"some-org/early-exit": "GatedRepo"}) as (endpoint, _):
        code, _, profile = ask(process, hub, endpoint)
    assert (code, profile["runs"]) == (5, False)
    assert profile["weights"] == {"some-org/early-exit": "refused"}
    hint = profile["problems"][-1]["hint"]
    assert f"{endpoint}/some-org/early-exit" in hint and "hf auth login" in hint


def test_a_hub_that_never_answers_is_not_waited_for(process, hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, state, profile = ask(process, hub, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (code, state) == (5, "unreachable")
    assert profile["weights"] == {"some-org/early-exit": "unknown"}


def test_a_call_that_fails_or_hangs_has_another_answer():
    from threading import Event

    never = Event()
    assert within(0.01, never.wait, None) is None
    assert within(5, lambda: 1 // 0, 7) == 7
    assert within(5, lambda: 3, 7) == 3
    never.set()


def test_a_model_without_a_profile_is_examined_as_one_with(hispec, host, shipped_model):
    host(30)
    by_model, by_profile = (
        as_json(hispec, *which)[1] for which in (("--model", "builtin:tiny"), ("--profile", "tiny"))
    )
    assert by_model["runs"] and by_model["name"] == "builtin:tiny"
    assert by_model["models"][0]["weights_bytes"] == by_profile["models"][0]["weights_bytes"]
    text = hispec("doctor", "--model", shipped_model, "--draft-exit", 3, "--intermediate-exit", 8)
    assert text.code == 0 and f"profile {shipped_model}: yes, it runs here" in text.out
    assert hispec("doctor", "--model", shipped_model, "--draft-exit", 8, "--intermediate-exit", 3).code == 2


@pytest.mark.parametrize(("key", "value"), [("rms_norm_eps", None), ("hidden_size", "128"), ("is_causal", False)])
def test_a_model_whose_configuration_is_wrong_does_not_run(key, value, hispec, host, tmp_path, shipped_model):
    host(30)
    model = shutil.copytree(shipped_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: value}))
    problems = as_json(hispec, "--model", model, code=2)[1]["problems"]
    assert len(problems) == 1
    assert f"config.json of {model}: {key} must be" in problems[0]["message"]


def test_a_model_that_lacks_its_weights_does_not_run(hispec, host, tmp_path, shipped_model):
    host(30)
    (tmp_path / "config.json").write_text((shipped_model / "config.json").read_text())
    profile = as_json(hispec, "--model", tmp_path, code=5)[1]
    assert not profile["runs"] and profile["weights"] == {str(tmp_path): "missing"}


def test_a_model_of_a_hub_is_examined_by_its_configuration_and_headers(process, hub):
    environment = {"HF_HOME": str(hub / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    command = ("doctor", "--model", "some-org/early-exit", "--json")
    with serve(hub / "hub") as (endpoint, _):
        child = process(*command, HF_ENDPOINT=endpoint, **environment)
        out, err = child.communicate(timeout=120)
    profile = json.loads(out)["profile"]
    assert (child.returncode, err, profile["runs"]) == (0, b"", True)
    assert profile["models"][0]["layers"] == 16 and not list(Path(hub / "home").rglob("*.safetensors*"))


def test_a_model_of_a_silent_hub_is_not_waited_for(process, hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        child = process(
            *("doctor", "--model", "some-org/early-exit", "--json"),
            **{"HF_ENDPOINT": endpoint, "HF_HOME": str(hub / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""},
        )
        out, _ = child.communicate(timeout=120)
    profile = json.loads(out)["profile"]
    assert child.returncode == 5 and profile["weights"] == {"some-org/early-exit": "unknown"}


@pytest.mark.parametrize(
    ("file", "content", "told", "code"),
    [
        ("tokenizer.json", "{broken", "the tokenizer of", 5),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "ByT5Tokenizer"}',
            "ByT5Tokenizer, which has no tokenizer.json",
            2,
        ),
        ("config.json", '{"model_type": "unheard-of", "num_hidden_layers": 2}', "has an unknown architecture", 2),
        ("model.safetensors", "garbage", "damaged", 5),
    ],
)
def test_a_model_that_generate_refuses_does_not_run(file, content, told, code, hispec, host, tmp_path, shipped_model):
    host(30)
    model = shutil.copytree(shipped_model, tmp_path / "model")
    if "ByT5" in content:
        (model / "tokenizer.json").unlink()
    (model / file).write_text(content)
    profile = as_json(hispec, "--model", model, code=code)[1]
    assert not profile["runs"]
    assert [problem["message"] for problem in profile["problems"] if told in problem["message"]], profile["problems"]
    assert hispec("generate", "hi", "--raw", "--model", model).code == code

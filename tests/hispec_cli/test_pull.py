"""`hispec pull`: checked, downloaded once, and what to type next; from a hub on loopback."""

import json

import pytest
from transformers import AutoTokenizer

from tests.gguf_files import small_model, write
from tests.hispec_cli.test_hub_checkpoints import hispec as from_hub  # noqa: F401
from tests.hispec_cli.test_hub_checkpoints import save
from tests.hub import serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shipped_model):
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    save(folder / "org" / "small", tokenizer)
    config = json.loads((save(folder / "org" / "huge", tokenizer) / "config.json").read_text())
    (folder / "org" / "huge" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**6}))
    write(folder / "org" / "files" / "small.gguf", small_model())
    return folder


def test_what_is_pulled_is_found_offline_and_not_downloaded_again(from_hub, folder):  # noqa: F811
    names = ["org/small", "org/files:small.gguf"]
    with serve(folder) as (endpoint, seen):
        *first, again = from_hub(endpoint, *(["pull", name] for name in [*names, "org/small"]))
        for name, (code, out, err) in zip(names, first, strict=True):
            assert code == 0, err
            assert "yes, it runs here" in err and "to download" in err and "downloading" in err
            assert f'hispec generate "..." --model {name}' in err and f"hispec serve --model {name}" in err
            assert out.strip().endswith("small.gguf") == ("gguf" in name) and len(out.splitlines()) == 1
        assert again[:2] == first[0][:2] and "downloading" not in again[2]
        weights = [path for method, path in seen if method == "GET" and path.endswith(".safetensors")]
        assert len(weights) == len(set(weights)) > 1
        count = len(seen)
        offline = from_hub(endpoint, *(["generate", "Hello", "--model", name, "--offline"] for name in names))
        assert [code for code, *_ in offline] == [0, 0]
        assert len(seen) == count


def test_what_would_not_run_is_not_downloaded(from_hub, folder):  # noqa: F811
    with serve(folder, {"org/licensed": (401, "GatedRepo")}) as (endpoint, seen):
        names = ["org/huge", "org/none", "org/files:none.gguf", "org/licensed"]
        told = from_hub(endpoint, *(["pull", name] for name in names), HF_HOME=str(folder / "other-home"))
        for name, (code, out, err) in zip(names, told, strict=True):
            assert (code in (2, 5), out) == (True, ""), (name, err)
            message, hint = err.splitlines()[-2:]
            assert message.startswith("error: ") and hint.startswith("hint: ")
        assert "memory" in told[0][2] or "needs" in told[0][2]
        assert not [path for method, path in seen if method == "GET" and path.endswith(".safetensors")]
        (offline,) = from_hub(endpoint, ["pull", "org/small"], HF_HOME=str(folder / "other-home"), HF_HUB_OFFLINE="1")
        assert offline[0] == 5


def test_a_hub_out_of_reach_is_asked_once(from_hub, tmp_path):  # noqa: F811
    ((code, out, err),) = from_hub("http://127.0.0.1:9", ["pull", "org/small"], HF_HOME=str(tmp_path))
    assert (code, out) == (5, "")
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["error", "hint"], err


def test_a_profile_and_what_is_here_already(hispec):
    outcome = hispec("pull", "tiny")
    assert outcome.code == 0, outcome.err
    assert "weights       builtin:tiny: here" in outcome.err
    assert outcome.err.splitlines()[-2:] == ["  hispec chat --profile tiny", "  hispec serve --profile tiny"]
    assert outcome.out.strip().endswith("tiny/model")

"""A start of `hispec generate` reads and resolves everything once."""

import json
import shutil
import subprocess
import sys

import pytest

COUNT = """
import json, sys
from hispec import precedence
from hispec_cli.__main__ import main

opened, resolved, resolve = [], [], precedence.resolve_settings

def see(event, arguments):
    if event == "open" and str(arguments[0]).endswith(("config.json", "model.safetensors")):
        opened.append(str(arguments[0]).rpartition("/")[2])

def counted(*arguments, **options):
    resolved.append(arguments)
    return resolve(*arguments, **options)

precedence.resolve_settings = counted
sys.addaudithook(see)
try:
    main()
finally:
    print(json.dumps([opened, len(resolved)]))
"""


@pytest.mark.parametrize(("option", "generation_config"), [("--profile", "{}"), ("--model", '{"max_new_tokens": 3}')])
def test_a_start_parses_the_configuration_once_and_resolves_settings_once(
    shipped_model, tmp_path, option, generation_config
):
    folder = shutil.copytree(shipped_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(generation_config)
    (tmp_path / "own.yaml").write_text(f"target: {{model: {folder}}}\ndraft: {{exit_layer: 1}}\n")
    named = tmp_path / "own.yaml" if option == "--profile" else folder
    options = ["--max-new-tokens", "3"] if option == "--profile" else []
    done = subprocess.run(
        [sys.executable, "-c", COUNT, "generate", "Ben has 12 cards.", option, named, *options, "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer, counts = map(json.loads, done.stdout.splitlines())
    opened, resolved = counts
    assert len(answer["token_ids"]) == 3
    assert opened.count("config.json") == 1 and resolved == 1

"""Every setting, wherever a user meets it: option, variable, key of a profile, `--origin`, `/set` and documentation."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import hispec_cli
from hispec.precedence import resolve_settings, usable_settings
from hispec.profile import Profile, calibration_digest
from hispec.settings import SETTINGS, Settings
from hispec_cli.app import app
from hispec_cli.commands.chat.slash import COMMANDS, KEYS
from tests.pages import DOCS, PAGES

OTHERS = {
    "mode": "autoregressive",
    "policy": "adaptive",
    "temperature": 0.7,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.5,
    "device": "cpu",
    "max_memory": "cpu=1GB",
    "width": 8,
    "dummy_agreement": (0.5, 0.7),
}
"""Accepted values that are not the default, where the type does not give one."""
BESIDE = {"max_memory": {"device_map": "auto"}, "dummy_agreement": {"load_format": "dummy"}}
"""Options that some settings need."""
PROFILE = {"name": "p", "target": {"model": "m"}, "draft": {"exit_layer": 1}, "intermediate": {"exit_layer": 2}}
EVERY = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def another(setting):
    """An accepted value that is not the default."""
    if setting.name in OTHERS:
        return OTHERS[setting.name]
    if setting.kind in (int, bool):
        return setting.kind(7)
    return next(choice for choice in setting.choices if choice != setting.default)


def as_text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def resolved(options=None, environ=None, profile=PROFILE, config=None):
    return resolve_settings(options or {}, Profile.model_validate(profile), environ=environ, generation_config=config)


@EVERY
def test_option_and_variable_give_the_value_and_the_origin(setting):
    value, beside = another(setting), BESIDE.get(setting.name, {})
    for options, environ, origin in (
        ({setting.name: value}, {}, "option"),
        ({}, {setting.variable: as_text(value)}, "environment"),
    ):
        settings, origins = resolved({**beside, **options}, environ)
        assert (getattr(settings, setting.name), origins[setting.name]) == (value, origin)
    assert resolved()[1][setting.name] == "default" and getattr(resolved()[0], setting.name) == setting.default


@EVERY
def test_a_profile_has_the_keys_that_are_said_and_no_others(setting):
    value, sections = another(setting), ("target", "decoding", "sampling")
    for section in sections:
        data = {**PROFILE, section: {**PROFILE.get(section, {}), setting.name: value}}
        if section == setting.section:
            settings, origins = resolved(profile=data)
            assert (getattr(settings, setting.name), origins[setting.name]) == (value, "profile")
        else:
            with pytest.raises(ValueError, match="Extra inputs"):
                Profile.model_validate(data)


@EVERY
def test_a_generation_config_counts_where_it_is_said(setting):
    value = another(setting)
    for samples in (False, True):
        known = setting.checkpoint == "always" or (setting.checkpoint == "sampling" and samples)
        assert (usable_settings({setting.name: value, "do_sample": samples})[0].get(setting.name) == value) is known
    rows = [line for line in (DOCS / "generation-config.md").read_text().splitlines() if "| settings, " in line]
    told = {
        name: "always" if "always" in line else "sampling" for line in rows for name in re.findall(r"`(\w+)`", line)
    }
    assert told.get(setting.name) == setting.checkpoint


@EVERY
def test_commands_have_its_option_and_their_help_tells_it(setting):
    commands = typer.main.get_command(app).commands
    for name in ("generate", "chat", "bench"):
        found = {parameter.name: parameter for parameter in commands[name].params}.get(setting.name)
        if setting.panel is None or (name, setting.name) == ("bench", "mode"):
            assert found is None
            continue
        assert found.opts == [setting.option] and found.default is None and not found.envvar
        assert (found.help, found.rich_help_panel) == (setting.help, setting.panel)
        assert found.type_descriptor.annotation == setting.kind


def test_options_of_settings_that_commands_share_are_the_same_everywhere():
    for name in ("calibrate", "doctor", "fit-exits"):
        for parameter in typer.main.get_command(app).commands[name].params:
            if parameter.name in SETTINGS.keys() - {"seed", "max_new_tokens"}:  # those of calibrate are others
                assert parameter.help == SETTINGS[parameter.name].help, name


@EVERY
def test_origin_names_it_in_profile_show(setting, hispec, monkeypatch):
    value, beside = another(setting), BESIDE.get(setting.name, {})
    for name, text in {**beside, setting.name: as_text(value)}.items():
        monkeypatch.setenv(SETTINGS[name].variable, text)
    shown = json.loads(hispec("profile", "show", "tiny", "--origin", "--format", "json").out)
    assert shown["origin"][setting.name] == "environment"
    assert shown["decoding"][setting.name] == (list(value) if isinstance(value, tuple) else value)
    assert [*shown["origin"]] == [*SETTINGS]


@EVERY
def test_a_chat_changes_it_unless_it_is_decided_at_loading(setting):
    assert (setting.name in KEYS) is not setting.at_loading
    choices = COMMANDS["set"].choices
    assert (setting.name in choices("")) is not setting.at_loading
    assert tuple(choices(f"{setting.name} ")) == setting.choices


@EVERY
def test_a_calibrations_digest_holds_what_was_measured(setting):
    if setting.section not in ("decoding", "sampling"):
        return
    profile = {**PROFILE, "decoding": {"validate_every": 5}}
    other = {**profile, setting.section: {**profile.get(setting.section, {}), setting.name: another(setting)}}
    equal = calibration_digest(Profile.model_validate(profile)) == calibration_digest(Profile.model_validate(other))
    assert equal is (setting.calibration is None)


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_the_documentation_are_those_of_the_settings(name):
    text = (DOCS / name).read_text()
    assert PAGES[name](text) == text, "write them again: python -m tests.pages"
    listed = re.findall(r"^\|[^|]*\| `(HISPEC_\w+)`", text, re.MULTILINE)
    assert name != "settings.md" or listed == [setting.variable for setting in SETTINGS.values()]


def test_settings_and_their_definitions_have_the_same_names():
    assert [field.name for field in fields(Settings)] == [*SETTINGS] == [setting.name for setting in SETTINGS.values()]
    assert all(setting.help.endswith(".") and setting.help[0] != " " for setting in SETTINGS.values())


def test_the_page_names_the_variables_that_are_no_settings():
    sources = "".join(path.read_text() for path in Path(hispec_cli.__file__).parent.rglob("*.py"))
    known = {setting.variable for setting in SETTINGS.values()}
    paragraph = next(part for part in (DOCS / "settings.md").read_text().split("\n\n") if "are not settings" in part)
    assert set(re.findall(r"HISPEC_[A-Z_]+\b", paragraph)) == set(re.findall(r"HISPEC_[A-Z_]+\b", sources)) - known

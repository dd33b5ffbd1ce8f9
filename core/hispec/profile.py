"""Profiles: which model, which exits and how to decode, as YAML that says exactly where it is wrong.

A profile is looked up by path, then in the user's own folder, then among those that ship with the package.
"""

import difflib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import platformdirs
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    model_validator,
)

from hispec.counts import counted
from hispec.errors import BadValueError, ProfileError, UsageError
from hispec.settings import SETTINGS, Count, Quantization

Name = Annotated[str, Field(min_length=1)]
Milliseconds = Annotated[float, Field(gt=0)]
Features = Annotated[list[Literal["margin", "log_probability", "entropy"]], Field(min_length=1)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
MEASURED = ("draft", "intermediate", "single_layer", "decoding", "adaptive")
"""Sections that `hispec calibrate` writes."""
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most"}
BUILTIN = "builtin:"
"""Prefix of a model that ships inside the package."""
EARLY_EXIT = "layerskip"
"""What names of checkpoints have in them that were trained for early exit."""
NAMES_OF_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "dict": "a section of keys",
    "model": "a section of keys",
}
"""How users call what pydantic's error types (`int_type`, `float_parsing`) begin with."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _whole_head(head: Any) -> Any:
    return None if head == "full" else head


def _with_settings(section: type[_Section]) -> Any:
    """Add the settings that a profile has as keys of a section: those of `target` as they are, others without a value."""
    name = section.__name__.lower()
    keys: Any = {
        key: (setting.type, setting.default) if name == "target" else (setting.type | None, None)
        for key, setting in SETTINGS.items()
        if setting.section == name
    }
    return create_model(section.__name__, __base__=section, __doc__=section.__doc__, __module__=__name__, **keys)


Head = Annotated[Count | None, BeforeValidator(_whole_head)]
"""How many of the most frequent tokens a level reads; None, or `full` in a profile, is the whole vocabulary."""


@_with_settings
class Target(_Section):
    """The model whose output is the answer."""

    model: Name
    revision: str | None = None


class Ngram(_Section):
    """Guesses of what was said before: longest n-gram matched, and tokens offered at once."""

    max: Count
    tokens: Count
    drafter: Name = "cache"


GUESSES = Ngram(max=4, tokens=8)
"""Where nothing else is said."""


class Draft(_Section):
    """What proposes tokens: a reading of the target or another model, an n-gram look-up, or the latter before the former.

    Attributes:
        exit_layer: of the target, or of its quantized copy.
        weights: the target's, quantized; without an exit, the whole depth of that copy.
        model: another one.
        ngram: what is looked up.
        head: words that the level reads.
    """

    exit_layer: Count | None = None
    weights: Quantization | None = None
    model: Name | None = None
    ngram: Ngram | None = None
    head: Head = None

    @property
    def reads_model(self) -> bool:
        """Whether it reads a model, and not only n-grams."""
        return any(key is not None for key in (self.exit_layer, self.weights, self.model))

    @model_validator(mode="after")
    def _one_kind(self) -> "Draft":
        if self.exit_layer is not None and self.model is not None:
            raise ValueError("give exit_layer or model, not both: another model drafts with its whole depth")
        if not self.reads_model and self.ngram is None:
            raise ValueError("give an exit_layer, weights, a model, or an ngram section")
        if self.head is not None and not self.reads_model:
            raise BadValueError("an n-gram look-up has no head", "give an exit_layer or a model too, or leave head out")
        return self


class Intermediate(_Section):
    """What judges drafts before the target: a reading of the target, or (an exit of) another model.

    Attributes:
        exit_layer: of the target, of its quantized copy, or of the other model.
        weights: the target's, quantized; without an exit, the whole depth of that copy.
        model: another one.
        head: words that the level reads.
    """

    exit_layer: Count | None = None
    weights: Quantization | None = None
    model: Name | None = None
    head: Head = None

    @model_validator(mode="after")
    def _some_kind(self) -> "Intermediate":
        if self.exit_layer is None and self.weights is None and self.model is None:
            raise ValueError("give an exit_layer, weights, or a model")
        return self


class SingleLayer(_Section):
    """Mode single-layer where it is tuned apart from the hierarchy.

    Attributes:
        exit_layer: that drafts, of the target or of its quantized copy.
        weights: the target's, quantized; without an exit, the whole depth of that copy.
        draft_tokens: drafted at once.
    """

    exit_layer: Count | None = None
    weights: Quantization | None = None
    draft_tokens: Count

    @model_validator(mode="after")
    def _some_kind(self) -> "SingleLayer":
        if self.exit_layer is None and self.weights is None:
            raise ValueError("give an exit_layer, weights, or both")
        return self


@_with_settings
class Decoding(_Section):
    """How much is drafted before each judgement."""


@_with_settings
class Sampling(_Section):
    """How tokens are drawn; see `hispec.decoding.sampling.Sampling`. Temperature 0 is greedy."""


class Acceptance(_Section):
    """What predicts whether a level's token is accepted by another: a table of one feature, or a logistic regression.

    Attributes:
        features: that it reads, see `hispec.decoding.confidence.FEATURES`.
        mean: share of tokens accepted.
        table: pairs of the feature's value, ascending, and the probability of acceptance there.
        weights: of the terms of the features, see `hispec.decoding.prediction.terms`.
    """

    features: Features
    mean: Annotated[float, Field(gt=0, lt=1)]
    table: Annotated[list[Point], Field(min_length=1)] | None = None
    weights: list[float] | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Acceptance":
        if (self.table is None) == (self.weights is None):
            raise ValueError("give a table or weights, one of both")
        if self.table is not None:
            knots = [knot for knot, _ in self.table]
            if len(self.features) != 1 or any(b <= a for a, b in pairwise(knots)):
                raise ValueError("give a table of one feature, its values ascending")
            if not all(0 <= chance <= 1 for _, chance in self.table):
                raise ValueError("give probabilities from 0 to 1")
        elif len(self.weights or ()) != 1 + len(self.features) + ("margin" in self.features):
            raise ValueError("give a weight for the constant and for each feature, two for the margin")
        return self


class Adaptation(_Section):
    """What the adaptive policy knows of levels, written by `hispec calibrate`; names as in `hispec.adaptation`.

    Attributes:
        draft_ms: by level, milliseconds of one drafted token.
        judge_ms: by pair of levels, of judging 1, 2, 4, 8, 16 and 32 tokens.
        acceptance: by pair of levels.
        tokens_per_ms: by levels that take part, what to expect of them.
    """

    draft_ms: dict[str, Milliseconds] = {}
    judge_ms: dict[str, Annotated[list[Milliseconds], Field(min_length=6, max_length=6)]] = {}
    acceptance: dict[str, Acceptance] = {}
    tokens_per_ms: dict[str, Milliseconds] = {}


class Profile(_Section):
    """A model trio and its defaults; `None` leaves a value to whatever comes next in the order of precedence.

    `frequencies` is the file of token frequencies that reduced heads are taken from, the target's own by default.
    `translators` is the file of translators for exits of the target, written by `hispec fit-exits`; exits that it has
    none for are read as they are.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    name: Name
    description: str = ""
    target: Target
    draft: Draft | None = None
    intermediate: Intermediate | None = None
    single_layer: SingleLayer | None = None
    decoding: Decoding = Decoding()
    adaptive: Adaptation | None = None
    sampling: Sampling = Sampling()
    frequencies: Name | None = None
    translators: Name | None = None
    chat_template: str | None = None
    calibrated: dict[str, Any] | None = None
    _assumed: bool = PrivateAttr(default=False)

    @property
    def assumed(self) -> bool:
        """Whether its levels are nobody's choice, but what is assumed for a model without a profile."""
        return self._assumed

    @model_validator(mode="after")
    def _whole(self) -> "Profile":
        if self.calibrated is not None and self.calibrated.get("sha256") not in (None, digest_of(self)):
            raise BadValueError(
                "its levels, or what they were measured to do, are not what hispec calibrate wrote, or cut off",
                "give the file as it was, calibrate again, or remove calibrated.sha256 if this is meant",
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> "Profile":
        if self.intermediate is not None and self.draft is None:
            raise ValueError("an intermediate level needs a draft level beneath it")
        for level, name in ((self.draft, "draft"), (self.intermediate, "intermediate")):
            if level is None:
                continue
            if level.model == self.target.model and level.exit_layer is None and level.weights is None:
                raise BadValueError(f"{name}.model is the target itself", "give an exit_layer of it, or weights")
            if level.model not in (None, self.target.model) and level.weights is not None:
                raise ValueError(f"{name}.weights are the target's, quantized: leave {name}.model out")
        draft, deeper = self.draft, self.intermediate
        if draft is None or deeper is None or not draft.reads_model or draft.model not in (None, self.target.model):
            return self
        if _reaches(draft.exit_layer, draft.weights, self):
            if draft.exit_layer is None and deeper.exit_layer is None:
                raise BadValueError(
                    "draft and intermediate read the same", "give them other weights, or the draft an exit"
                )
            raise ValueError(
                f"the intermediate exit ({deeper.exit_layer}) must be deeper than the draft exit "
                f"({draft.exit_layer or 'the whole depth'})"
            )
        return self


def digest_of(profile: Profile) -> str:
    """Of the sections that a calibration measured: equal for equal levels, lengths, policy and adaptation."""
    measured = profile.model_dump(include=set(MEASURED), exclude_none=True, exclude_defaults=True)
    if decoding := measured.get("decoding"):
        measured["decoding"] = {key: value for key, value in decoding.items() if SETTINGS[key].calibration}
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()


def calibrated_elsewhere(profile: Profile, environment: Mapping[str, Any]) -> list[str]:
    """What differs between where a profile was calibrated and where it runs, each as `dtype float32 -> bfloat16`."""
    known = profile.calibrated or {}
    return [
        f"{key} {known[key]} -> {environment[key]}"
        for key in ("device", "dtype", "stack", "threads")
        if key in known and key in environment and str(known[key]) != str(environment[key])
    ]


def levels_of(profile: Profile, mode: str) -> list[Draft | Intermediate]:
    """Return the levels below the target that a mode reads, the draft first."""
    draft: Draft | None = profile.draft
    if mode == "single-layer" and (tuned := profile.single_layer) is not None:
        draft = Draft(exit_layer=tuned.exit_layer, weights=tuned.weights)
    found = {"hispec": (draft, profile.intermediate), "single-layer": (draft,)}.get(mode, ())
    return [level for level in found if level is not None]


def ngram_of(profile: Profile, mode: str, lookup: bool | None) -> Ngram | None:
    """Return the guesses beneath the levels of a mode; None where nothing is guessed.

    Args:
        profile: whose levels.
        mode: of decoding.
        lookup: whether to guess; None: as the levels say.
    """
    if lookup is False or mode == "autoregressive":
        return None
    lowest = next(iter(levels_of(profile, mode)), None)
    said = lowest.ngram if isinstance(lowest, Draft) else None
    return said or (GUESSES if lookup else None)


def copies_of(profile: Profile, mode: str, num_layers: int) -> dict[Quantization, int]:
    """Return the quantized copies of the target that a mode reads: for each format, how many layers it has.

    Args:
        profile: whose levels.
        mode: of decoding.
        num_layers: the target's depth.
    """
    depths: dict[Quantization, int] = {}
    for level in levels_of(profile, mode):
        if level.weights is not None:
            depths[level.weights] = max(depths.get(level.weights, 0), level.exit_layer or num_layers)
    return depths


def models_of(profile: Profile, mode: str) -> dict[str, str | None]:
    """The models that a mode of a profile reads, each once with its revision, the target first."""
    own = profile.target.model
    others = {level.model: None for level in levels_of(profile, mode) if level.model is not None}
    return {own: profile.target.revision} | {model: None for model in others if model != own}


def load_profile(name: str) -> Profile:
    """Find a profile by name or path and read it.

    Args:
        name: a path (it has a slash, or ends in .yaml or .yml), or the name of a user's or shipped profile.

    Raises:
        ProfileError: no such profile, or one that is malformed.
    """
    return read_profile(find_profile(name))


def find_profile(name: str) -> Path:
    """The file of a profile; errors as `load_profile`."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if (path / "config.json").is_file() or path.suffix == ".gguf":
            raise ProfileError(f"{name} is a model, not a profile", f"use --model {name}")
        if not path.is_file():
            model = "" if path.suffix in (".yaml", ".yml") or name.count("/") > 1 else f"; a model: --model {name}"
            raise ProfileError(
                f"there is no profile at {name}",
                f"give the path of a YAML file, or a name from: hispec profile list{model}",
            )
        return path
    known = dict(list_profiles())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        if Path(name).is_file():
            hint = f"did you mean the file ./{name}? "
        if name.startswith(BUILTIN) or (Path(name) / "config.json").is_file():
            hint = f"did you mean --model {name}? "
        raise ProfileError(f"there is no profile named {name!r}", f"{hint}see them all with: hispec profile list")
    return known[name]


def list_profiles() -> Iterator[tuple[str, Path]]:
    """Names and files of all profiles, those that ship with the package first: a user's own replaces its namesake.

    Within a folder they are in the order of their names, numbers by their size: `qwen3-4b` before `qwen3-14b`.
    """
    for folder in (shipped_folder(), user_folder()):
        if folder.is_dir():
            yield from sorted(((path.stem, path) for path in folder.glob("*.yaml")), key=lambda found: _order(found[0]))


def _order(name: str) -> list[tuple[str, int]]:
    """Return what sorts names by their letters, and by the size of the numbers in them."""
    return [(letters, int(number or -1)) for letters, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def is_own(path: Path) -> bool:
    """Return whether a file lies in the user's folder of profiles."""
    return path.parent == user_folder()


def shadows(path: Path) -> bool:
    """Return whether a profile of the user's own hides a shipped one of the same name."""
    return is_own(path) and (shipped_folder() / path.name).is_file()


def shipped_folder() -> Path:
    """Where the package's profiles lie: inside it when installed, at the repository's root when edited in place."""
    inside = Path(__file__).parent / "profiles"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "profiles"


def user_folder() -> Path:
    """Where a user keeps profiles of their own."""
    return platformdirs.user_config_path("hispec") / "profiles"


OBSOLETE = {"verification": "sampled tokens are accepted where they are the target's own"}
"""Keys of `decoding` that older profiles have, and why they mean nothing any more."""


def _drop_obsolete(data: dict[str, Any], path: Path) -> None:
    """Warn of keys that mean nothing any more, and forget them."""
    decoding = data.get("decoding")
    if not isinstance(decoding, dict):
        return
    for key in OBSOLETE.keys() & decoding.keys():
        decoding.pop(key)
        warnings.warn(f"profile {path}: decoding.{key} is ignored: {OBSOLETE[key]}; remove it", stacklevel=3)


def read_profile(path: Path) -> Profile:
    """Read one YAML file. Relative paths in it are meant relative to the file.

    Raises:
        ProfileError: with the key at fault and what it accepts.
    """
    return parse_profile(read_text(path), path)


def read_text(path: Path) -> str:
    """Return what a profile's file says; errors as `read_profile`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ProfileError(f"profile {path} is not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise ProfileError(
            f"profile {path} cannot be read: {error.strerror}", "check the file and its permissions"
        ) from error


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise _TwiceError(str(key.value), first[key.value], line)
            first[key.value] = line
        return super().construct_mapping(node, deep)


class _TwiceError(Exception):
    """A key that is given twice, and on which lines."""

    def __init__(self, key: str, first: int, second: int) -> None:
        self.key, self.first, self.second = key, first, second


def parse_profile(text: str, path: Path) -> Profile:
    """Read a profile's text as if it were in a file; see `read_profile`."""
    try:
        data = yaml.load(text, _Loader)
    except _TwiceError as twice:
        raise ProfileError(
            f"profile {path}, line {twice.second} gives {twice.key} again, which line {twice.first} has given",
            "keep one of them",
        ) from None
    except RecursionError:
        raise ProfileError(f"profile {path} is nested too deeply", "mend its structure") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ProfileError(f"profile {path}{where} is not YAML: {problem}", "mend that line") from None
    if not isinstance(data, dict):
        raise ProfileError(f"profile {path} holds no keys", "write at least: name, and target: {model: ...}")
    if not all(isinstance(key, str) for key in data):
        raise ProfileError(
            f"profile {path} has a key that is not text",
            "YAML reads no, yes, on, off and numbers otherwise: quote them",
        )
    data = {"name": path.stem, **data}
    _drop_obsolete(data, path)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        message, hint = explain(error)
        raise ProfileError(f"profile {path}: {message}", hint) from None
    folder = path.parent.absolute()  # a profile made of this one may lie elsewhere
    found: dict[str, Any] = {}
    for name in ("target", "draft", "intermediate"):
        level = getattr(profile, name)
        if level is not None and (level.model or "").startswith(("./", "../")):
            found[name] = level.model_copy(update={"model": str(folder / level.model)})
    beside = {name: getattr(profile, name) for name in ("frequencies", "translators")}
    found |= {name: str(folder / Path(file).expanduser()) for name, file in beside.items() if file is not None}
    return profile.model_copy(update=found) if found else profile


def to_yaml(profile: Profile, *, unicode: bool = True) -> str:
    """Return a profile as the text of a file that reads back as an equal one.

    Args:
        profile: what of it is not set is left out.
        unicode: write letters of all scripts as they are; else as escapes, and so is all that is not ASCII.
    """
    data = {"schema": 1} | profile.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=unicode, width=100))


def resolve_model(model: str) -> str:
    """What the loading libraries call a model: a folder of this package for `builtin:NAME`, else as it is."""
    if not model.startswith(BUILTIN):
        return str(Path(model).expanduser()) if model.startswith("~") else model
    name = model.removeprefix(BUILTIN)
    folder = Path(__file__).parent / name / "model"
    if not name.isidentifier() or not folder.is_dir():
        raise ProfileError(f"no model named {model} ships with hispec", f"use {BUILTIN}tiny, a folder, or a hub id")
    return str(folder)


def check_depths(profile: Profile, model: str, num_layers: int) -> None:
    """Refuse exits that a model of the profile is too shallow for.

    Raises:
        ProfileError: naming the exit and the depths that would do.
    """
    target = profile.target.model
    exits = {
        name: level.exit_layer
        for name, level in (("draft", profile.draft), ("intermediate", profile.intermediate))
        if level is not None and (level.model or target) == model
    }
    if profile.single_layer is not None and model == target:
        exits["single_layer"] = profile.single_layer.exit_layer
    deepest = num_layers - (model == target)
    for name, exit_layer in exits.items():
        if exit_layer is not None and exit_layer > deepest:
            raise ProfileError(
                f"profile {profile.name}: {name}.exit_layer is {exit_layer}, "
                f"and {model} has {counted(num_layers, 'layer')}",
                f"choose an exit from 1 to {deepest}",
            )


def exits_of_target(profile: Profile) -> list[int]:
    """The exits at which levels read the target, its own weights or copies of them, shallow to deep."""
    levels = [level for level in (profile.draft, profile.intermediate) if level is not None]
    own = {level.exit_layer for level in levels if level.model in (None, profile.target.model)}
    return sorted(exit_layer for exit_layer in own if exit_layer is not None)


def with_exits(profile: Profile, draft: int | None, intermediate: int | None, mode: str = "hispec") -> Profile:
    """Return a profile with other exits; None keeps the profile's own level.

    A mode that leaves the intermediate level out does not ask that the profile's own one be deeper than `draft`.

    Raises:
        ProfileError: exits out of order.
    """
    data = profile.model_dump(by_alias=True, exclude_unset=True)
    if draft is not None or intermediate is not None:  # measured for the exits that were
        data.pop("adaptive", None)
        data.pop("calibrated", None)
    if draft is not None:
        data.pop("single_layer", None)  # tuned for the exits that were
        data["draft"] = {"exit_layer": draft} | _kept(data.get("draft"), "ngram", "head")
        if mode != "hispec" and intermediate is None and _reaches(draft, None, profile):
            data.pop("intermediate")
    if intermediate is not None:
        data["intermediate"] = {"exit_layer": intermediate} | _kept(data.get("intermediate"), "head")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        message, _ = explain(error)
        raise ProfileError(
            message,
            "choose other exits, --draft-exit below --intermediate-exit, or leave the intermediate level out: "
            "--mode single-layer",
        ) from None


def _reaches(exit_layer: int | None, weights: Quantization | None, profile: Profile) -> bool:
    """Return whether a draft reads the target too deeply for the profile's intermediate level to judge it.

    An exit of the same weights must be deeper. One of other weights may be as deep.
    """
    level = profile.intermediate
    if level is None or level.model not in (None, profile.target.model):
        return False
    own, other = (inf if depth is None else depth for depth in (exit_layer, level.exit_layer))
    return own > other or (own == other and weights == level.weights)


def _kept(section: dict[str, Any] | None, *keys: str) -> dict[str, Any]:
    return {key: section[key] for key in keys if section and section.get(key) is not None}


def profile_for_model(model: str, num_layers: int, draft: int | None, intermediate: int | None) -> Profile:
    """Return a profile for a checkpoint that has none.

    Any model drafts with n-grams and with a 4-bit copy of itself. Where it was trained for early exit, as its name tells
    or as `draft` says, an exit of the copy drafts, and the whole copy verifies. With `intermediate`, all levels read the
    model's own weights.

    Args:
        model: a folder or a hub id.
        num_layers: its depth, 0 where that is not known.
        draft: layers that draft.
        intermediate: layers that verify drafts.

    Raises:
        ProfileError: exits out of order.
    """
    plain = Profile(name=model, target=Target(model=model))
    if intermediate is not None:
        return with_exits(plain, draft, intermediate)
    if draft is None and EARLY_EXIT in model.lower() and num_layers > 2:
        draft = max(1, round(num_layers / 8))
    copy = Intermediate(weights="int4")
    own = SingleLayer(exit_layer=draft, weights="int4", draft_tokens=6)
    levels = Draft(exit_layer=draft, weights="int4", ngram=GUESSES)
    profile = plain.model_copy(
        update={
            "draft": levels,
            "intermediate": None if draft is None else copy,
            "single_layer": own,
            "decoding": Decoding.model_validate({"draft_tokens": 6, "validate_every": 6 if draft is None else 12}),
        }
    )
    profile._assumed = True
    return profile


def without_copies(profile: Profile) -> Profile:
    """Return a profile whose levels read no quantized copies, which leaves those out that have no exit or model beside."""
    levels: dict[str, Any] = {}
    for name in ("draft", "intermediate", "single_layer"):
        level = getattr(profile, name)
        if level is None or level.weights is None:
            continue
        kept = level.model_copy(update={"weights": None})
        reads = kept.exit_layer is not None or getattr(kept, "ngram", None) is not None
        levels[name] = kept if reads else None
    return profile.model_copy(update=levels)


PAPERS = (8, 4)
"""The paper's exits, draft and intermediate: the whole depth over these."""
PAPERS_LENGTHS = {"hispec": (2, 4), "single-layer": (4, 4)}
"""By mode, tokens that are drafted, and that wait for the target."""


def published(profile: Profile, mode: str, num_layers: int) -> Profile:
    """Return a profile whose levels are as published: exits of the target's full weights, verified after fixed lengths.

    Exits, reduced heads and other models that the profile names stay, and where all levels do, its lengths. What reads
    a whole copy, or n-grams alone, becomes an exit of the paper with the paper's lengths.

    Args:
        profile: whose levels.
        mode: `hispec` or `single-layer`.
        num_layers: the target's depth.

    Raises:
        UsageError: too few layers for so many exits.
    """
    tuned = profile.single_layer if mode == "single-layer" else None
    given = [profile.draft, profile.intermediate] if mode == "hispec" else [tuned or profile.draft]
    levels: list[dict[str, Any]] = []
    deepest, kept = 0, True
    for section, part in zip(given, PAPERS, strict=False):
        named = (
            None if section is None else section.model_dump(exclude_none=True, include={"exit_layer", "model", "head"})
        )
        if not named or not named.keys() & {"exit_layer", "model"}:
            named, kept = {"exit_layer": max(deepest + 1, round(num_layers / part))}, False
        if named.get("model") in (None, profile.target.model):
            deepest = named["exit_layer"]
        levels.append(named)
    if deepest >= num_layers:
        raise UsageError(
            f"arm {mode}-published needs {counted(len(levels), 'exit')}, and {profile.target.model} has "
            f"{counted(num_layers, 'layer')}",
            "leave it out of --arms, or choose a deeper model",
        )
    lengths = dict(zip(("draft_tokens", "validate_every"), PAPERS_LENGTHS[mode], strict=True))
    if kept:
        lengths |= profile.decoding.model_dump(include=set(lengths), exclude_none=True)
        lengths |= {} if tuned is None else {"validate_every": tuned.draft_tokens}
    data = profile.model_dump(by_alias=True, exclude_unset=True)
    for section_name in ("draft", "intermediate", "single_layer", "adaptive", "calibrated"):
        data.pop(section_name, None)
    data |= dict(zip(("draft", "intermediate"), levels, strict=False))
    data["decoding"] = data.get("decoding", {}) | lengths
    return Profile.model_validate(data)


def explain(error: ValidationError, name: str | None = None) -> tuple[str, str]:
    """Return the first error of a validation as a message (with the key's path) and a hint (with the accepted values).

    Args:
        error: of a profile, or of settings.
        name: of a setting, as its source calls it; None for a key of a profile, which YAML may have misread.
    """
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"] if name is None else (name, *first["loc"][1:])))
    value, kind, limits = first["input"], first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        section = _section_at(first["loc"][:-1])
        known = [field.alias or name for name, field in section.model_fields.items()]
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return f"unknown key {path}", (f"did you mean {near[0]}? " if near else "") + f"known here: {', '.join(known)}"
    if kind == "missing":
        return f"{path} is missing", f"add {path}"
    if kind == "value_error":
        fault = limits["error"]
        message, hint = getattr(fault, "message", str(fault)), getattr(fault, "hint", "mend that part of the profile")
        return f"{path}: {message}" if path else message, hint
    if kind == "literal_error":
        return f"{path} is {value!r}", f"accepted: {limits['expected']}"
    if kind == "string_too_short":
        return f"{path} is empty", "give at least one character"
    if kind == "invalid_key":
        return f"{path} is a key that is not text", "quote it, or remove it"
    if words := [f"{word} {limits[key]}" for key, word in LIMITS.items() if key in limits]:
        return f"{path} is {value!r}", f"accepted: {words[0]}"
    if kind == "finite_number":
        return f"{path} is {value!r}", "give a number"
    expected = NAMES_OF_TYPES.get(kind.split("_")[0], kind)
    hint = _yaml_hint(value, expected) if name is None else f"give {expected}"
    return f"{path} is {value!r}, which is not {expected}", hint


def _yaml_hint(value: Any, expected: str) -> str:
    if isinstance(value, bool):
        return f"give {expected}; YAML reads yes, no, on and off as true and false: quote them where text is meant"
    if isinstance(value, str) and expected in ("a number", "a whole number"):
        return f"give {expected} without quotes; YAML reads 1e-3 as text: write 0.001 or 1.0e-3"
    return f"give {expected}"


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section of the schema at a key's path."""
    section: type[BaseModel] = Profile
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        choices = [annotation, *get_args(annotation)]
        section = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel))
    return section

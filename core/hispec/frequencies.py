"""Token frequencies in a text, for heads that read only the most frequent tokens.

`python -m hispec.frequencies MODEL TEXT... -o FILE` counts the tokens of text files with a model's tokenizer; name the
file as a profile's `frequencies`, or save it as `frequencies.json` in the model's folder.
"""

import argparse
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hispec.counts import counted
from hispec.errors import HispecError, ProfileError, UsageError
from hispec.files import write_whole
from hispec.profile import Profile, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "frequencies.json"
SCHEMA = "hispec.frequencies/1"


def count_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], ends: Collection[int]) -> Counter[int]:
    """Return how often each id occurs.

    Args:
        tokenizer: the model's tokenizer.
        texts: the texts whose tokens are counted.
        ends: ids that end a text, counted once for every text: a head without them could never end one.
    """
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer(text, add_special_tokens=False)["input_ids"])
        counts.update(ends)
    return counts


def write_frequencies(path: Path, counts: Counter[int]) -> None:
    """Save counts, the most frequent first; among equals the lower id. Errors as `write_whole`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    record = {"schema": SCHEMA, "ids": [id_ for id_, _ in ordered], "counts": [count for _, count in ordered]}
    write_whole(path, f"{json.dumps(record)}\n".encode(), "choose another place with -o")


def frequent_ids(profile: Profile, count: int) -> list[int]:
    """Return the most frequent tokens, by the profile's file of frequencies, else the one in its target's folder.

    Raises:
        ProfileError: no such file, not such a file, or fewer tokens than `count` in it.
    """
    path = frequencies_path(profile)
    ids = _read(path)
    if ids is None:
        raise ProfileError(
            f"profile {profile.name}: a level has a reduced head, and there are no token frequencies at {path}",
            "count them with: python -m hispec.frequencies; then name the file as the profile's frequencies",
        )
    if count > len(ids):
        raise ProfileError(
            f"profile {profile.name}: a level's head is {count}, and {path} has {counted(len(ids), 'token')}",
            f"choose a head of at most {len(ids)}, or full",
        )
    return ids[:count]


def frequencies_path(profile: Profile) -> Path:
    """Return where a profile's token frequencies are looked for."""
    return Path(profile.frequencies) if profile.frequencies else Path(resolve_model(profile.target.model)) / FILE


@lru_cache(maxsize=8)
def _read(path: Path) -> list[int] | None:
    """Return the ids of a file of frequencies, None where there is no such file."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))["ids"]
        if not all(type(id_) is int and id_ >= 0 for id_ in ids):
            raise ValueError("ids")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise ProfileError(
            f"{path} is not a file of token frequencies", "count them again with: python -m hispec.frequencies"
        ) from None
    return list(dict.fromkeys(ids))


def main() -> None:
    """Count the tokens of text files, every line a text of its own."""
    parser = argparse.ArgumentParser(prog="python -m hispec.frequencies", description=main.__doc__)
    parser.add_argument("model", help="a folder, a hub id or builtin:NAME, for its tokenizer")
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="UTF-8 text files")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"the file to write, such as {FILE}")
    args = parser.parse_args()
    from hispec.models.checkpoint import Checkpoint
    from hispec.models.tokenizer import load_tokenizer

    try:
        checkpoint = Checkpoint(args.model)
        tokenizer, ends = load_tokenizer(checkpoint), checkpoint.config.eos_ids
        write_frequencies(args.output, count_tokens(tokenizer, lines_of_files(args.texts), ends))
    except HispecError as error:
        parser.exit(error.exit_code, f"error: {error.message}\nhint: {error.hint}\n")


def lines_of_files(paths: Iterable[Path]) -> Iterator[str]:
    """Return the lines of text files, line ends included, blank ones left out."""
    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                yield from (line for line in lines if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}", "pass UTF-8 text files") from None


if __name__ == "__main__":
    main()

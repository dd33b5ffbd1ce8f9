"""The text that translators are fitted on, as rows of token ids."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hispec.counts import counted
from hispec.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 16
"""The number of characters that are tokenized together; pieces end at line ends."""

FEWEST_ROWS = 8
HELD_OUT_SHARE = 0.1


def read_rows(
    path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
    row_tokens: int,
    max_rows: int,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Return a text file as rows of tokens, each begun as the tokenizer begins every text; what is over is left out.

    Args:
        path: UTF-8 text.
        tokenizer: the model's.
        vocab_size: the model's vocabulary size.
        row_tokens: length of a row.
        max_rows: no more of the file is read than these take.
        out_of_time: whether to do with what is read so far, once that is enough; asked now and then.

    Returns:
        ids [rows, row_tokens]

    Raises:
        UsageError: a file cannot be read, is too short, or has ids that the model lacks.
    """
    start = tokenizer("")["input_ids"]
    start = start if len(start) < row_tokens else []
    body = row_tokens - len(start)
    rows: list[list[int]] = []
    waiting: list[int] = []
    for piece in _pieces(path):
        waiting += tokenizer(piece, add_special_tokens=False)["input_ids"]
        whole = len(waiting) // body
        rows += [start + waiting[at * body : (at + 1) * body] for at in range(whole)]
        waiting = waiting[whole * body :]
        if len(rows) >= (FEWEST_ROWS if out_of_time() else max_rows):
            break
    if len(rows) < FEWEST_ROWS:
        raise UsageError(
            f"{path} has {counted(len(rows) * body + len(waiting), 'token')}, which is too little text",
            f"give at least {FEWEST_ROWS} times {row_tokens} tokens, better 500,000, or lower --row-tokens",
        )
    ids = torch.tensor(rows[:max_rows])
    if int(ids.max()) >= vocab_size:
        raise UsageError(
            f"the tokenizer writes id {int(ids.max())}, and the model has a vocabulary of {vocab_size}",
            "use the tokenizer that belongs to the model",
        )
    return ids


def split(rows: Tensor, max_held_out: int) -> tuple[Tensor, Tensor]:
    """Return rows to fit on and rows that are held out: one in every few, so that both come from the whole text.

    Returns:
        Both, [rows, row_tokens] each.
    """
    count = min(max_held_out, max(1, round(len(rows) * HELD_OUT_SHARE)))
    held_out = torch.linspace(0, len(rows) - 1, count + 2)[1:-1].round().long()
    fitted = torch.ones(len(rows), dtype=torch.bool)
    fitted[held_out] = False
    return rows[fitted], rows[held_out]


def _pieces(path: Path) -> Iterator[str]:
    """Yield the text of a file, a few lines at a time, with their line ends."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            piece: list[str] = []
            size = 0
            for line in iter(lambda: file.readline(PIECE), ""):
                piece.append(line)
                size += len(line)
                if size >= PIECE:
                    yield "".join(piece)
                    piece, size = [], 0
            if piece:
                yield "".join(piece)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start})", "convert it first, for example with iconv"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check the path of --text") from None

"""Scorers that several datasets share."""

import re
from decimal import Decimal

from hispec.extras import require

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-\u2212])?\$?\s?(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


def final_number(text: str) -> Decimal | None:
    """Return the number that an answer ends in, by the convention of GSM8K (arXiv 2110.14168).

    It is the first number after the last `####`; where that is missing, the last number in the text. Thousands
    separators, a dollar sign, trailing zeros and a full stop do not matter. None where there is no number.
    """
    _, mark, tail = text.rpartition("####")
    match = _NUMBER.search(tail) if mark else None
    if match is None:
        *_, match = None, *_NUMBER.finditer(text)
    if match is None:
        return None
    value = Decimal(match["digits"].replace(",", ""))
    return -value if match["sign"] else value


def rouge_l(reference: str, text: str) -> float:
    """Return the ROUGE-L of a summary: the F-measure over whole texts with Porter's stemmer, by the `rouge-score` package."""
    require("bench", "ROUGE-L", "rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"], use_stemmer=True).score(reference, text)["rougeL"].fmeasure)

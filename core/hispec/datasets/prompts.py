"""`prompts`: a user's own JSONL file, one question a line.

A record:

    {"prompt": "What is the capital of France?", "reference": "Paris"}

`question` may stand for `prompt`, `answer` for `reference`; `id` and the reference may be left out.
"""

from hispec.datasets.base import Dataset, Record, Row, id_of, text_of
from hispec.datasets.scoring import final_number


class Prompts(Dataset):
    """Chat questions, scored by exact match where they have a reference."""

    name = "prompts"
    description = "Your own questions: a JSONL file with prompt or question, and optionally reference or answer."
    metric = "exact_match"

    def row(self, record: Record, index: int) -> Row:
        """Format one record of the source; see `Dataset.row`."""
        has_reference = record.get("reference") is not None or record.get("answer") is not None
        reference = text_of(record, "reference", "answer") if has_reference else None
        own = id_of(record, "id")
        turns = (text_of(record, "prompt", "question"),)
        return Row(str(index) if own is None else own, turns, reference, numbered=own is None)

    def score(self, row: Row, text: str) -> float | None:
        """Return 1 for the reference itself, white space aside, else 0; a reference with `####` compares final numbers."""
        if row.reference is None:
            return None
        if "####" in row.reference:
            return float(final_number(text) == final_number(row.reference))
        return float(text.split() == row.reference.split())

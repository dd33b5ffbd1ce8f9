"""MT-bench: 80 open questions of two turns (Zheng et al., arXiv 2306.05685), in FastChat's `question.jsonl`.

A record in the form of the source:

    {"question_id": 81, "category": "writing", "turns": ["Write a short letter to a friend about a week by the sea.",
     "Now say the same in rhymes."]}

Its answers are graded by another model, so they are not scored here.
"""

from typing import ClassVar

from hispec.datasets.base import Dataset, HubFile, Record, RecordError, Row, checked_text, id_of


class MTBench(Dataset):
    """Chat questions of two turns."""

    name = "mt_bench"
    description = "Open questions in eight categories (80 rows of two turns)."
    max_new_tokens = 1024
    hub: ClassVar[HubFile | None] = HubFile(
        "HuggingFaceH4/mt_bench_prompts", "e3a795c5e9a82ee40611c416b8a7786c73198991", "raw/question.jsonl"
    )

    def row(self, record: Record, index: int) -> Row:
        """Format one record of the source; see `Dataset.row`."""
        turns = record.get("turns")
        if not isinstance(turns, list) or not turns:
            raise RecordError("has no turns, a list of texts")
        own = id_of(record, "question_id")
        number = str(index) if own is None else own
        return Row(f"{self.name}/{number}", tuple(checked_text(turn, "turn") for turn in turns), numbered=own is None)

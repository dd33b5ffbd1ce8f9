r"""`sample`: word problems that the shipped model can solve; ours, and part of the package.

A record of `data/sample.jsonl`:

    {"id": "sample/2", "question": "Emma has 18 pencils. Victor has 3 times as many. How many pencils do they have
     together?", "answer": "To get 3 times as many, multiply: 3 * 18 = 54.\nNow add the two: 18 + 54 = 72 pencils.\n####
     72"}

`training.make_sample` draws them, in the wordings that the model was trained on but from a seed that no training
text comes from, and not by whether the model solves them.
"""

from hispec.datasets.base import Dataset, Record, Row, text_of
from hispec.datasets.gsm8k import question_and_number
from hispec.datasets.scoring import final_number


class Sample(Dataset):
    """Chat questions, exact match on the final number."""

    name = "sample"
    description = "Word problems in the wordings of the shipped model (100 rows, part of the package)."
    metric = "exact_match"
    max_new_tokens = 200

    def row(self, record: Record, index: int) -> Row:
        """Format one record of the source; see `Dataset.row`."""
        question, number = question_and_number(record)
        return Row(text_of(record, "id"), (question,), number)

    def score(self, row: Row, text: str) -> float:
        """Return 1 where the answer's final number equals the reference's, else 0; see `final_number`."""
        return float(final_number(text) == final_number(row.reference))

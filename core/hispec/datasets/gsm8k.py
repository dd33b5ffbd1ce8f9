r"""GSM8K: grade-school word problems, asked with eight worked examples and scored on the final number.

A record in the form of the source (Cobbe et al., arXiv 2110.14168):

    {"question": "A tray holds 12 muffins. Priya bakes 3 trays and gives 8 muffins to her neighbours. How many does she
     have left?", "answer": "Priya bakes 3*12=<<3*12=36>>36 muffins.\nShe has 36-8=<<36-8=28>>28 left.\n#### 28"}

The examples in `data/gsm8k_shots.jsonl` were written for this package in the form of the training set, without its
calculator annotations; none of them is taken from it.
"""

from hispec.datasets.base import Dataset, HubFile, Record, RecordError, Row, text_of
from hispec.datasets.files import shipped_records
from hispec.datasets.scoring import final_number


class GSM8K(Dataset):
    """Eight-shot chain of thought, exact match on the final number."""

    name = "gsm8k"
    description = "Grade-school word problems (test set, 1,319 rows), eight worked examples first."
    metric = "exact_match"
    raw = True
    stop = ("\nQuestion:",)
    max_new_tokens = 256
    hub = HubFile("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "main/test-00000-of-00001.parquet")

    def __init__(self) -> None:
        shots = [f"Question: {shot['question']}\nAnswer: {shot['answer']}" for shot in shipped_records("gsm8k_shots")]
        self._examples = "\n\n".join(shots)

    def row(self, record: Record, index: int) -> Row:
        """Format one record of the source; see `Dataset.row`."""
        question, number = question_and_number(record)
        return Row(f"gsm8k/{index}", (f"{self._examples}\n\nQuestion: {question.strip()}\nAnswer:",), number)

    def score(self, row: Row, text: str) -> float:
        """Return 1 where the answer's final number equals the reference's, else 0; see `final_number`."""
        return float(final_number(self.before_stop(text)) == final_number(row.reference))


def question_and_number(record: Record) -> tuple[str, str]:
    """Return question and final number of a record in GSM8K's form.

    Raises:
        RecordError: a field that is missing, or an answer that does not end in a number.
    """
    number = final_number(text_of(record, "answer"))
    if number is None:
        raise RecordError("has an answer that ends in no number")
    return text_of(record, "question"), str(number)

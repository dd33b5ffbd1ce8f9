"""A new dataset: riddles, scored by whether the answer names the thing. Lives in core/hispec/datasets."""

from hispec.datasets.base import Dataset, Record, Row, text_of


class Riddles(Dataset):
    """Riddles of one turn."""

    name = "riddles"
    description = "Riddles, one a line."
    metric = "exact_match"
    max_new_tokens = 12

    def row(self, record: Record, index: int) -> Row:
        """Return the row of a record; arguments and errors are those of `Dataset.row`."""
        return Row(f"riddles/{index}", (text_of(record, "riddle"),), text_of(record, "thing"))

    def score(self, row: Row, text: str) -> float:
        """Return 1 where the answer names the thing, else 0."""
        return float(row.reference in text)

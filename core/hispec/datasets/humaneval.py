r"""HumanEval: Python functions to complete, scored by running their tests (Chen et al., arXiv 2107.03374).

A record in the form of the source:

    {"task_id": "HumanEval/164", "entry_point": "double",
     "prompt": "\n\ndef double(x: int):\n    \"\"\" Twice a number.\n    >>> double(2)\n    4\n    \"\"\"\n",
     "canonical_solution": "    return 2 * x\n",
     "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n"}

The prompt is continued as it is, and the completion ends at the paper's stop texts.
"""

from hispec.datasets.base import Dataset, HubFile, Record, Row, text_of
from hispec.datasets.execution import check_program


class HumanEval(Dataset):
    """Completions of a function, pass@1 with one sample: the share of completions that pass their tests.

    Args:
        allow_code_execution: run the model's code, see `hispec.datasets.execution`; otherwise nothing is scored.
    """

    name = "humaneval"
    description = "Python functions to complete (164 rows)."
    metric = "pass@1"
    raw = True
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    max_new_tokens = 512
    hub = HubFile(
        "openai/openai_humaneval",
        "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        "openai_humaneval/test-00000-of-00001.parquet",
    )

    def __init__(self, *, allow_code_execution: bool = False) -> None:
        self.allow_code_execution = allow_code_execution

    def row(self, record: Record, index: int) -> Row:
        """Format one record of the source; see `Dataset.row`."""
        prompt = text_of(record, "prompt")
        reference = {"test": text_of(record, "test"), "entry_point": text_of(record, "entry_point")}
        return Row(text_of(record, "task_id"), (prompt,), reference)

    def score(self, row: Row, text: str) -> float | None:
        """Return 1 where the completed function passes its tests, else 0; None where running code is not allowed.

        Raises:
            UnavailableError: this machine cannot run code with limits on its resources.
        """
        if not self.allow_code_execution:
            return None
        function = row.turns[0] + self.before_stop(text)
        return float(check_program(f"{function}\n{row.reference['test']}\ncheck({row.reference['entry_point']})\n"))

"""Writes `data/sample.jsonl` again, the same every time: `python -m training.make_sample`."""

import json

from hispec.datasets.files import shipped_path
from training.evaluate import held_out_problems

COUNT = 100  # four from each family
SEED = "sample"


def make_sample() -> str:
    """Return the text of the file: word problems, the families in turn, drawn as the held-out ones but from another
    seed.
    """
    problems = enumerate(held_out_problems(COUNT, "trained", SEED))
    records = [{"id": f"sample/{i}", "question": problem.question, "answer": problem.answer} for i, problem in problems]
    return "".join(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    shipped_path("sample").write_text(make_sample(), encoding="utf-8")

"""Every dataset: how a record is asked, and what its scorer makes of right, wrong and odd answers."""

import json
import re
from decimal import Decimal

import pytest

from hispec.datasets import DATASETS, FORMATS
from hispec.datasets.base import RecordError
from hispec.datasets.files import shipped_path, shipped_records
from hispec.datasets.humaneval import HumanEval
from hispec.datasets.scoring import final_number, rouge_l
from training.make_sample import make_sample

GSM8K = {
    "question": "A crate holds 8 melons. How many are in 3 crates, if 2 are eaten?",
    "answer": "There are 8*3=<<8*3=24>>24 melons.\nThen 24-2=<<24-2=22>>22 are left.\n#### 22",
}
ARTICLE = "The mill on the river has been sold. Its new owners will make flour there again."
HUMANEVAL = {
    "task_id": "HumanEval/7",
    "prompt": 'def double(x: int) -> int:\n    """Twice x.\n    >>> double(2)\n    4\n    """\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "entry_point": "double",
}
RECORDS = {
    "sample": {"id": "sample/5", **GSM8K},
    "gsm8k": GSM8K,
    "humaneval": HUMANEVAL,
    "cnn_dailymail": {"article": ARTICLE, "highlights": "Mill is sold .\nFlour to be made again .", "id": "c0ffee"},
    "xsum": {"document": ARTICLE, "summary": "A mill is to make flour again.", "id": "31415926"},
    "sharegpt": {
        "id": "a_0",
        "conversations": [
            {"from": "human", "value": "Which planets have rings?"},
            {"from": "gpt", "value": "Four."},
            {"from": "human", "value": "Name them."},
        ],
    },
    "mt_bench": {"question_id": 81, "category": "writing", "turns": ["Write a letter.", "Now in rhymes."]},
    "spec_bench": {"question_id": 161, "category": "translation", "turns": ["Translate German to English: Haus."]},
    "prompts": {"prompt": "What is the capital of France?", "reference": "Paris"},
}


def row_of(name, **changes):
    return FORMATS[name]().row({**RECORDS[name], **changes}, 5)


@pytest.mark.parametrize(
    ("name", "id", "turns", "reference"),
    [
        ("sample", "sample/5", (GSM8K["question"],), "22"),
        ("humaneval", "HumanEval/7", (HUMANEVAL["prompt"],), {"test": HUMANEVAL["test"], "entry_point": "double"}),
        ("sharegpt", "sharegpt/5", ("Which planets have rings?",), None),
        ("mt_bench", "mt_bench/81", ("Write a letter.", "Now in rhymes."), None),
        ("spec_bench", "spec_bench/161", ("Translate German to English: Haus.",), None),
        ("prompts", "5", ("What is the capital of France?",), "Paris"),
    ],
)
def test_a_record_becomes_a_row(name, id, turns, reference):  # noqa: A002
    row = row_of(name)
    assert (row.id, row.turns, row.reference) == (id, turns, reference)


@pytest.mark.parametrize(
    ("name", "label", "text", "reference"),
    [
        ("gsm8k", "Question", f"Question: {GSM8K['question']}\nAnswer:", "22"),
        ("cnn_dailymail", "Article", f"Article: {ARTICLE}\nSummary:", "Mill is sold .\nFlour to be made again ."),
        ("xsum", "Article", f"Article: {ARTICLE}\nSummary:", "A mill is to make flour again."),
    ],
)
def test_worked_examples_come_before_the_question_and_no_stop_text_is_in_an_example(name, label, text, reference):
    dataset, row = FORMATS[name](), row_of(name)
    assert dataset.raw
    *examples, question = row.turns[0].split("\n\n")
    assert len(examples) == {"gsm8k": 8}.get(name, 1)
    assert question == text and row.reference == reference
    for example in examples:
        _, answer = re.fullmatch(rf"{label}: .+\n(Answer|Summary): ((?:.|\n)+)", example).groups()
        assert dataset.before_stop(answer) == answer
        assert dataset.before_stop(f"{answer}\n\n{label}: ") in (answer, answer + "\n")


def test_every_equation_of_the_worked_examples_is_right():
    for shot in shipped_records("gsm8k_shots"):
        equations = re.findall(r"(\$?\d+(?: [-+*/] \$?\d+)+) = \$?(\d+)", shot["answer"])
        assert len(equations) == shot["answer"].count("\n")
        assert all(eval(left.replace("$", "")) == int(right) for left, right in equations), shot
        assert final_number(shot["answer"]) == int(equations[-1][1])


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_json_and_datasets_describe_themselves(name):
    kind, row = FORMATS[name], row_of(name)
    assert json.loads(json.dumps(row.reference)) == row.reference
    assert kind.name == name and kind.description and kind.max_new_tokens > 0
    assert (name in DATASETS) == (name != "prompts")
    if kind.hub is not None:
        assert re.fullmatch("[0-9a-f]{40}", kind.hub.revision)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("gsm8k", {"question": None}, "has no question"),
        ("gsm8k", {"answer": "I do not know"}, "ends in no number"),
        ("gsm8k", {"question": 7}, "question that is not text"),
        ("sample", {"question": " "}, "blank question"),
        ("humaneval", {"test": None}, "has no test"),
        ("cnn_dailymail", {"article": None}, "has no article"),
        ("xsum", {"summary": None}, "has no summary"),
        ("sharegpt", {"conversations": None}, "has no conversations"),
        ("sharegpt", {"conversations": [{"from": "human", "value": 3}]}, "value that is not text"),
        ("mt_bench", {"turns": []}, "has no turns"),
        ("mt_bench", {"turns": "one"}, "has no turns"),
        ("spec_bench", {"turns": ["one", ""]}, "blank turn"),
        ("prompts", {"prompt": None}, "has no prompt or question"),
        ("prompts", {"prompt": "\ud800"}, "not UTF-8"),
        ("prompts", {"reference": 3}, "reference that is not text"),
    ],
)
def test_a_record_that_cannot_be_asked_is_refused(name, changes, problem):
    with pytest.raises(RecordError, match=problem):
        row_of(name, **changes)


@pytest.mark.parametrize(
    "conversations", [[], [{"from": "gpt", "value": "Hello."}], [{"from": "human", "value": " "}], [{}]]
)
def test_conversations_that_a_person_does_not_open_are_left_out(conversations):
    assert row_of("sharegpt", conversations=conversations) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 24 - 2 = 22\n#### 22", "22"),
        ("#### 1,234.00", "1234"),
        ("#### 1,234,567", "1234567"),
        ("#### $70,000.", "70000"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### \u22125", "-5"),
        ("####22", "22"),
        ("#### 22 melons, not 24", "22"),
        ("#### 3\n#### 4", "4"),
        ("#### ", None),
        ("there are 12, no 13 ####", "13"),
        ("The answer is 22.", "22"),
        ("It is 20-5", "5"),
        ("between 3 and 4.50", "4.5"),
        ("1,2,3", "3"),
        ("12,3456", "3456"),
        ("it costs .5", "0.5"),
        ("**22**", "22"),
        (r"\boxed{-22}", "-22"),
        ("none", None),
        ("", None),
    ],
)
def test_the_final_number_of_an_answer(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(("text", "score"), [("#### 22", 1), ("22.0", 1), ("#### 24", 0), ("no idea", 0), ("", 0)])
@pytest.mark.parametrize("name", ["gsm8k", "sample"])
def test_exact_match_on_the_final_number(name, text, score):
    assert FORMATS[name]().score(row_of(name), text) == score


def test_what_follows_a_stop_text_is_not_scored():
    text = " So 24 - 2 = 22.\n#### 22\n\nQuestion: And now?\nAnswer: #### 3"
    assert FORMATS["gsm8k"]().score(row_of("gsm8k"), text) == 1
    summary = " A mill is to make flour again."
    assert FORMATS["xsum"]().score(row_of("xsum"), f"{summary}\nArticle: Another one.") == 1


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence_of_stems():
    assert rouge_l("the mills make flour", "the mill makes flour") == 1
    assert rouge_l("the mill makes flour", "paper is made here") == 0
    assert rouge_l("the mill makes flour", "") == 0
    assert rouge_l("a b c d", "a c x") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    dataset, row = FORMATS["cnn_dailymail"](), row_of("cnn_dailymail")
    assert 0 < dataset.score(row, "The mill is sold") < dataset.score(row, row.reference) == 1


def test_a_users_own_prompts_are_scored_where_they_have_a_reference():
    prompts = FORMATS["prompts"]()
    assert prompts.score(row_of("prompts"), " Paris\n") == 1
    assert prompts.score(row_of("prompts"), "Lyon") == 0
    assert prompts.score(row_of("prompts", reference=None), "Paris") is None
    numbered = prompts.row(GSM8K, 0)
    assert numbered.turns == (GSM8K["question"],)
    assert prompts.score(numbered, "It is 22.") == 1 and prompts.score(numbered, "It is 23.") == 0


@pytest.mark.parametrize("name", ["mt_bench", "spec_bench", "sharegpt"])
def test_open_questions_are_not_scored(name):
    assert FORMATS[name].metric is None and FORMATS[name]().score(row_of(name), "Saturn") is None


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (HUMANEVAL["canonical_solution"], 1),
        ("    return x + x\n\ndef check(candidate):\n    assert False\n", 1),
        ("    return 2 * x\n\nprint(double(1)\nclass", 1),
        ("    return x * x\n", 0),
        ("    return 2 *\n", 0),
        ("    raise SystemExit(0)\n", 0),
        ("", 0),
    ],
)
def test_pass_at_1_runs_the_tests_on_the_completion_up_to_a_stop_text(completion, score):
    assert HumanEval(allow_code_execution=True).score(row_of("humaneval"), completion) == score


def test_code_is_not_run_unless_that_is_allowed():
    assert HumanEval().score(row_of("humaneval"), HUMANEVAL["canonical_solution"]) is None


def test_the_shipped_sample_is_what_its_generator_writes():
    assert shipped_path("sample").read_text(encoding="utf-8") == make_sample()

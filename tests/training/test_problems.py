"""The generated text: right, repeatable, and with wordings that training never sees."""

import re
from fractions import Fraction
from itertools import islice
from random import Random

import pytest

from training.evaluate import held_out_problems
from training.families import FAMILIES
from training.problems import conversations, final_number, make_problem


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_equation_of_an_answer_is_right_and_the_last_is_the_result(family):
    rng = Random(5)
    for _ in range(200):
        problem = make_problem(rng, family=family)
        equations = re.findall(r"(\$?\d+(?: [-+*/] \$?\d+)+) = \$?(\d+)", problem.answer)
        assert len(equations) == len(family.steps), problem.answer
        for left, right in equations:
            assert evaluate(left.replace("$", "")) == int(right), problem.answer
        assert int(equations[-1][1]) == problem.result == final_number(problem.answer)
        assert problem.result >= 0


def evaluate(expression):
    value, *rest = re.findall(r"\d+|[-+*/]", expression)
    value = Fraction(value)
    for operator, number in zip(rest[::2], map(Fraction, rest[1::2]), strict=True):
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[operator]
    return value


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_question_names_every_number_that_its_answer_needs(family):
    """Whatever the wording, the held-out one included."""
    for question in family.questions:
        known = set(re.findall(r"{(\w+)}", question))
        if "part" in known:  # "a third" says k
            known.add("k")
        for _, terse, _ in family.steps:
            left, right = terse.split(" = ")
            assert set(re.findall(r"{(\w+)}", left)) <= known, question
            known |= set(re.findall(r"{(\w+)}", right))


def test_wordings_held_out_of_training_never_occur_in_it():
    trained = {make_problem(Random(f"t{i}")).question for i in range(3000)}
    held_out = {problem.question for problem in held_out_problems(200, "held_out")}
    assert not trained & held_out


def test_the_same_seed_gives_the_same_text():
    first, again, other = (list(islice(conversations(Random(seed)), 20)) for seed in (1, 1, 2))
    assert first == again != other


def test_held_out_problems_are_distinct_and_cover_every_family():
    problems = held_out_problems(100, "trained")
    assert len({problem.question for problem in problems}) == 100
    assert {problem.family for problem in problems} == {family.name for family in FAMILIES}


@pytest.mark.parametrize(
    ("text", "number"),
    [("a\n#### 12", 12), ("#### 1,234", 1234), ("#### -5", -5), ("12", None), ("#### twelve", None), ("", None)],
)
def test_the_final_number_is_read_only_behind_its_mark(text, number):
    assert final_number(text) == number

"""Problems and conversations made from the families: the text that the shipped model is trained and tested on."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from training.families import FAMILIES, Family, scenery

Wordings = Literal["trained", "held_out"]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Solve the problem step by step.",
    "You are a patient teacher of arithmetic.",
    "Answer with the steps and the result.",
)
SMALL_TALK = (
    ("Hello!", "Hello! Give me a word problem and I will work it out step by step."),
    ("Hi", "Hello! Give me a word problem and I will work it out step by step."),
    ("Good morning", "Good morning! Which problem shall we solve?"),
    ("How are you?", "I am well, thank you. Which problem shall we solve?"),
    ("Who are you?", "I am tiny, a small model that solves grade-school word problems."),
    ("What can you do?", "I can solve short word problems about numbers, money and time, step by step."),
    ("Thank you!", "You are welcome. Do you have another problem?"),
    ("Thanks", "You are welcome. Do you have another problem?"),
    ("Goodbye", "Goodbye! Come back with more problems."),
    ("Tell me a joke", "I only know word problems. Why was six afraid of seven? Because seven ate nine."),
)


@dataclass(frozen=True)
class Problem:
    """A question, its worked answer (ending in `#### <number>`), and where it comes from."""

    question: str
    answer: str
    family: str
    result: int


def make_problem(rng: Random, wordings: Wordings = "trained", family: Family | None = None) -> Problem:
    """Draw one problem; `held_out` uses the wordings that training never sees."""
    family = family or rng.choice(FAMILIES)
    values = {**scenery(rng), **family.draw(rng)}
    question = rng.choice(family.questions[:-1]) if wordings == "trained" else family.questions[-1]
    voice = rng.randrange(3)
    lines = [step[voice].format(**values) for step in family.steps]
    lines.append(f"#### {values['answer']}")
    return Problem(question.format(**values), "\n".join(lines), family.name, int(values["answer"]))


def final_number(text: str) -> int | None:
    """Return the number after the last `####`, or None where the answer has no such line."""
    _, mark, tail = text.rpartition("####")
    tail = tail.strip().replace(",", "")
    return int(tail) if mark and tail.lstrip("-").isdecimal() else None


def conversations(rng: Random) -> Iterator[list[dict[str, str]]]:
    """Yield chat conversations without end in the form that chat templates take: mostly problems, a little small talk."""
    while True:
        messages = []
        if rng.random() < 0.1:
            messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.02:
                said, reply = rng.choice(SMALL_TALK)
            else:
                problem = make_problem(rng)
                said, reply = problem.question, problem.answer
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": reply})
        yield messages

"""Families of grade-school word problems: how their numbers are drawn, how they are asked, how they are solved.

A family is data plus one small function that draws numbers. Every step of a solution is written in three voices
(narrated, terse, explained); a solution keeps one voice, so its first words decide how the rest reads.
The last question wording of every family is held out: it is never trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Values = dict[str, int | str]
Step = tuple[str, str, str]


@dataclass(frozen=True)
class Family:
    """One kind of problem.

    Attributes:
        name: unique, stable: held-out figures are reported by it.
        draw: random source -> the numbers of one problem, `answer` among them.
        questions: wordings; the last one is held out of training.
        steps: the solution, each step in the three voices.
    """

    name: str
    draw: Callable[[Random], Values]
    questions: tuple[str, ...]
    steps: tuple[Step, ...]


NAMES = (
    ("Anna", "she", "her"), ("Ben", "he", "his"), ("Carla", "she", "her"), ("David", "he", "his"),
    ("Emma", "she", "her"), ("Felix", "he", "his"), ("Grace", "she", "her"), ("Hugo", "he", "his"),
    ("Ines", "she", "her"), ("Jack", "he", "his"), ("Kate", "she", "her"), ("Leo", "he", "his"),
    ("Maria", "she", "her"), ("Noah", "he", "his"), ("Olga", "she", "her"), ("Paul", "he", "his"),
    ("Rosa", "she", "her"), ("Sam", "he", "his"), ("Tina", "she", "her"), ("Victor", "he", "his"),
    ("Wendy", "she", "her"), ("Omar", "he", "his"), ("Yara", "she", "her"), ("Tom", "he", "his"),
    ("Natalia", "she", "her"), ("James", "he", "his"), ("Lucy", "she", "her"), ("Ravi", "he", "his"),
    ("Mei", "she", "her"), ("Kofi", "he", "his"), ("Sofia", "she", "her"), ("Ali", "he", "his"),
)  # fmt: skip
THINGS = (
    "apples", "oranges", "pencils", "marbles", "stickers", "books", "cookies", "cards", "shells", "stamps",
    "balloons", "candles", "cupcakes", "eggs", "flowers", "toys", "coins", "beads", "buttons", "crayons",
    "notebooks", "muffins", "tomatoes", "lemons", "peaches", "ribbons", "badges", "clips", "pens", "rocks",
)  # fmt: skip
GOODS = ("shirt", "ticket", "lamp", "bag", "hat", "ball", "puzzle", "plant", "mug", "kite", "scarf", "game", "book")
CONTAINERS = ("boxes", "bags", "baskets", "jars", "crates", "packs", "trays", "drawers", "shelves", "buckets")
JOBS = ("babysitting", "mowing lawns", "washing cars", "walking dogs", "tutoring", "painting fences", "raking leaves")
VEHICLES = ("car", "train", "bus", "truck", "bike", "boat", "van")
PLACES = ("the market", "the shop", "school", "the park", "the library", "the fair", "the farm", "the bakery")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FRACTIONS = ((2, "half"), (3, "a third"), (4, "a quarter"), (5, "a fifth"))


def scenery(rng: Random) -> Values:
    """Return the words that any wording may use: two people, two things, and the rest of the scenery."""
    (name, he, his), (other, other_he, _) = rng.sample(NAMES, 2)
    thing, thing2 = rng.sample(THINGS, 2)
    good, good2 = rng.sample(GOODS, 2)
    day, day2 = rng.sample(DAYS, 2)
    return {
        "name": name, "he": he, "He": he.capitalize(), "his": his, "other": other, "other_he": other_he,
        "thing": thing, "thing2": thing2, "good": good, "good2": good2, "container": rng.choice(CONTAINERS),
        "job": rng.choice(JOBS), "vehicle": rng.choice(VEHICLES), "place": rng.choice(PLACES),
        "day": day, "day2": day2,
    }  # fmt: skip


def _gain_loss(rng: Random) -> Values:
    a, b = rng.randint(5, 90), rng.randint(3, 60)
    c = rng.randint(2, a + b - 1)
    return {"a": a, "b": b, "c": c, "s": a + b, "answer": a + b - c}


def _half_as_many(rng: Random) -> Values:
    k, part = rng.choice(FRACTIONS)
    b = rng.randint(3, 40)
    return {"k": k, "part": part, "a": b * k, "b": b, "answer": b * k + b}


def _times_as_many(rng: Random) -> Values:
    k, a = rng.randint(2, 6), rng.randint(3, 25)
    return {"k": k, "a": a, "b": k * a, "answer": k * a + a}


def _more_than(rng: Random) -> Values:
    a, d, e = rng.randint(4, 60), rng.randint(2, 30), rng.randint(2, 30)
    return {"a": a, "d": d, "b": a + d, "e": e, "c": a + d + e, "answer": a + (a + d) + (a + d + e)}


def _buy_two(rng: Random) -> Values:
    a, p, b, q = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 12)
    return {"a": a, "p": p, "b": b, "q": q, "x": a * p, "y": b * q, "answer": a * p + b * q}


def _change(rng: Random) -> Values:
    a, p = rng.randint(2, 9), rng.randint(2, 9)
    cost = a * p
    paid = rng.choice([n for n in (20, 50, 100) if n > cost])
    return {"a": a, "p": p, "x": cost, "m": paid, "answer": paid - cost}


def _wage(rng: Random) -> Values:
    w, h, d = rng.randint(5, 15), rng.randint(2, 9), rng.randint(5, 40)
    return {"w": w, "h": h, "x": w * h, "d": d, "answer": w * h + d}


def _saving(rng: Random) -> Values:
    w, weeks = rng.randint(2, 12), rng.randint(2, 12)
    have = rng.randint(2, 60)
    return {"w": w, "answer": weeks, "m": w * weeks, "a": have, "p": have + w * weeks}


def _share(rng: Random) -> Values:
    k, each, extra = rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 30)
    total = k * each
    return {"k": k, "a": total + extra, "d": extra, "x": total, "answer": each}


def _boxes(rng: Random) -> Values:
    a, b, c = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 60)
    return {"a": a, "b": b, "x": a * b, "c": c, "answer": a * b + c}


def _boxes_eaten(rng: Random) -> Values:
    a, b = rng.randint(3, 12), rng.randint(3, 12)
    c = rng.randint(2, a * b - 1)
    return {"a": a, "b": b, "x": a * b, "c": c, "answer": a * b - c}


def _journey(rng: Random) -> Values:
    v, h, v2, h2 = rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 6)
    return {
        "v": v * 5,
        "h": h,
        "x": v * 5 * h,
        "w": v2 * 5,
        "g": h2,
        "y": v2 * 5 * h2,
        "answer": v * 5 * h + v2 * 5 * h2,
    }


def _pages(rng: Random) -> Values:
    d, r, k = rng.randint(3, 30), rng.randint(3, 15), rng.randint(2, 9)
    return {"a": d + r * k, "d": d, "x": r * k, "r": r, "answer": k}


def _fraction_left(rng: Random) -> Values:
    k, part = rng.choice(FRACTIONS)
    b = rng.randint(3, 30)
    left = b * k - b
    c = rng.randint(1, left - 1)
    return {"k": k, "part": part, "a": b * k, "b": b, "x": left, "c": c, "answer": left - c}


def _ages(rng: Random) -> Values:
    a, d, n = rng.randint(4, 30), rng.randint(2, 20), rng.randint(2, 15)
    return {"a": a, "d": d, "b": a + d, "n": n, "answer": a + d + n}


def _ages_sum(rng: Random) -> Values:
    a, k, n = rng.randint(3, 15), rng.randint(2, 5), rng.randint(2, 10)
    return {"a": a, "k": k, "b": a * k, "n": n, "x": a + n, "y": a * k + n, "answer": a + n + a * k + n}


def _minutes(rng: Random) -> Values:
    a, b, n = rng.randint(3, 25), rng.randint(3, 25), rng.randint(2, 5)
    return {"a": a, "b": b, "x": a + b, "n": n, "answer": (a + b) * n}


def _rows(rng: Random) -> Values:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 5)
    return {"a": a, "b": b, "x": a * b, "c": c, "answer": a * b * c}


def _discount(rng: Random) -> Values:
    a, p, d = rng.randint(2, 9), rng.randint(5, 20), rng.randint(1, 4)
    return {"a": a, "p": p, "d": d, "x": p - d, "answer": a * (p - d)}


def _two_jobs(rng: Random) -> Values:
    a, w, b, v = rng.randint(2, 8), rng.randint(4, 12), rng.randint(2, 8), rng.randint(4, 12)
    c = rng.randint(2, a * w + b * v - 1)
    return {
        "a": a, "w": w, "b": b, "v": v, "x": a * w, "y": b * v, "s": a * w + b * v, "c": c,
        "answer": a * w + b * v - c,
    }  # fmt: skip


def _days_of_work(rng: Random) -> Values:
    a, n, k = rng.randint(2, 9), rng.randint(2, 6), rng.randint(2, 9)
    total = a * n * k
    return {"a": a, "n": n, "x": a * n, "t": total, "answer": k}


def _profit(rng: Random) -> Values:
    n, b = rng.randint(2, 12), rng.randint(1, 8)
    s = b + rng.randint(1, 9)
    return {"n": n, "b": b, "s": s, "d": s - b, "answer": n * (s - b)}


def _give_share(rng: Random) -> Values:
    k, each, b = rng.randint(2, 6), rng.randint(3, 15), rng.randint(2, 40)
    a = k * each - b
    if a < 2:
        a, b = k * each - 2, 2
    return {"a": a, "b": b, "x": a + b, "k": k, "answer": each}


def _recipe(rng: Random) -> Values:
    a, b, k = rng.randint(2, 9), rng.randint(1, 9), rng.randint(2, 9)
    return {"a": a, "b": b, "k": k, "x": a * k, "y": b * k, "answer": a * k + b * k}


def _heights(rng: Random) -> Values:
    a, d, e = rng.randint(40, 120), rng.randint(2, 30), rng.randint(2, 30)
    return {"a": a, "d": d, "x": a - d, "e": e, "answer": a - d + e}


FAMILIES: tuple[Family, ...] = (
    Family(
        "gain_loss",
        _gain_loss,
        (
            "{name} has {a} {thing}. {other} gives {name} {b} more. Then {name} loses {c} of them. How many {thing} does {name} have now?",
            "On {day} {name} had {a} {thing}. {He} bought {b} more at {place} and gave {c} of them to {other}. How many {thing} are left?",
            "There were {a} {thing} at {place}. {name} brought {b} more, and later {other} took {c} away. How many {thing} are there now?",
            "{name} found {a} {thing} on {day} and {b} {thing} on {day2}. {He} gave {c} to {other}. How many does {he} still have?",
            "After getting {b} {thing} from {other}, {name}, who already owned {a}, handed out {c} {thing}. How many {thing} remain?",
        ),
        (
            ("{name} first has {a} + {b} = {s} {thing}.", "{a} + {b} = {s}", "To find how many there were, add {a} and {b}: {a} + {b} = {s} {thing}."),
            ("After losing {c}, there are {s} - {c} = {answer} {thing} left.", "{s} - {c} = {answer}", "Then take away the {c} that went: {s} - {c} = {answer} {thing}."),
        ),
    ),
    Family(
        "half_as_many",
        _half_as_many,
        (
            "{name} sold {a} {thing} on {day}, and {part} as many on {day2}. How many {thing} did {name} sell altogether?",
            "{name} picked {a} {thing}. {other} picked {part} as many. How many {thing} did they pick together?",
            "There are {a} {thing} and {part} as many {thing2} at {place}. How many {thing} and {thing2} are there in total?",
            "{name} collected {a} {thing} while {other} only collected {part} of that number. How many {thing} do the two have in all?",
            "At {place}, {other} has {part} as many {thing} as {name}, who has {a}. What is the total number of {thing}?",
        ),
        (
            ("The smaller number is {a} / {k} = {b}.", "{a} / {k} = {b}", "As it is {part} of {a}, divide {a} by {k}: {a} / {k} = {b}."),
            ("Altogether that makes {a} + {b} = {answer}.", "{a} + {b} = {answer}", "Now add both numbers: {a} + {b} = {answer}."),
        ),
    ),
    Family(
        "times_as_many",
        _times_as_many,
        (
            "{name} has {a} {thing}. {other} has {k} times as many. How many {thing} do they have together?",
            "{other} collected {k} times as many {thing} as {name}. {name} collected {a}. How many did they collect in total?",
            "On {day} {name} made {a} {thing}, and on {day2} {he} made {k} times as many. How many {thing} did {he} make on both days?",
            "A tray holds {a} {thing} and a crate holds {k} times that many. How many {thing} do they hold in all?",
            "If {name} owns {a} {thing} and {other} owns {k} times that number, what is the number of {thing} they own altogether?",
        ),
        (
            ("The larger number is {k} * {a} = {b}.", "{k} * {a} = {b}", "To get {k} times as many, multiply: {k} * {a} = {b}."),
            ("Together there are {a} + {b} = {answer} {thing}.", "{a} + {b} = {answer}", "Now add the two: {a} + {b} = {answer} {thing}."),
        ),
    ),
    Family(
        "more_than",
        _more_than,
        (
            "{name} baked {a} {thing} on {day}. The next day {he} baked {d} more than on {day}, and the day after {e} more than that. How many {thing} did {he} bake in the three days?",
            "A small box has {a} {thing}, a medium box has {d} more than the small one, and a large box has {e} more than the medium one. How many {thing} are in the three boxes?",
            "{name} read {a} pages on the first day. Each day {he} read more: {d} more on the second day than on the first, and {e} more on the third day than on the second. How many pages did {he} read in all?",
            "Of three shelves, the first holds {a} {thing}; the second holds {d} more than the first; the third holds {e} more than the second. How many {thing} are on the shelves?",
        ),
        (
            ("The second number is {a} + {d} = {b}.", "{a} + {d} = {b}", "The second has {d} more than the first: {a} + {d} = {b}."),
            ("The third number is {b} + {e} = {c}.", "{b} + {e} = {c}", "The third has {e} more than the second: {b} + {e} = {c}."),
            ("In all there are {a} + {b} + {c} = {answer}.", "{a} + {b} + {c} = {answer}", "Finally add the three numbers: {a} + {b} + {c} = {answer}."),
        ),
    ),
    Family(
        "buy_two",
        _buy_two,
        (
            "{name} buys {a} {thing} for ${p} each and {b} {thing2} for ${q} each. How much does {he} spend?",
            "At {place}, one {good} costs ${p} and one {good2} costs ${q}. How much do {a} of the first and {b} of the second cost together?",
            "{name} orders {a} {thing} at ${p} apiece. {other} orders {b} {thing2} at ${q} apiece. How much do they pay in total?",
            "{name} needs {a} {thing} and {b} {thing2} for a party. The {thing} cost ${p} each and the {thing2} ${q} each. What is the total cost?",
            "What does {name} pay at {place} for {a} {thing} priced at ${p} each plus {b} {thing2} priced at ${q} each?",
        ),
        (
            ("The first part costs {a} * ${p} = ${x}.", "{a} * {p} = {x}", "There are {a} of them at ${p} each: {a} * {p} = ${x}."),
            ("The second part costs {b} * ${q} = ${y}.", "{b} * {q} = {y}", "There are {b} of the others at ${q} each: {b} * {q} = ${y}."),
            ("The total is ${x} + ${y} = ${answer}.", "{x} + {y} = {answer}", "Adding both costs gives {x} + {y} = ${answer}."),
        ),
    ),
    Family(
        "change",
        _change,
        (
            "{name} buys {a} {thing} at ${p} each and pays with a ${m} bill. How much change does {he} get?",
            "One {good} costs ${p}. {name} takes {a} of them and hands over ${m}. How many dollars does {he} get back?",
            "{name} went to {place} with ${m}. {He} bought {a} {thing} for ${p} each. How much money does {he} have left?",
            "Out of the ${m} in {his} pocket, {name} spends ${p} on each of {a} {thing}. How many dollars remain?",
        ),
        (
            ("The {a} items cost {a} * ${p} = ${x}.", "{a} * {p} = {x}", "First find the cost, {a} items at ${p} each: {a} * {p} = ${x}."),
            ("That leaves ${m} - ${x} = ${answer}.", "{m} - {x} = {answer}", "Subtract the cost from ${m}: {m} - {x} = ${answer}."),
        ),
    ),
    Family(
        "wage",
        _wage,
        (
            "{name} earns ${w} an hour for {job}. On {day} {he} worked {h} hours and got a tip of ${d}. How much did {he} make?",
            "{name} spent {h} hours {job} at ${w} per hour. {other} then gave {name} ${d} more. How much money did {name} get in all?",
            "For {job}, {name} is paid ${w} per hour. {He} already has ${d} and works {h} hours. How much money does {he} have now?",
            "With ${d} already saved, {name} works for {h} hours {job}, at a rate of ${w} each hour. How many dollars does {he} end up with?",
        ),
        (
            ("{name} earns {h} * ${w} = ${x} for the work.", "{h} * {w} = {x}", "The pay for {h} hours at ${w} an hour is {h} * {w} = ${x}."),
            ("With the other ${d} that makes ${x} + ${d} = ${answer}.", "{x} + {d} = {answer}", "Add the other ${d}: {x} + {d} = ${answer}."),
        ),
    ),
    Family(
        "saving",
        _saving,
        (
            "{name} wants a {good} that costs ${p}. {He} has ${a} and saves ${w} each week. How many weeks does {he} need?",
            "A {good} costs ${p}. {name} already has ${a}. If {he} puts aside ${w} a week, after how many weeks can {he} buy it?",
            "{name} needs ${p} for a {good} and has ${a} so far. {He} earns ${w} a week by {job}. How many weeks must {he} work?",
            "How many weeks of saving ${w} will it take {name}, starting with ${a}, to afford a {good} priced at ${p}?",
        ),
        (
            ("{name} still needs ${p} - ${a} = ${m}.", "{p} - {a} = {m}", "First find what is missing: {p} - {a} = ${m}."),
            ("That takes {m} / {w} = {answer} weeks.", "{m} / {w} = {answer}", "At ${w} a week, divide: {m} / {w} = {answer} weeks."),
        ),
    ),
    Family(
        "share",
        _share,
        (
            "{name} has {a} {thing}. {He} keeps {d} and shares the rest equally among {k} friends. How many {thing} does each friend get?",
            "There are {a} {thing}. {d} of them are broken, and the others are put into {k} {container} evenly. How many {thing} are in each?",
            "{name} picked {a} {thing}, gave {d} to {other} and packed the rest into {k} equal {container}. How many {thing} went into each?",
            "{k} children split {a} {thing} evenly after {name} set {d} of them aside. How many {thing} did every child receive?",
        ),
        (
            ("There are {a} - {d} = {x} {thing} to divide.", "{a} - {d} = {x}", "Take away the {d} first: {a} - {d} = {x} {thing}."),
            ("Each share is {x} / {k} = {answer} {thing}.", "{x} / {k} = {answer}", "Split them into {k} parts: {x} / {k} = {answer} {thing}."),
        ),
    ),
    Family(
        "boxes",
        _boxes,
        (
            "{name} has {a} {container} with {b} {thing} in each, and {c} more {thing} on the table. How many {thing} does {name} have?",
            "There are {a} {container} at {place}. Each has {b} {thing}. {name} brings {c} {thing} more. How many {thing} are there in total?",
            "{name} fills {a} {container} with {b} {thing} each. {other} has {c} {thing}. How many {thing} do they have in all?",
            "Counting {c} loose {thing} and {a} {container} that hold {b} {thing} apiece, how many {thing} are there?",
        ),
        (
            ("The {container} hold {a} * {b} = {x} {thing}.", "{a} * {b} = {x}", "With {b} {thing} in each of the {a} {container}, there are {a} * {b} = {x}."),
            ("With {c} more there are {x} + {c} = {answer} {thing}.", "{x} + {c} = {answer}", "Add the other {c}: {x} + {c} = {answer} {thing}."),
        ),
    ),
    Family(
        "boxes_used",
        _boxes_eaten,
        (
            "{name} buys {a} {container} of {thing}. Each has {b}. {He} uses {c} of them. How many {thing} are left?",
            "A shop gets {a} {container} with {b} {thing} each and sells {c} {thing} on {day}. How many {thing} remain?",
            "{name} packed {b} {thing} into each of {a} {container}. {other} took {c} {thing} out. How many {thing} are still there?",
            "{c} {thing} were sold on {day} from a stock of {a} {container}, every one holding {b} {thing}. How many {thing} were not sold?",
        ),
        (
            ("At first there are {a} * {b} = {x} {thing}.", "{a} * {b} = {x}", "To know how many there were, multiply: {a} * {b} = {x} {thing}."),
            ("Then {x} - {c} = {answer} {thing} are left.", "{x} - {c} = {answer}", "Now subtract the {c}: {x} - {c} = {answer} {thing}."),
        ),
    ),
    Family(
        "journey",
        _journey,
        (
            "A {vehicle} goes {v} miles per hour for {h} hours and then {w} miles per hour for {g} hours. How many miles does it go?",
            "{name} drives a {vehicle} for {h} hours at {v} miles per hour. Then {other} drives it for {g} hours at {w} miles per hour. How far do they go in miles?",
            "On {day} a {vehicle} travels {h} hours at a speed of {v} miles per hour, and on {day2} {g} hours at {w} miles per hour. What is the whole distance in miles?",
            "How many miles does {name} cover with a {vehicle} in {h} hours at {v} miles per hour followed by {g} hours at {w} miles per hour?",
        ),
        (
            ("The first part is {h} * {v} = {x} miles.", "{h} * {v} = {x}", "Distance is speed times time, so first {h} * {v} = {x} miles."),
            ("The second part is {g} * {w} = {y} miles.", "{g} * {w} = {y}", "In the same way, then {g} * {w} = {y} miles."),
            ("The whole way is {x} + {y} = {answer} miles.", "{x} + {y} = {answer}", "Add the two distances: {x} + {y} = {answer} miles."),
        ),
    ),
    Family(
        "pages",
        _pages,
        (
            "{name} is reading a book of {a} pages. {He} has read {d} pages and will read {r} pages a day from now on. How many days does {he} need?",
            "A book has {a} pages. On {day} {name} read {d} pages. If {he} reads {r} pages every day after that, in how many days will {he} finish?",
            "{name} must write {a} words and has written {d}. {He} writes {r} words a minute. How many minutes will the rest take?",
            "At {r} pages a day, how many days will {name} need for the rest of a book of {a} pages of which {d} are done?",
        ),
        (
            ("There are {a} - {d} = {x} left.", "{a} - {d} = {x}", "Find out how many remain: {a} - {d} = {x}."),
            ("At {r} each time that takes {x} / {r} = {answer}.", "{x} / {r} = {answer}", "Divide what remains by {r}: {x} / {r} = {answer}."),
        ),
    ),
    Family(
        "fraction_left",
        _fraction_left,
        (
            "{name} had {a} {thing}. {He} gave {part} of them to {other} and lost {c}. How many {thing} does {name} have left?",
            "There were {a} {thing} at {place}. On {day} {part} of them were sold, and on {day2} {c} more. How many {thing} are left?",
            "{name} made {a} {thing}. {other} ate {part} of them and {name} ate {c}. How many {thing} remain?",
            "Of {a} {thing}, {part} went to {other} and another {c} were thrown away by {name}. How many {thing} stayed?",
        ),
        (
            ("First {a} / {k} = {b} {thing} go.", "{a} / {k} = {b}", "Start with {part} of {a}, which is {a} / {k} = {b} {thing}."),
            ("That leaves {a} - {b} = {x} {thing}.", "{a} - {b} = {x}", "Take these from the {a}: {a} - {b} = {x} {thing}."),
            ("In the end there are {x} - {c} = {answer} {thing}.", "{x} - {c} = {answer}", "Finally subtract {c}: {x} - {c} = {answer} {thing}."),
        ),
    ),
    Family(
        "ages",
        _ages,
        (
            "{name} is {a} years old. {other} is {d} years older than {name}. How old will {other} be in {n} years?",
            "{other} is {d} years older than {name}, who is {a}. What will be the age of {other} after {n} years?",
            "{name} turned {a} on {day}. {other} is older by {d} years. In {n} years, how old is {other}?",
            "In {n} years, what will be the age of {other}, who was born {d} years before {name}, now aged {a}?",
        ),
        (
            ("{other} is {a} + {d} = {b} years old now.", "{a} + {d} = {b}", "As {other} is {d} years older, the age now is {a} + {d} = {b}."),
            ("In {n} years {other} will be {b} + {n} = {answer}.", "{b} + {n} = {answer}", "Add the {n} years: {b} + {n} = {answer}."),
        ),
    ),
    Family(
        "ages_sum",
        _ages_sum,
        (
            "{name} is {a} years old and {other} is {k} times as old. What will be the sum of their ages in {n} years?",
            "{other} is {k} times as old as {name}. {name} is {a}. In {n} years, how old will they be together?",
            "In {n} years, what will the ages of {name}, now {a}, and {other}, now {k} times as old, add up to?",
        ),
        (
            ("{other} is {k} * {a} = {b} years old.", "{k} * {a} = {b}", "First find the age of {other}: {k} * {a} = {b}."),
            ("In {n} years {name} will be {a} + {n} = {x}.", "{a} + {n} = {x}", "Then {name} will be {n} years older: {a} + {n} = {x}."),
            ("In {n} years {other} will be {b} + {n} = {y}.", "{b} + {n} = {y}", "So will {other}: {b} + {n} = {y}."),
            ("Together that is {x} + {y} = {answer}.", "{x} + {y} = {answer}", "Add the two ages: {x} + {y} = {answer}."),
        ),
    ),
    Family(
        "minutes",
        _minutes,
        (
            "Every day {name} walks {a} minutes to {place} and {b} minutes back. How many minutes does {he} walk in {n} days?",
            "{name} practices the piano for {a} minutes in the morning and {b} minutes in the evening. How many minutes is that in {n} days?",
            "{name} spends {a} minutes on reading and {b} minutes on drawing each day. How many minutes does {he} spend on them in {n} days?",
            "Over {n} days, how many minutes does {name} use for cooking, if it is {a} minutes at noon and {b} minutes at night?",
        ),
        (
            ("Each day takes {a} + {b} = {x} minutes.", "{a} + {b} = {x}", "Find the minutes of one day: {a} + {b} = {x}."),
            ("In {n} days that is {n} * {x} = {answer} minutes.", "{n} * {x} = {answer}", "Multiply by the number of days: {n} * {x} = {answer} minutes."),
        ),
    ),
    Family(
        "rows",
        _rows,
        (
            "A garden has {a} rows with {b} plants in each. Every plant has {c} flowers. How many flowers are there?",
            "{name} fills {a} {container} with {b} bags each. Every bag has {c} {thing}. How many {thing} are there in all?",
            "At {place} there are {a} tables with {b} plates each, and {c} {thing} on every plate. How many {thing} is that?",
            "How many {thing} does {name} have in {a} {container} of {b} bags each, with {c} {thing} to a bag?",
        ),
        (
            ("There are {a} * {b} = {x} of them.", "{a} * {b} = {x}", "Begin with the groups: {a} * {b} = {x}."),
            ("That makes {c} * {x} = {answer} in all.", "{c} * {x} = {answer}", "There are {c} for each, so {c} * {x} = {answer}."),
        ),
    ),
    Family(
        "discount",
        _discount,
        (
            "A {good} costs ${p}, but today it is ${d} cheaper. How much do {a} of them cost today?",
            "{name} buys {a} {thing}. They cost ${p} each, and {he} gets ${d} off each one. How much does {name} pay?",
            "With a coupon {name} saves ${d} on every {good}. The price is ${p}. How much does {he} pay for {a} of them?",
            "The price of a {good} fell by ${d} from ${p}. What does {name} pay if {he} takes {a}?",
        ),
        (
            ("One costs ${p} - ${d} = ${x} now.", "{p} - {d} = {x}", "Find the new price of one: {p} - {d} = ${x}."),
            ("So {a} of them cost {a} * ${x} = ${answer}.", "{a} * {x} = {answer}", "Multiply it by {a}: {a} * {x} = ${answer}."),
        ),
    ),
    Family(
        "two_jobs",
        _two_jobs,
        (
            "{name} works {a} hours at ${w} an hour and {b} hours at ${v} an hour. Then {he} spends ${c}. How much money is left?",
            "On {day} {name} worked {a} hours for ${w} per hour, on {day2} {b} hours for ${v} per hour. {He} paid ${c} for a {good}. How much does {he} have left?",
            "What is left of the money of {name}, who gets ${w} an hour for {a} hours and ${v} an hour for {b} hours, after paying ${c}?",
        ),
        (
            ("The first job pays {a} * ${w} = ${x}.", "{a} * {w} = {x}", "The {a} hours at ${w} bring {a} * {w} = ${x}."),
            ("The second job pays {b} * ${v} = ${y}.", "{b} * {v} = {y}", "The {b} hours at ${v} bring {b} * {v} = ${y}."),
            ("Together that is ${x} + ${y} = ${s}.", "{x} + {y} = {s}", "Both jobs together: {x} + {y} = ${s}."),
            ("After spending ${c}, ${s} - ${c} = ${answer} is left.", "{s} - {c} = {answer}", "Now take away the ${c}: {s} - {c} = ${answer}."),
        ),
    ),
    Family(
        "days_of_work",
        _days_of_work,
        (
            "{n} workers make {a} {thing} each in a day. How many days do they need for {t} {thing}?",
            "A team of {n} people packs {t} {thing}. Each packs {a} in an hour. How many hours does the team need?",
            "How long in days will {n} machines take to make {t} {thing} if every one makes {a} a day?",
        ),
        (
            ("Together they do {n} * {a} = {x} each time.", "{n} * {a} = {x}", "All {n} together manage {n} * {a} = {x}."),
            ("They need {t} / {x} = {answer}.", "{t} / {x} = {answer}", "Divide the whole work by that: {t} / {x} = {answer}."),
        ),
    ),
    Family(
        "profit",
        _profit,
        (
            "{name} buys {n} {thing} for ${b} each and sells them for ${s} each. How much profit does {he} make?",
            "A shop pays ${b} for a {good} and sells it for ${s}. What is the profit on {n} of them?",
            "{name} makes {thing} that cost ${b} each to make. {He} sells {n} of them at ${s} each on {day}. How many dollars does {he} gain?",
            "Selling at ${s} what was bought at ${b}, how much does {name} gain on {n} {thing}?",
        ),
        (
            ("The profit on one is ${s} - ${b} = ${d}.", "{s} - {b} = {d}", "One of them brings {s} - {b} = ${d}."),
            ("The whole profit is {n} * ${d} = ${answer}.", "{n} * {d} = {answer}", "For all {n} that is {n} * {d} = ${answer}."),
        ),
    ),
    Family(
        "put_together",
        _give_share,
        (
            "{name} has {a} {thing} and {other} has {b}. They put them together and share them equally with their friends, {k} people in all. How many does each get?",
            "{name} picked {a} {thing} on {day} and {b} on {day2}. {He} puts them into {k} {container} with the same number in each. How many {thing} are in each?",
            "If {a} {thing} from {name} and {b} {thing} from {other} are divided evenly over {k} {container}, how many does each one hold?",
        ),
        (
            ("There are {a} + {b} = {x} {thing} altogether.", "{a} + {b} = {x}", "Put them together first: {a} + {b} = {x} {thing}."),
            ("Each part has {x} / {k} = {answer} {thing}.", "{x} / {k} = {answer}", "Then divide by {k}: {x} / {k} = {answer} {thing}."),
        ),
    ),
    Family(
        "recipe",
        _recipe,
        (
            "A cake needs {a} cups of flour and {b} cups of milk. How many cups does {name} need for {k} cakes?",
            "For one pot of soup {name} uses {a} potatoes and {b} carrots. How many vegetables does {he} need for {k} pots?",
            "One set has {a} {thing} and {b} {thing2}. {name} buys {k} sets. How many pieces does {he} get?",
            "To make {k} bracelets, each with {a} red beads and {b} blue beads, how many beads must {name} have?",
        ),
        (
            ("For the first kind that is {k} * {a} = {x}.", "{k} * {a} = {x}", "Multiply the first number by {k}: {k} * {a} = {x}."),
            ("For the second kind that is {k} * {b} = {y}.", "{k} * {b} = {y}", "Multiply the second number by {k}: {k} * {b} = {y}."),
            ("In total there are {x} + {y} = {answer}.", "{x} + {y} = {answer}", "Add the two results: {x} + {y} = {answer}."),
        ),
    ),
    Family(
        "less_then_more",
        _heights,
        (
            "{name} scored {a} points. {other} scored {d} points less than {name}, and a friend scored {e} more than {other}. How many points did the friend score?",
            "A tree is {a} feet tall. A second tree is {d} feet shorter, and a third one is {e} feet taller than the second. How tall is the third tree in feet?",
            "{name} has ${a}. {other} has ${d} less, and the brother of {other} has ${e} more than {other}. How much does the brother have?",
            "What is the weight of the third bag, {e} pounds heavier than the second, which is {d} pounds lighter than the first one of {a} pounds?",
        ),
        (
            ("The second has {a} - {d} = {x}.", "{a} - {d} = {x}", "For the second, subtract {d}: {a} - {d} = {x}."),
            ("The third has {x} + {e} = {answer}.", "{x} + {e} = {answer}", "For the third, add {e}: {x} + {e} = {answer}."),
        ),
    ),
)  # fmt: skip

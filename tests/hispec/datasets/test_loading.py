"""Loading from files: rows in order, equal hashes for equal prompts, and every mistake reported with its line."""

import json
import os
import re

import pytest

from hispec.datasets import DATASETS, load
from hispec.errors import UsageError


@pytest.fixture
def write(tmp_path):
    """Write a file: records as JSONL, text or bytes as they are."""

    def to_file(content, name="mine.jsonl"):
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to_file


def test_the_sample_ships_with_the_package():
    loaded = load("sample")
    assert loaded.source == "shipped" and len(loaded.rows) >= 64
    assert len({row.turns for row in loaded.rows}) == len(loaded.rows)
    assert load("sample", limit=3).rows == loaded.rows[:3]
    assert load("sample", limit=10**6).rows == loaded.rows


def test_a_file_of_prompts_is_read_in_order(write):
    path = write([{"prompt": "b", "id": "two"}, {"question": "a", "answer": "#### 1"}])
    loaded = load(path)
    assert [(row.id, row.turns, row.reference) for row in loaded.rows] == [
        ("two", ("b",), None),
        ("1", ("a",), "#### 1"),
    ]
    assert loaded.dataset.name == "prompts" and loaded.source == "mine.jsonl"


def test_a_file_is_read_as_the_dataset_that_is_asked_for(write):
    path = write([{"question": f"How much is 2 times {n}?", "answer": f"#### {2 * n}"} for n in range(5)])
    loaded = load(path, format_as="gsm8k", limit=2)
    assert [row.id for row in loaded.rows] == ["gsm8k/0", "gsm8k/1"]
    assert loaded.dataset.name == "gsm8k" and loaded.dataset.score(loaded.rows[1], "#### 2") == 1


def test_a_byte_order_mark_and_blank_lines_are_no_records(write):
    assert len(load(write(b'\xef\xbb\xbf{"prompt": "a"}\n\n  \r\n{"prompt": "b"}')).rows) == 2


def test_sharegpts_array_is_read_and_what_asks_nothing_is_left_out(write):
    opened = [{"id": "x", "conversations": [{"from": who, "value": "Hi"}]} for who in ("gpt", "human", "gpt", "human")]
    loaded = load(write(json.dumps(opened), "share.json"), format_as="sharegpt", limit=2)
    assert [row.id for row in loaded.rows] == ["sharegpt/1", "sharegpt/3"]


def test_the_same_prompts_have_the_same_hash_wherever_they_come_from(write):
    records = [{"prompt": "a", "reference": "x"}, {"prompt": "b"}]
    first = load(write(records)).sha256
    assert first == load(write(json.dumps(records), "other.json")).sha256
    others = [records[::-1], records[:1], [{"prompt": "a", "reference": "y"}, {"prompt": "b"}]]
    assert len({first, *(load(write(other)).sha256 for other in others)}) == 4


@pytest.mark.parametrize(
    ("content", "name", "format_as", "message", "hint"),
    [
        ('{"prompt": "a"}\n{"prompt": }\n', "f.jsonl", None, r"f\.jsonl, line 2 is not JSON: .* \(column 12\)", "mend"),
        ('{"prompt": "a"}\n[1]\n', "f.jsonl", None, "line 2 is not a JSON object", "objects"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "f.jsonl", None, "line 2 is not UTF-8", "iconv"),
        ('\n{"text": "a"}\n', "f.jsonl", None, "line 2 has no prompt or question", "--format-as"),
        ('{"question": "a"}\n', "f.jsonl", "gsm8k", "line 1 has no answer", "mend"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', "f.jsonl", None, "line 2 has the id '1'", "its own"),
        ("[" * 100_000, "f.jsonl", None, "line 1 is not JSON", "mend"),
        ('{"prompt": ' + "1" * 5000 + "}", "f.jsonl", None, "line 1 is not JSON", "mend"),
        ("", "f.jsonl", None, "holds no prompt", "objects"),
        ("\n\n", "f.jsonl", None, "holds no prompt", "objects"),
        ("[]", "f.json", None, "holds no prompt", "objects"),
        ('{"prompt": "a"}', "f.json", None, "not a JSON array", "name it .jsonl"),
        ('[{"prompt": "a"},\n {]', "f.json", None, r"f\.json is not JSON: .* \(line 2 column 3\)", "mend"),
        ('[{"prompt": "a"}, 3]', "f.json", None, "record 2 is not a JSON object", "objects"),
        (b"\xff\xfe[", "f.json", None, "not UTF-8", "iconv"),
        (b"PAR0", "f.parquet", None, "not parquet", "download"),
    ],
)
def test_a_malformed_file_is_told_with_its_line(write, content, name, format_as, message, hint):
    with pytest.raises(UsageError, match=message) as told:
        load(write(content, name), format_as=format_as)
    assert hint in told.value.hint
    assert "\n" not in told.value.message + told.value.hint


@pytest.mark.parametrize(
    ("arguments", "options", "message", "hint"),
    [
        (("gsm9k",), {}, "no dataset named 'gsm9k'", "did you mean gsm8k? known: cnn_dailymail, gsm8k"),
        (("prompts",), {}, "no dataset named 'prompts'", "known: "),
        (("nothing.jsonl",), {}, "there is no file nothing.jsonl", "path"),
        (("some/where",), {}, "there is no file some/where", "path"),
        (("/",), {}, "is a folder", "file"),
        (("sample",), {"limit": 0}, "the limit is 0", "at least 1"),
        (("sample",), {"limit": -3}, "the limit is -3", "at least 1"),
        (("sample",), {"format_as": "gsm8k"}, "not a file", "leave out --format-as"),
        (("spec_bench",), {}, "no hub has spec_bench", "--format-as spec_bench"),
    ],
)
def test_a_wrong_request_is_told(arguments, options, message, hint):
    with pytest.raises(UsageError, match=message) as told:
        load(*arguments, **options)
    assert hint in told.value.hint


def test_an_unknown_format_is_told(write):
    with pytest.raises(UsageError, match="no format named 'gsm8'") as told:
        load(write([{"prompt": "a"}]), format_as="gsm8")
    assert "did you mean gsm8k?" in told.value.hint and "prompts" in told.value.hint


def test_permission_to_run_code_reaches_the_dataset(write):
    path = write([{"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "", "entry_point": "f"}])
    with pytest.raises(UsageError, match="blank test"):
        load(path, format_as="humaneval")
    path = write([{"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "#", "entry_point": "f"}])
    assert load(path, format_as="humaneval", allow_code_execution=True).dataset.allow_code_execution
    assert not load(path, format_as="humaneval").dataset.allow_code_execution


def test_every_name_of_the_command_line_is_there():
    names = ["sample", "gsm8k", "humaneval", "cnn_dailymail", "xsum", "sharegpt", "mt_bench", "spec_bench"]
    assert sorted(DATASETS) == sorted(names)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, ...], ["1", "1.1"]),
        ([None, ..., None], ["0", "1", "2"]),
        ([..., 0], ["0.1", "0"]),
        (["1.1", ..., 1], ["1.1", "1.2", "1"]),
        ([7.0, -1, "x" * 5000], ["7", "-1", "x" * 5000]),
    ],
)
def test_a_record_without_an_id_is_numbered_beside_those_that_have_one(write, ids, expected):
    records = [{"prompt": "a"} | ({} if id_ is ... else {"id": id_}) for id_ in ids]
    assert [row.id for row in load(write(records)).rows] == expected


@pytest.mark.parametrize("format_as", ["prompts", "mt_bench", "spec_bench", "xsum"])
def test_null_and_missing_ids_are_numbered_in_every_format(write, format_as):
    name = "question_id" if "bench" in format_as else "id"
    record = {"prompt": "a", "turns": ["a"], "document": "a", "summary": "b"}
    rows = load(write([{**record, name: 1}, record, {**record, name: None}]), format_as=format_as).rows
    assert len({row.id for row in rows}) == 3


@pytest.mark.parametrize("format_as", ["prompts", "mt_bench", "xsum"])
@pytest.mark.parametrize("id_", ["\ud800", "", "  ", True, [1], {"a": 1}, 1.5, float("nan")])
def test_an_id_that_is_none_is_refused_with_its_place(write, format_as, id_):
    record = {"prompt": "a", "turns": ["a"], "document": "a", "summary": "b", "id": id_, "question_id": id_}
    with pytest.raises(UsageError) as told:
        load(write([record]), format_as=format_as)
    assert re.search(r"line 1 has an? (blank )?(question_)?id", told.value.message)


def test_numbers_and_texts_that_read_alike_are_the_same_id(write):
    with pytest.raises(UsageError) as told:
        load(write([{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}]))
    assert "line 2 has the id '1' of line 1" in told.value.message


def test_a_file_whose_name_is_not_utf8_has_a_source_that_is(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_text('{"prompt": "a"}\n')
    assert load(str(path)).source == "caf\\xe9.jsonl"

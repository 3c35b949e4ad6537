"""Reading instructions, the book's template, its dataset and its collate function."""

import json
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import gptrs
from gptrs.errors import ConfigError, DataError, SourceError, TokenizerError
from gptrs.training.instructions.dataset import InstructionDataset, custom_collate_fn
from gptrs.training.instructions.template import (
    check_entries,
    format_input,
    format_prompt,
    read_instructions,
    refuse_other_json,
)

with pytest.MonkeyPatch.context() as patch:
    # The book's module imports it, for a function that is not called here.
    patch.setitem(sys.modules, "psutil", ModuleType("psutil"))
    from llms_from_scratch import ch07

ENTRIES = [
    {"instruction": "Add the numbers.", "input": "2, 3", "output": "5"},
    {"instruction": "Name a colour.", "input": "", "output": "Blue is one.\n\nSo is red. 🟥"},
    {"instruction": "Übersetze.", "input": "  two\n\nlines ", "output": " begins with a blank"},
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ENTRY = st.fixed_dictionaries({"instruction": TEXTS, "input": st.text(), "output": TEXTS})
IDS = st.lists(st.integers(0, 50256) | st.just(50256), max_size=12)


@pytest.fixture(scope="module")
def tokenizer():
    return gptrs.get_tokenizer("gpt2")


def written(tmp_path, content):
    file = tmp_path / "data.jsonl"
    file.write_text(content, "utf-8")
    return file


@settings(deadline=None)
@given(ENTRY)
def test_the_template_is_the_books(entry):
    assert format_input(entry) == ch07.format_input(entry)


def test_an_entry_without_input_has_no_heading_for_it():
    entry = {"instruction": "Name a colour.", "output": "Blue"}
    assert format_input(entry) == ch07.format_input(entry | {"input": ""})
    assert format_prompt(entry).endswith("Name a colour.\n\n### Response:\n")


@settings(deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=5))
def test_the_dataset_has_the_books_tokens(entries):
    tokenizer = gptrs.get_tokenizer("gpt2")
    theirs = ch07.InstructionDataset(entries, tokenizer.as_tiktoken())
    for own in (tokenizer, tokenizer.as_tiktoken()):
        dataset = InstructionDataset(entries, own)
        assert dataset.encoded_texts == theirs.encoded_texts
        assert len(dataset) == len(entries)
        assert dataset.data is entries


@settings(max_examples=150, deadline=None)
@given(
    st.lists(IDS, min_size=1, max_size=5),
    st.sampled_from([50256, 0, 7]),
    st.sampled_from([-100, -1]),
    st.none() | st.integers(1, 14),
)
def test_the_collate_function_gives_the_books_batches(batch, pad, ignored, most):
    ours = custom_collate_fn(batch, pad, ignored, most)
    theirs = ch07.custom_collate_fn(batch, pad, ignored, most)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own, other)
        assert own.dtype == torch.int64


def test_the_books_example_of_a_batch():
    inputs, targets = custom_collate_fn(([0, 1, 2, 3, 4], [5, 6], [7, 8, 9]))
    assert inputs.tolist() == [
        [0, 1, 2, 3, 4],
        [5, 6, 50256, 50256, 50256],
        [7, 8, 9, 50256, 50256],
    ]
    assert targets.tolist() == [
        [1, 2, 3, 4, 50256],
        [6, 50256, -100, -100, -100],
        [8, 9, 50256, -100, -100],
    ]


def test_a_dataloader_takes_both(tokenizer):
    loader = DataLoader(
        InstructionDataset(ENTRIES, tokenizer), batch_size=3, collate_fn=custom_collate_fn
    )
    theirs = DataLoader(
        ch07.InstructionDataset(ENTRIES, tokenizer), batch_size=3, collate_fn=ch07.custom_collate_fn
    )
    (batch,), (other,) = loader, theirs
    assert all(map(torch.equal, batch, other))


@pytest.mark.parametrize("entry", [{"instruction": "a"}, {"output": "b"}, "text", None,
                                   {"instruction": "a", "output": 5}])  # fmt: skip
def test_an_entry_that_is_none_is_refused_with_its_number(tokenizer, entry):
    with pytest.raises(DataError, match=r"entry 1 is no instruction with its output: .*; found"):
        InstructionDataset([ENTRIES[0], entry], tokenizer)


def test_an_empty_output_is_as_in_the_book_an_answer(tokenizer):
    entries = [{"instruction": "Say nothing.", "input": "", "output": ""}]
    theirs = ch07.InstructionDataset(entries, tokenizer.as_tiktoken())
    assert InstructionDataset(entries, tokenizer).encoded_texts == theirs.encoded_texts


def test_a_batch_is_not_made_of_nothing_and_not_cut_to_nothing():
    with pytest.raises(DataError, match="batch is empty"):
        custom_collate_fn([])
    with pytest.raises(ConfigError, match="allowed_max_length is at least 1, found 0"):
        custom_collate_fn([[1]], allowed_max_length=0)


def test_a_forged_end_of_text_is_refused_as_by_the_book(tokenizer):
    entries = [{"instruction": "Go on.", "input": "", "output": "a<|endoftext|>b"}]
    with pytest.raises(TokenizerError):
        InstructionDataset(entries, tokenizer)
    with pytest.raises(ValueError, match="disallowed special token"):
        ch07.InstructionDataset(entries, tokenizer.as_tiktoken())


@pytest.mark.parametrize("as_list", [True, False])
def test_a_file_of_lines_and_one_of_a_list_give_the_same_entries(tmp_path, as_list):
    lines = [json.dumps(entry, ensure_ascii=False) for entry in ENTRIES]
    text = json.dumps(ENTRIES, indent=2) if as_list else "\ufeff" + "\n\n".join(lines) + "\r\n"
    assert read_instructions(written(tmp_path, text)) == ENTRIES
    refuse_other_json(tmp_path / "data.jsonl")


def test_a_missing_or_null_input_is_an_empty_one_and_other_keys_stay(tmp_path):
    file = written(
        tmp_path,
        '{"instruction": "a", "output": "b"}\n'
        '{"id": 7, "instruction": "a", "input": null, "output": "b"}',
    )
    assert read_instructions(file) == [
        {"instruction": "a", "input": "", "output": "b"},
        {"id": 7, "instruction": "a", "input": "", "output": "b"},
    ]


GOOD = '{"instruction": "a", "output": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "the list is empty"),
        ("[{]", "not JSON: .* line 1 column 3"),
        (GOOD + "\n{'a': 1}\n", r"line 3 is not JSON: .*found \"{'a': 1}\"$"),
        ('{\n  "instruction": "a"\n}', "line 1 is not JSON.* a line is one whole object"),
        (GOOD + '"text"\n', "line 2 is not an object with instruction and output: found 'text'"),
        (GOOD + '{"prompt": "a", "output": "b"}', "line 2 has no 'instruction'; its keys are "
                                                  "'prompt', 'output'"),
        ('{"instruction": "a"}', "line 1 has no 'output'; its keys are 'instruction'"),
        ("{}", "line 1 has no 'instruction'; its keys are none"),
        ('{"instruction": "a", "output": 5}', "line 1 has an 'output' that is no text: 5"),
        ('{"instruction": ["a"], "output": "b"}', r"an 'instruction' that is no text: \['a'\]"),
        ('{"instruction": "a", "input": 1, "output": "b"}', "an 'input' that is no text: 1"),
        ('{"instruction": "a", "output": " "}', "line 1 has an empty 'output'"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "entry 2 has no 'output'"),
        (GOOD + "1\n" * 5, "line 2 .*; line 3 .*; line 4 .*; and 2 more"),
        ("[" * 100_000, "not JSON: maximum recursion depth"),
        (GOOD + "[" * 100_000, "line 2 is not JSON: maximum recursion depth"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_by_the_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_instructions(written(tmp_path, content))
    assert str(tmp_path / "data.jsonl") in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read_instructions(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_instructions(tmp_path / "binary")


def test_entries_of_a_program_are_checked_as_those_of_a_file():
    assert check_entries([{"instruction": "a", "output": "b"}])[0]["input"] == ""
    with pytest.raises(DataError, match="the list of entries is empty"):
        check_entries([])
    with pytest.raises(DataError, match="entry 1 has no 'output'"):
        check_entries([ENTRIES[0], {"instruction": "a"}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "A story."}\n', "its first entry has no 'instruction'; its keys are 'text';"),
        ('[{"id": {"a": [1]}, "text": "b"}]', "its keys are 'id', 'text';"),
        ("{}", "its keys are none;"),
        ('["A story.", "Another."]', r"""begins with '\["A story.", "Another."\]';"""),
        ('"A story."\n"Another."', """begins with '"A story."""),
        ("Once upon a time " * 100_000, r"begins with 'Once upon a time .*\.\.\.;"),
        ('{"text": "a"' + ", " * 3 + '"output": "b"}', "its keys are 'text', 'output';"),
    ],
    ids=range(7),
)
def test_json_without_instructions_is_told_by_its_beginning(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        refuse_other_json(written(tmp_path, content))
    assert "objects with 'instruction', 'output' and" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "content",
    [
        '{"id": {"a": [1]}, "instruction": "a", "output": "b"}',
        '[\n {"input": "b", "instruction"',
        '{"instruction": "' + "long " * 500_000,
        '{"input": "' + "long " * 500_000 + '", "instruction": "a", "output": "b"}',
        "{",
        "[]",
        "",
    ],
    ids=range(7),
)
def test_what_may_be_instructions_by_its_beginning_is_left_to_the_reader(tmp_path, content):
    refuse_other_json(written(tmp_path, content))


def test_what_is_no_readable_file_is_left_to_the_reader(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    refuse_other_json(tmp_path / "binary")
    refuse_other_json(tmp_path)

"""Passages: nothing is lost, nothing is too long, and each stands where it says."""

import gzip
import json

import numpy as np
import pytest

import gptrs
from gptrs.embeddings.passages import Passage, read_passages, split_passages
from gptrs.errors import ConfigError, SourceError

TOKENIZER = gptrs.get_tokenizer("gpt2")
SEEDS = range(20)


def random_lines(seed):
    """Paragraphs, blank lines, long lines, long words, and other scripts."""
    random = np.random.default_rng(seed)
    words = ["a", "word", "문장", "日本語のとても長い文章" * 9, "x" * 300, "größer", "\t"]
    chances = [0.5, 0.3, 0.1, 0.01, 0.01, 0.05, 0.03]
    return [
        " ".join(random.choice(words, random.integers(0, 30), p=chances))
        if random.random() < 0.7
        else ""
        for _ in range(random.integers(1, 80))
    ]


def read(inputs, **options):
    return list(read_passages(inputs, TOKENIZER, **options))


@pytest.mark.parametrize("seed", SEEDS)
def test_passages_together_have_all_the_text_in_order_where_they_say(seed):
    lines, most = random_lines(seed), int(np.random.default_rng(seed).integers(1, 80))
    passages = list(split_passages(lines, "file", TOKENIZER.count, most))
    squeezed = ["".join(passage.text.split()) for passage in passages]
    assert "".join(squeezed) == "".join("".join(lines).split())
    last = 1
    for passage, text in zip(passages, squeezed, strict=True):
        assert text
        assert last <= passage.first_line <= passage.last_line
        last = passage.last_line
        assert text in "".join("".join(lines[passage.first_line - 1 : last]).split())
        # Joined with spaces and line ends, pieces may take a few tokens more or less than alone.
        assert len(text) == 1 or TOKENIZER.count(passage.text) <= 1.1 * most + 2


def test_paragraphs_go_together_while_they_fit_and_stay_whole():
    lines = ["one two", "three", "", "four", "", "", "five six seven eight nine ten"]
    assert list(split_passages(lines, "f", TOKENIZER.count, 10)) == [
        Passage("one two\nthree\n\nfour", "f", 1, 4),
        Passage("five six seven eight nine ten", "f", 7, 7),
    ]
    assert list(split_passages(lines, "f", TOKENIZER.count, 6)) == [
        Passage("one two\nthree", "f", 1, 2),
        Passage("four", "f", 4, 4),
        Passage("five six seven eight nine ten", "f", 7, 7),
    ]
    # A heading is not left alone.
    lines = ["#", "", "one two three four five", "six seven eight nine ten", "eleven"]
    assert [each.text for each in split_passages(lines, "f", TOKENIZER.count, 16)] == [
        "#\n\none two three four five\nsix seven eight nine ten",
        "eleven",
    ]
    lines = ["five six seven eight nine ten"]
    assert [each.text for each in split_passages(lines, "f", TOKENIZER.count, 3)] == [
        "five six seven",
        "eight nine ten",
    ]


def test_files_of_every_kind_give_their_passages_and_places(tmp_path):
    text = "\ufefffirst\r\n\r\nsecond\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"packed\n"))
    rows = [{"text": "row one"}, {"text": "row\n\ntwo", "other": 1}]
    (tmp_path / "c.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    a, b, c = (str(tmp_path / name) for name in ("a.txt", "b.md.gz", "c.jsonl"))
    assert read([tmp_path]) == [
        Passage("first\n\nsecond", a, 1, 3),
        Passage("packed", b, 1, 1),
        Passage("row one", c, 1, 1),
        Passage("row\n\ntwo", c, 3, 3),
    ]
    assert Passage("t", "c.jsonl", 3, 3).place == "c.jsonl:3"
    assert Passage("t", "a.txt", 1, 3).place == "a.txt:1-3"


def test_a_table_and_texts_of_a_program_give_their_rows(tmp_path):
    assert read([["one", "two"]]) == [
        Passage("one", "texts[0]", 1, 1),
        Passage("two", "texts[0]", 2, 2),
    ]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"body": ["one", "two"]}), path)
    found = read(path, text_key="body")
    assert [(each.text, each.first_line) for each in found] == [("one", 1), ("two", 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nnot \xff", "not UTF-8: byte 0xff at offset 4 .*, in line 2"),
        ("a.jsonl", b'{"text": "a"}\n{', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "a"}', "line 1 is no object with a text under 'text'"),
        ("a.jsonl", b"[1]", "line 1 is no object"),
        ("a.txt.gz", gzip.compress(b"text" * 999, mtime=0)[:-20], "cannot be read"),
        ("a.txt.gz", b"no archive", "cannot be read"),
        ("a.txt.zst", b"", "unpack it first"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name}: .*{message}"):
        read(tmp_path / name)


def test_no_files_and_no_tokens_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read_passages(tmp_path / "none", TOKENIZER)
    with pytest.raises(ConfigError, match="passage_tokens is 0"):
        read_passages(tmp_path, TOKENIZER, passage_tokens=0)

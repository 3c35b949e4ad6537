"""Many texts at once, and files of any size: the ids are those of one text after the other."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptrs.errors import ConfigError, SourceError, TokenizerError
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer_training import train_tokenizer

END_OF_TEXT = "<|endoftext|>"
TOKENIZER = get_tokenizer("gpt2")
PART_BYTES = 1 << 22
"""A file is read in parts of about this size."""

TRICKY = [" ", "\n\n", "\r\n", "\r", "\t", "\ufeff", "é", "中文", "🙂", "the ", " it's", "12"]
texts = st.lists(st.sampled_from([*TRICKY, END_OF_TEXT]) | st.text(max_size=5), max_size=20).map(
    "".join
)


# Batches


ENCODING = TOKENIZER.as_tiktoken()
"""tiktoken's own code; only the table of ids is ours."""


@pytest.mark.parametrize("batch", [[], [""], [*TRICKY, END_OF_TEXT, "", f"a{END_OF_TEXT}b"]])
def test_batches_of_lists_are_tiktokens(batch):
    assert TOKENIZER.encode_ordinary_batch(batch) == ENCODING.encode_ordinary_batch(batch)
    ids = TOKENIZER.encode_batch(batch, allowed_special="all", num_threads=2)
    assert ids == ENCODING.encode_batch(batch, allowed_special="all", num_threads=2)
    assert TOKENIZER.decode_batch(ids) == ENCODING.decode_batch(ids)


def test_a_batch_refuses_special_tokens_as_a_text_does():
    with pytest.raises(TokenizerError, match="endoftext"):
        TOKENIZER.encode_batch(["fine", END_OF_TEXT])


def test_single_tokens_are_tiktokens():
    sample = [0, 127, 128, 220, 255, 31373, 50255, 50256]
    for token in sample:
        content = ENCODING.decode_single_token_bytes(token)
        assert TOKENIZER.decode_single_token_bytes(token) == content
        assert TOKENIZER.encode_single_token(content) == token
        assert TOKENIZER.is_special_token(token) == ENCODING.is_special_token(token)
    assert TOKENIZER.decode_tokens_bytes(sample) == ENCODING.decode_tokens_bytes(sample)
    assert TOKENIZER.encode_single_token(" the") == ENCODING.encode_single_token(" the")
    for tokenizer in (TOKENIZER, ENCODING):
        with pytest.raises(KeyError):
            tokenizer.encode_single_token("two words")
        with pytest.raises(KeyError):
            tokenizer.decode_single_token_bytes(50257)


@pytest.mark.parametrize("threads", [1, 2, 5, None])
@given(batch=st.lists(texts | st.just("") | st.just("a\ud800b\udc00"), max_size=12))
def test_a_batch_has_the_ids_of_each_text_one_by_one(threads, batch):
    ids, offsets = TOKENIZER.encode_batch_to_numpy(
        batch, allowed_special={END_OF_TEXT}, threads=threads
    )
    assert (ids.dtype, offsets.dtype) == (np.uint16, np.int64)
    assert (len(offsets), offsets[0], offsets[-1]) == (len(batch) + 1, 0, len(ids))
    found = [part.tolist() for part in np.split(ids, offsets[1:-1])] if batch else []
    assert found == [TOKENIZER.encode(text, allowed_special="all") for text in batch]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_long_and_short_texts_share_the_threads(threads):
    long = "".join(f"line {i}: it's {i * i}\n" for i in range(120_000))
    assert len(long) > 2 << 20
    batch = ["", "a", long, "", "b" * 1_200_000, long[::-1], "c", ""]
    ids, offsets = TOKENIZER.encode_batch_to_numpy(batch, threads=threads)
    for number, text in enumerate(batch):
        expected = TOKENIZER.encode_to_numpy(text)
        np.testing.assert_array_equal(ids[offsets[number] : offsets[number + 1]], expected)


def test_a_special_token_in_any_text_of_a_batch_is_refused_unless_allowed():
    with pytest.raises(TokenizerError, match="at character 3"):
        TOKENIZER.encode_batch_to_numpy(["a", f"b  {END_OF_TEXT}"])
    ids, _ = TOKENIZER.encode_batch_to_numpy([END_OF_TEXT], disallowed_special=())
    assert 50256 not in ids


def test_a_batch_is_a_sequence_of_texts():
    with pytest.raises(TypeError, match="texts must be a sequence of str, found a str"):
        TOKENIZER.encode_batch_to_numpy("text")
    with pytest.raises(TypeError, match="text must be a str, found int"):
        TOKENIZER.encode_batch_to_numpy(["text", 5])


# Files


def parts_of(path, **options):
    parts = list(TOKENIZER.encode_file_parts(path, **options))
    return np.concatenate([np.empty(0, np.uint16), *parts])


@given(text=texts, mark=st.booleans())
def test_a_file_has_the_ids_of_its_text(tmp_path_factory, text, mark):
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_bytes(b"\xef\xbb\xbf" * mark + text.encode())
    # One byte order mark at the start is none of the text; whose it is does not matter.
    text = text if mark else text.removeprefix("\ufeff")
    expected = TOKENIZER.encode(text, allowed_special="all")
    ids = TOKENIZER.encode_file(file, allowed_special="all")
    assert ids.dtype == np.uint16
    assert ids.tolist() == expected
    assert parts_of(str(file), allowed_special="all", threads=1).tolist() == expected


def test_a_file_of_many_parts_has_the_ids_of_its_text(tmp_path):
    draw = np.random.default_rng(0)
    words = np.array([*TRICKY, "sea", "12,5", "e\u0301", END_OF_TEXT])
    text = " ".join(draw.choice(words, 5_000_000))
    file = tmp_path / "large.txt"
    size = file.write_bytes(text.encode())
    assert size > 2.2 * PART_BYTES
    expected = TOKENIZER.encode_to_numpy(text, allowed_special="all")
    for threads in (1, 3):
        ids = TOKENIZER.encode_file(file, allowed_special="all", threads=threads)
        assert np.array_equal(ids, expected)
    parts = list(TOKENIZER.encode_file_parts(file, allowed_special="all"))
    assert len(parts) > 2
    assert np.array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("across", ["é", "中", "🙂", "  \n", "word", END_OF_TEXT, "a b c d"])
def test_what_lies_across_the_end_of_a_part_is_encoded_whole(tmp_path, across):
    file = tmp_path / "text.txt"
    for before in range(1, len(across.encode())):
        text = "ab " * ((PART_BYTES - before) // 3)
        text += "x" * (PART_BYTES - before - len(text)) + across + " after"
        file.write_bytes(text.encode())
        ids = TOKENIZER.encode_file(file, allowed_special="all")
        expected = TOKENIZER.encode_to_numpy(text, allowed_special="all")
        assert np.array_equal(ids, expected)


INVALID = [
    b"\xff",
    b"\xc3",
    b"\xe2\x82",
    b"\xf0\x9f\x99",
    b"\xed\xa0\x80",
    b"\x80\x80",
    b"\xc0\xaf",
]


@given(st.lists(st.sampled_from([*INVALID, b"a ", " é\n".encode(), "🙂".encode()]), max_size=12))
def test_bytes_that_are_not_utf8_are_refused_or_replaced_as_python_does(tmp_path_factory, pieces):
    content = b"".join(pieces)
    file = tmp_path_factory.getbasetemp() / "invalid.txt"
    file.write_bytes(content)
    expected = TOKENIZER.encode(content.decode("utf-8", "replace"))
    assert TOKENIZER.encode_file(file, errors="replace").tolist() == expected
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte, offset = content[error.start], error.start
        wrong = rf"invalid\.txt: not UTF-8: byte 0x{byte:02x} at offset {offset}$"
        with pytest.raises(SourceError, match=wrong):
            TOKENIZER.encode_file(file)
    else:
        assert TOKENIZER.encode_file(file).tolist() == expected


@pytest.mark.parametrize("wrong", INVALID)
def test_bytes_that_are_not_utf8_are_found_across_the_end_of_a_part(tmp_path, wrong):
    start = PART_BYTES - 1
    content = b"ab " * (start // 3) + b"x" * (start % 3) + wrong + b" after \xff"
    assert content.index(wrong) == start
    file = tmp_path / "invalid.txt"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=f"at offset {start}$"):
        parts_of(file)
    expected = TOKENIZER.encode_to_numpy(content.decode("utf-8", "replace"))
    assert np.array_equal(parts_of(file, errors="replace"), expected)


def test_a_refusal_names_the_file_and_the_place(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("é " * PART_BYTES + END_OF_TEXT, "utf-8")
    with pytest.raises(TokenizerError, match=rf"text\.txt: .* at character {2 * PART_BYTES};"):
        parts_of(file)
    file.write_text("a" * (PART_BYTES - 10) + " b c\nZ" + "a" * 100, "utf-8")
    (tmp_path / "chars.txt").write_text("abc \n")
    chars = train_tokenizer(tmp_path / "chars.txt", None, kind="char")
    with pytest.raises(TokenizerError, match=rf"text\.txt: .*'Z' at byte {PART_BYTES - 5} "):
        chars.encode_file(file)


def test_a_piece_above_64_mib_in_a_file_is_refused_with_its_offset(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"abc " + b"x" * (2**26 + 1))
    with pytest.raises(
        TokenizerError, match=r"text\.txt: .* at byte 3 has more than 67108864 bytes"
    ):
        TOKENIZER.encode_file(file)


def test_what_is_no_file_and_what_is_no_option_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"missing\.txt: no such file"):
        TOKENIZER.encode_file(tmp_path / "missing.txt")
    with pytest.raises(SourceError, match="is a folder, not a file"):
        TOKENIZER.encode_file(tmp_path)
    file = tmp_path / "text.txt"
    file.write_text("text")
    with pytest.raises(ConfigError, match="threads is at least 1, found 0"):
        TOKENIZER.encode_file_parts(file, threads=0)
    with pytest.raises(ConfigError, match='errors is "strict" or "replace", found \'ignore\''):
        TOKENIZER.encode_file(file, errors="ignore")
    with pytest.raises(ConfigError, match="whitespace"):
        TOKENIZER.encode_file(file, disallowed_special={"two words"})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak memory to read here")
def test_encoding_a_large_file_in_parts_takes_little_memory(tmp_path):
    block = "".join(f"word{i % 5000} and {i}\n" for i in range(500_000)).encode()
    file = tmp_path / "large.txt"
    with file.open("wb") as stream:
        while stream.tell() < 150_000_000:
            stream.write(block)
    # The peak of this process itself, which a getrusage would mix with that of its parent.
    program = """if True:
        import re, sys
        from pathlib import Path
        from gptrs.text.named_tokenizers import get_tokenizer
        def peak_kib():
            return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
        tokenizer = get_tokenizer("gpt2")
        num_ids = len(tokenizer.encode_to_numpy("NumPy is imported"))
        before = peak_kib()
        for ids in tokenizer.encode_file_parts(sys.argv[1], threads=2):
            num_ids += len(ids)
        print(num_ids, (peak_kib() - before) / 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, file], check=True, capture_output=True, text=True
    )
    num_ids, raised_mib = map(float, done.stdout.split())
    assert num_ids > 30_000_000
    assert raised_mib < 64

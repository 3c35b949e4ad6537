"""`StreamDecoder`: piece by piece, the text that `decode` gives at once."""

import doctest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gptrs
from gptrs import StreamDecoder
from gptrs.errors import TokenIdError
from gptrs.text import stream_decoder, tokenizer

TOKENIZER = gptrs.get_tokenizer("gpt2")
TOKENIZERS = [TOKENIZER, TOKENIZER.as_tiktoken()]
# Ids of single bytes come often, so that characters are split over tokens, or never whole.
token_ids = st.lists(st.integers(0, 255) | st.integers(0, 50256), max_size=60)
texts = st.lists(st.sampled_from(["é", "中", "🙂", " a"]) | st.text(max_size=4)).map("".join)


def pieces_of(decoder, ids):
    return [*(decoder.push(token) for token in ids), decoder.finish()]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(ids=token_ids)
def test_the_pieces_of_any_ids_are_the_text_that_decode_gives(tokenizer, ids):
    assert "".join(pieces_of(StreamDecoder(tokenizer), ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=texts)
def test_no_piece_of_a_text_has_half_a_character(tokenizer, text):
    ids = tokenizer.encode_ordinary(text)
    pieces = pieces_of(StreamDecoder(tokenizer, errors="strict"), ids)
    assert "".join(pieces) == text
    assert pieces_of(StreamDecoder(tokenizer), ids) == pieces


@given(ids=token_ids, size=st.integers(1, 7))
def test_ids_may_come_several_at_a_time_in_any_container(ids, size):
    chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
    for kind in (list, tuple, iter, array_or_tensor):
        decoder = StreamDecoder(TOKENIZER)
        text = "".join(decoder.push(kind(chunk)) for chunk in chunks) + decoder.finish()
        assert text == TOKENIZER.decode(ids)


def array_or_tensor(chunk):
    return np.array(chunk, np.uint16) if len(chunk) % 2 else torch.tensor(chunk)


def test_one_id_may_be_a_number_of_any_kind():
    decoder = StreamDecoder(TOKENIZER)
    for number in (64, np.uint16(64), np.array(64), torch.tensor(64)):
        assert decoder.push(number) == "a"


def test_half_a_character_is_kept_until_it_is_whole_or_the_text_ends():
    first, *rest = TOKENIZER.encode("🙂")
    decoder = StreamDecoder(TOKENIZER)
    assert decoder.push(first) == ""
    assert decoder.push(rest) == "🙂"
    assert decoder.finish() == ""
    assert decoder.push(first) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.push(64) == "a", "the rest of the text before is still there"


def test_errors_are_treated_as_asked():
    first = TOKENIZER.encode("🙂")[0]
    ignoring = StreamDecoder(TOKENIZER, errors="ignore")
    assert ignoring.push([first, 64]) + ignoring.finish() == "a"
    strict = StreamDecoder(TOKENIZER, errors="strict")
    with pytest.raises(UnicodeDecodeError):
        strict.push([first, 64])
    strict = StreamDecoder(TOKENIZER, errors="strict")
    strict.push(first)
    with pytest.raises(UnicodeDecodeError):
        strict.finish()
    with pytest.raises(TokenIdError):
        strict.push(50257)


def test_a_tokenizer_that_decodes_to_text_alone_is_taken_push_by_push():
    letters = SimpleNamespace(decode=lambda ids: "".join("abc"[i] for i in ids))
    assert pieces_of(StreamDecoder(letters), [0, 1, 2]) == ["a", "b", "c", ""]
    assert StreamDecoder(letters).push([2, 1]) == "cb"


@pytest.mark.parametrize("module", [stream_decoder, tokenizer])
def test_the_examples_in_the_documentation_are_true(module):
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0

"""`gptrs.text.corpus`: documents to one row of tokens, with any tokenizer."""

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

import gptrs
from gptrs.errors import SourceError, TokenizerError
from gptrs.text import corpus

GPT2 = gptrs.get_tokenizer("gpt2")
END_OF_TEXT = "<|endoftext|>"
documents = st.lists(
    st.sampled_from(["", "a", f"b{END_OF_TEXT}"]) | st.text(max_size=20), max_size=9
)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    file = tmp_path_factory.mktemp("letters") / "text.txt"
    file.write_text("abc")
    return lambda **options: gptrs.train_tokenizer(file, None, kind="char", **options)


@pytest.mark.parametrize("tokenizer", [GPT2, GPT2.as_tiktoken()])
@given(texts=documents)
def test_an_end_of_text_follows_every_document_that_is_not_empty(tokenizer, texts):
    expected = []
    for text in filter(None, texts):
        expected += [*GPT2.encode_ordinary(text), 50256]
    tokens = corpus.tokenize_documents(iter(texts), tokenizer)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == expected


@given(texts=documents, batch_chars=st.integers(1, 30))
def test_documents_are_the_same_in_batches_of_any_size(texts, batch_chars):
    expected = corpus.tokenize_documents(texts, GPT2).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "BATCH_CHARS", batch_chars)
        assert corpus.tokenize_documents(texts, GPT2).tolist() == expected


@given(texts=documents)
def test_each_file_is_a_document(tmp_path_factory, texts):
    folder = tmp_path_factory.getbasetemp()
    files = [folder / f"{number}.txt" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    expected = corpus.tokenize_documents(texts, GPT2).tolist()
    for tokenizer in (GPT2, GPT2.as_tiktoken()):
        assert corpus.tokenize_files(files, tokenizer).tolist() == expected


def test_without_an_end_of_text_documents_follow_each_other(letters):
    with_end, without = letters(), letters(special_tokens=())
    texts = ["ab", "", "c"]
    assert corpus.tokenize_documents(texts, with_end).tolist() == [0, 1, 3, 2, 3]
    assert corpus.tokenize_documents(texts, without).tolist() == [0, 1, 2]


def test_ids_above_16_bits_are_uint32():
    large = tiktoken.Encoding(
        "large",
        pat_str=".",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={END_OF_TEXT: 70_000},
    )
    tokens = corpus.tokenize_documents(["a"], large)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [97, 70_000]


def test_a_file_that_cannot_be_encoded_is_named(tmp_path, letters):
    (tmp_path / "good.txt").write_text("abc")
    (tmp_path / "other.txt").write_text("abcd")
    (tmp_path / "latin.txt").write_bytes(b"a\xe9")
    with pytest.raises(TokenizerError, match=r"other\.txt: the character 'd' at byte 3"):
        corpus.tokenize_files([tmp_path / "good.txt", tmp_path / "other.txt"], letters())
    for tokenizer in (GPT2, GPT2.as_tiktoken()):
        with pytest.raises(SourceError, match=r"latin\.txt: not UTF-8: byte 0xe9 at offset 1"):
            corpus.tokenize_files([tmp_path / "latin.txt"], tokenizer)


def test_bytes_per_token_are_those_of_the_text(letters):
    text = "Hello, naïve 世界"
    for tokenizer in (GPT2, GPT2.as_tiktoken()):
        tokens = np.array(GPT2.encode(text))
        expected = len(text.encode()) / len(tokens)
        assert corpus.bytes_per_token(tokens, tokenizer) == pytest.approx(expected)
    assert corpus.bytes_per_token(np.array([0, 1, 2]), letters()) == 1

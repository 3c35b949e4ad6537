"""Learned tokenizers: the merges of Hugging Face's trainer, and the ids of tiktoken and nanoGPT."""

import pydoc_data.topics

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

import gptrs
from gptrs.errors import ConfigError, SourceError, TokenizerError

END_OF_TEXT = "<|endoftext|>"

# English, Python's grammar, tables and examples: about 470 kB.
HELP_TOPICS = "\n\n".join(pydoc_data.topics.topics.values())

# Few letters and long runs of them, where pairs tie and overlap, and every kind of whitespace.
TRICKY = st.sampled_from(["a", "b", "ab", "aaaa", " a", "  ", "\n\n", "\t", "'s", "1", "é", "中"])


def train(folder, *texts, **options):
    files = []
    for number, text in enumerate(texts):
        files.append(folder / f"{number}.txt")
        files[-1].write_bytes(text.encode())
    return gptrs.train_tokenizer(files, **options)


def hugging_face(texts, vocab_size):
    """Their trainer with GPT-2's pattern and alphabet, and no special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def assert_same_tokens(ours, theirs):
    """Every token was learned, in the same order, whether or not a text still uses it."""
    for token_id in range(256, theirs.get_vocab_size()):
        letters = theirs.id_to_token(token_id)
        # They spell a byte as one letter, which is itself a token.
        byte_ids = [theirs.token_to_id(letter) for letter in letters]
        assert ours.decode_bytes([token_id]) == ours.decode_bytes(byte_ids)


@pytest.fixture(scope="module")
def help_tokenizer(tmp_path_factory):
    return train(tmp_path_factory.mktemp("help"), HELP_TOPICS, vocab_size=4096)


def test_a_learned_tokenizer_is_that_of_hugging_faces_trainer(help_tokenizer):
    theirs = hugging_face([HELP_TOPICS], 4095)
    assert theirs.get_vocab_size() == 4095
    assert help_tokenizer.n_vocab == 4096
    assert help_tokenizer.encode(HELP_TOPICS) == theirs.encode(HELP_TOPICS).ids
    assert_same_tokens(help_tokenizer, theirs)


@given(st.lists(TRICKY, max_size=60).map("".join), st.integers(256, 300))
def test_ties_and_overlaps_are_resolved_as_hugging_faces_trainer_does(
    tmp_path_factory, text, vocab_size
):
    theirs = hugging_face([text], vocab_size)
    folder = tmp_path_factory.mktemp("tricky")
    ours = train(folder, text, vocab_size=theirs.get_vocab_size(), special_tokens=())
    assert ours.encode(text) == theirs.encode(text).ids
    assert_same_tokens(ours, theirs)


@given(st.lists(st.text(max_size=8) | TRICKY, max_size=20).map("".join))
def test_ids_are_those_of_tiktoken_with_the_same_ranks(help_tokenizer, text):
    encoding = help_tokenizer.as_tiktoken()
    assert help_tokenizer.encode_ordinary(text) == encoding.encode_ordinary(text)
    assert help_tokenizer.decode(help_tokenizer.encode_ordinary(text)) == text


def test_files_are_learned_from_together_in_any_order(tmp_path):
    texts = [HELP_TOPICS[:50_000], HELP_TOPICS[50_000:60_000], "é" * 100]
    forth = train(tmp_path, *texts, vocab_size=1000)
    back = train(tmp_path, *reversed(texts), vocab_size=1000)
    assert forth.as_tiktoken()._mergeable_ranks == back.as_tiktoken()._mergeable_ranks
    theirs = hugging_face(texts, 999)
    assert forth.encode(HELP_TOPICS) == theirs.encode(HELP_TOPICS).ids


def test_one_file_may_be_named_without_a_list(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("hug hugs hugging")
    for path in [file, str(file)]:
        tokenizer = gptrs.train_tokenizer(path, 260)
        assert tokenizer.decode_bytes([256]) == b"hu"


def test_special_tokens_have_the_last_ids_and_are_not_learned_from(tmp_path):
    special = (END_OF_TEXT, "<|pad|>")
    text = f"ab{END_OF_TEXT}ab\n\n<|pad|>" * 10
    tokenizer = train(tmp_path, text, vocab_size=260, special_tokens=special)
    assert tokenizer.encode(text[:15], allowed_special="all") == [256, 258]
    assert tokenizer.encode("<|pad|>", allowed_special="all") == [259]
    assert tokenizer.decode_bytes([257]) == b"\n\n"


def test_characters_have_the_ids_of_nanogpts_example(tmp_path):
    text = HELP_TOPICS + "é中🤖\r\n"
    tokenizer = train(tmp_path, text, vocab_size=None, kind="char", special_tokens=())
    ids = {char: number for number, char in enumerate(sorted(set(text)))}
    assert tokenizer.n_vocab == len(ids)
    assert tokenizer.encode(text) == [ids[char] for char in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_special_token_follows_the_characters(tmp_path):
    tokenizer = train(tmp_path, f"cab{END_OF_TEXT}", vocab_size=None, kind="char")
    assert tokenizer.encode("abc") == [0, 1, 2]
    assert tokenizer.encode(END_OF_TEXT, allowed_special="all") == [3]
    with pytest.raises(TokenizerError, match="'d' at byte 3"):
        tokenizer.encode("abcd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 300}, r"vocab_size is 300, but .* for 260 ids only"),
        ({"vocab_size": 300, "special_tokens": ["a b"]}, "whitespace"),
        ({"vocab_size": 300, "special_tokens": [""]}, "empty"),
        ({"vocab_size": 300, "special_tokens": ["<s>", "<s>"]}, '256 and 257 are both .*"<s>"'),
        ({"vocab_size": 4, "kind": "char"}, "4 distinct characters; .* room for 3"),
    ],
)
def test_what_the_text_cannot_give_is_refused_with_what_was_found(tmp_path, options, message):
    with pytest.raises(TokenizerError, match=message):
        train(tmp_path, "abc abc", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 256}, r"vocab_size .*257.*65536, found 256"),
        ({"vocab_size": 65_537}, r"vocab_size .*257.*65536, found 65537"),
        ({"vocab_size": -5}, "vocab_size is at least 1, found -5"),
        ({"vocab_size": 0, "kind": "char"}, "vocab_size is at least 1, found 0"),
        ({"vocab_size": 300, "kind": "word"}, 'kind is "bpe" or "char", found \'word\''),
        ({"vocab_size": None}, 'kind "bpe" needs a vocab_size'),
        ({"vocab_size": 300, "threads": 0}, "threads is at least 1, found 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, "abc abc", **options)


def test_special_tokens_are_no_single_string(tmp_path):
    with pytest.raises(TypeError, match="special_tokens must be a sequence of str, found '<pad>'"):
        train(tmp_path, "abc abc", vocab_size=300, special_tokens="<pad>")


def test_the_number_of_threads_changes_nothing(tmp_path):
    one, several = (train(tmp_path, HELP_TOPICS, vocab_size=500, threads=n) for n in (1, 3))
    assert one == several


def test_progress_is_told_in_merges_and_may_end_the_work(tmp_path):
    told = []
    text = " ".join(f"{number:x}" for number in range(2_000_000))
    train(tmp_path, text, vocab_size=4257, on_progress=told.append)
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 4000

    class Enough(Exception):
        pass

    def stop(_):
        raise Enough

    with pytest.raises(Enough):
        train(tmp_path, text, vocab_size=4257, on_progress=stop)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for kind in ("bpe", "char"):
        with pytest.raises(SourceError, match=r"missing\.txt: no such file"):
            gptrs.train_tokenizer([tmp_path / "missing.txt"], 300, kind=kind)


def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    for kind in ("bpe", "char"):
        with pytest.raises(SourceError, match=r"latin\.txt: not UTF-8: byte 0xe9 at offset 3"):
            gptrs.train_tokenizer(tmp_path / "latin.txt", 300, kind=kind)

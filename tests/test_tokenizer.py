"""The tokenizer against tiktoken's own encoder and regex engine, built from our ranks."""

import base64
import copy
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptrs.errors import GptrsError, TokenIdError, TokenizerError
from gptrs.tokenizer import Tokenizer, get_tokenizer

END_OF_TEXT = "<|endoftext|>"

TOKENIZER = get_tokenizer("gpt2")
TIKTOKEN = TOKENIZER.as_tiktoken()

# Where scanners go wrong: contractions, every kind of whitespace and what only looks like it
# (U+180E, U+200B, U+FEFF, U+001C to U+001F), marks, and letters outside the first plane.
TRICKY = [
    *["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'l", "'", "!", "_", "<|", "|>", "\0"],
    *[
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\v",
        "\f",
        "\x1c",
        "\x1f",
        "\x85",
        "\xa0",
        "\u1680",
        "\u2000",
    ],
    *["\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u180e", "\u200b", "\u200d", "\ufeff"],
    *[
        "e\u0301",
        "\u0301",
        "\u0345",
        "ß",
        "Ⓐ",
        "Ⅷ",
        "½",
        "²",
        "٣",
        "中文",
        "ไทย",
        "👩‍👩‍👧",
        "🏽",
        "𝒳",
        "\U0010ffff",
    ],
    *["the", "The", "hello", "zqx", "0", "2026", END_OF_TEXT],
]
texts = st.lists(st.sampled_from(TRICKY) | st.text(max_size=3), max_size=40).map("".join)


# Ids


def test_the_ranks_are_the_file_that_tiktoken_downloads():
    ranks = TIKTOKEN._mergeable_ranks
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    assert hashlib.sha256(b"".join(lines)).hexdigest() == (
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    )


def test_as_tiktoken_splits_with_the_pattern_that_tiktoken_itself_uses():
    openai_public = pytest.importorskip("tiktoken_ext.openai_public")
    assert isinstance(TIKTOKEN, tiktoken.Encoding)
    assert TIKTOKEN._pat_str == openai_public.r50k_pat_str


def test_every_code_point_is_encoded_as_tiktoken_does():
    # `'s` is a contraction after a letter, a number or a space, and not after a symbol.
    assert_same_ids_in("{0}'s {0}1a{0}", range(sys.maxunicode + 1))


@pytest.mark.parametrize(
    "context",
    ["{0}", "a{0}a", " {0} x", "1{0}2", "!{0}!", "'{0}", "\n{0}\n", "{0}{0}x", "  {0}  {0}b"],
)
def test_code_points_of_every_script_are_encoded_as_tiktoken_does_in(context):
    # All up to the kana; then a sample of the large blocks, in each of which all are alike.
    assert_same_ids_in(context, [*range(0x3100), *range(0x3100, sys.maxunicode + 1, 61)])


def assert_same_ids_in(context, points):
    # A newline between two letters is a piece of its own, so the contexts do not touch.
    chars = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    assert_same_ids("".join(f"z\ny{context.format(char)}" for char in chars))


@given(texts)
def test_any_text_is_encoded_as_tiktoken_does(text):
    assert_same_ids(text)
    assert TOKENIZER.decode(TOKENIZER.encode_ordinary(text)) == text


@given(texts)
def test_allowed_special_tokens_are_encoded_as_tiktoken_does(text):
    options = {"allowed_special": "all"}
    assert TOKENIZER.encode(text, **options) == TIKTOKEN.encode(text, **options)


@given(st.text(alphabet=st.characters() | st.characters(categories=["Cs"])))
def test_surrogates_are_repaired_as_tiktoken_does(text):
    ids = TOKENIZER.encode_ordinary(text)
    assert ids == TIKTOKEN.encode_ordinary(text)
    assert TOKENIZER.encode_to_numpy(text, disallowed_special=()).tolist() == ids


def test_the_standard_library_is_encoded_as_tiktoken_does():
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    assert len(files) > 100
    for file in files:
        assert_same_ids(file.read_text(encoding="utf-8", errors="replace"))


@pytest.mark.parametrize("unit", ["a", "ab", "estin", "é", "=-", " ", "\n", " \n", "\u3000", "1a"])
def test_a_megabyte_without_a_break_is_encoded(unit):
    # Where tiktoken runs out of stack, the ids must at least be the text.
    text = unit * (1_000_000 // len(unit)) + "b"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert_same_ids(text[-20_000:])


def test_whitespace_before_a_special_token_is_the_end_of_a_segment():
    ids = TOKENIZER.encode(f"a\n\n{END_OF_TEXT}b", allowed_special={END_OF_TEXT})
    assert ids == [64, 628, 50256, 65]
    assert ids == TIKTOKEN.encode(f"a\n\n{END_OF_TEXT}b", allowed_special={END_OF_TEXT})


def assert_same_ids(text):
    expected = TIKTOKEN.encode_to_numpy(text, disallowed_special=())
    ids = TOKENIZER.encode_to_numpy(text, disallowed_special=())
    np.testing.assert_array_equal(ids, expected)


# Special tokens


def test_special_tokens_are_refused_unless_allowed():
    text = f"naïve {END_OF_TEXT}"
    with pytest.raises(TokenizerError, match=r'"<\|endoftext\|>" at character 6') as refusal:
        TOKENIZER.encode(text)
    assert "allowed_special" in str(refusal.value)
    assert isinstance(refusal.value, ValueError)
    with pytest.raises(TokenizerError):
        TOKENIZER.encode_to_numpy(text)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"allowed_special": {END_OF_TEXT}}, [50256]),
        ({"allowed_special": "all"}, [50256]),
        ({"allowed_special": [END_OF_TEXT], "disallowed_special": ()}, [50256]),
        ({"allowed_special": {"<|unknown|>"}, "disallowed_special": ()}, None),
        ({"disallowed_special": ()}, None),
        ({"disallowed_special": {"<|other|>"}}, None),
    ],
)
def test_special_tokens_are_one_id_where_allowed_and_text_elsewhere(options, ids):
    expected = ids or [27, 91, 437, 1659, 5239, 91, 29]
    assert TOKENIZER.encode(END_OF_TEXT, **options) == expected
    assert TOKENIZER.encode_to_numpy(END_OF_TEXT, **options).tolist() == expected


def test_any_string_may_be_disallowed_and_the_leftmost_is_named():
    with pytest.raises(TokenizerError, match='"secret" at character 4'):
        TOKENIZER.encode("the secret word", disallowed_special={"word", "secret"})
    with pytest.raises(TokenizerError, match="at character 0"):
        TOKENIZER.encode(END_OF_TEXT, allowed_special="all", disallowed_special=[END_OF_TEXT])
    with pytest.raises(TokenizerError):
        TOKENIZER.encode("a\ud800", disallowed_special={"\ud800"})


def test_encode_ordinary_finds_nothing_special():
    assert TOKENIZER.encode_ordinary(END_OF_TEXT) == [27, 91, 437, 1659, 5239, 91, 29]


# Decoding


def test_decoding_takes_lists_arrays_and_tensors():
    ids = [15496, 11, 314, 716]
    given_as = [
        ids,
        tuple(ids),
        iter(ids),
        torch.tensor(ids),
        torch.tensor(ids, dtype=torch.uint16),
        *(np.array(ids, dtype=kind) for kind in ("u2", ">u2", "i4", "i8", "u8")),
        np.array(ids, dtype=np.uint16).repeat(2)[::2],
    ]
    for each in given_as:
        assert TOKENIZER.decode(each) == "Hello, I am"
    assert TOKENIZER.decode([]) == ""
    assert TOKENIZER.decode(np.array([], dtype=np.uint16)) == ""


@given(st.lists(st.integers(0, 50256)))
def test_any_ids_decode_to_tiktokens_bytes(ids):
    assert TOKENIZER.decode_bytes(ids) == TIKTOKEN.decode_bytes(ids)
    assert TOKENIZER.decode(ids) == TIKTOKEN.decode(ids)


def test_ids_that_end_within_a_character_are_replaced_or_refused_as_asked():
    ids = TOKENIZER.encode("🤖")
    assert len(ids) > 1
    assert TOKENIZER.decode(ids[:-1]) == "\ufffd"
    assert TOKENIZER.decode(ids[:-1], errors="ignore") == ""
    with pytest.raises(UnicodeDecodeError):
        TOKENIZER.decode(ids[:-1], errors="strict")


@pytest.mark.parametrize("wrong", [50257, 65535, 65536, -1, 10**30])
def test_ids_outside_the_vocabulary_are_refused(wrong):
    with pytest.raises(TokenIdError, match=rf"token id {wrong} at index 1 is outside 0..50256"):
        TOKENIZER.decode([0, wrong])


@pytest.mark.parametrize(
    "wrong", [5, "hello", [0.5], [[1, 2]], [None], np.zeros((2, 2), np.uint16), torch.zeros(1, 2)]
)
def test_what_is_no_row_of_integers_is_refused_by_type(wrong):
    with pytest.raises(TypeError, match="ids"):
        TOKENIZER.decode(wrong)


# The tokenizer as an object


def test_names_and_numbers_are_those_of_tiktoken():
    for name in ("name", "n_vocab", "max_token_value", "eot_token", "special_tokens_set"):
        assert getattr(TOKENIZER, name) == getattr(TIKTOKEN, name)
    assert repr(TOKENIZER) == "<Tokenizer 'gpt2': 50257 ids>"


def test_arrays_are_uint16_and_writable_and_lists_hold_ints():
    ids = TOKENIZER.encode_to_numpy("Hello")
    assert ids.dtype == np.uint16
    assert ids.flags.writeable
    assert all(type(i) is int for i in TOKENIZER.encode("Hello"))
    assert TOKENIZER.encode_to_numpy("").shape == (0,)


def test_copies_and_pickles_are_the_same_tokenizer():
    assert pickle.loads(pickle.dumps(TOKENIZER)) is TOKENIZER
    assert copy.copy(TOKENIZER) is TOKENIZER
    assert copy.deepcopy(TOKENIZER) is TOKENIZER
    assert get_tokenizer() is TOKENIZER


def test_text_that_is_no_str_is_refused_by_type():
    for wrong in (b"bytes", None, 5, ["a"]):
        with pytest.raises(TypeError, match=f"text must be a str, found {type(wrong).__name__}"):
            TOKENIZER.encode(wrong)
    with pytest.raises(TypeError, match="allowed_special"):
        TOKENIZER.encode("", allowed_special=END_OF_TEXT)
    with pytest.raises(TypeError, match="disallowed_special"):
        TOKENIZER.encode("", disallowed_special=None)


@pytest.fixture
def no_thread_switches():
    """Until the test ends, a thread keeps the GIL until it lets go of it by itself."""
    interval = sys.getswitchinterval()
    yield lambda: sys.setswitchinterval(1000)
    sys.setswitchinterval(interval)


def test_other_threads_run_while_a_text_is_encoded(no_thread_switches):
    text = "estin" * 200_000
    go, ran = threading.Event(), []
    other = threading.Thread(target=lambda: (go.wait(), ran.append(True)))
    other.start()
    no_thread_switches()
    go.set()
    assert not ran
    TOKENIZER.encode_to_numpy(text)
    assert ran
    other.join()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this platform")
def test_signals_are_heard_many_times_during_one_encoding():
    class Stop(Exception):
        pass

    heard = []

    def handler(*_):
        heard.append(True)
        if len(heard) == 5:
            raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        # Signals that wait until the call is over count once.
        with pytest.raises(Stop):
            TOKENIZER.encode_to_numpy("estin" * 1_500_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_importing_and_encoding_loads_neither_numpy_nor_torch_nor_tiktoken():
    program = """if True:
        import sys
        from gptrs.tokenizer import get_tokenizer
        tokenizer = get_tokenizer("gpt2")
        assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
        print(sorted({"numpy", "torch", "tiktoken"} & set(sys.modules)))
    """
    assert run_python(program) == "[]"


def run_python(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Files and names


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return TOKENIZER.save(tmp_path_factory.mktemp("saved"))


def test_a_saved_tokenizer_gives_the_same_ids_in_hugging_faces_library(saved):
    theirs = tokenizers.Tokenizer.from_file(str(saved))
    for text in [
        *TRICKY,
        "".join(TRICKY),
        "I'd say  it's\n\n 42!",
        Path(__file__).read_text("utf-8"),
    ]:
        ids = TOKENIZER.encode(text, allowed_special="all")
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text
    assert theirs.get_vocab_size() == TOKENIZER.n_vocab
    assert theirs.token_to_id(END_OF_TEXT) == TOKENIZER.eot_token


def test_a_saved_tokenizer_is_found_by_its_file_and_by_its_directory(saved):
    assert saved.name == "tokenizer.json"
    assert get_tokenizer(saved) is TOKENIZER
    assert Tokenizer.load(saved) is TOKENIZER
    assert get_tokenizer(str(saved.parent)) is TOKENIZER


def test_a_file_saved_by_hugging_faces_library_is_read(saved, tmp_path):
    theirs = tmp_path / "theirs.json"
    tokenizers.Tokenizer.from_file(str(saved)).save(str(theirs))
    assert get_tokenizer(theirs) is TOKENIZER


def test_a_file_with_merges_in_the_older_form_is_read(saved, tmp_path):
    older = json.loads(saved.read_text("utf-8"))
    older["model"]["merges"] = [" ".join(merge) for merge in older["model"]["merges"]]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(older), "utf-8")
    assert get_tokenizer(tmp_path) is TOKENIZER


def test_saving_replaces_a_file_whole_or_leaves_it(saved, tmp_path, monkeypatch):
    file = tmp_path / "my.json"
    file.write_text("before")

    def full_disk(_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            TOKENIZER.save(file)
    assert file.read_text() == "before"
    assert TOKENIZER.save(file) == file
    assert file.read_bytes() == saved.read_bytes()
    assert os.listdir(tmp_path) == ["my.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["vocab"].pop("!"), "BPE model with 50256 tokens"),
        (lambda t: t["model"].update(type="WordPiece"), "WordPiece model"),
        (lambda t: t["model"]["merges"].pop(), "49999 other merges"),
        (lambda t: t["added_tokens"].append({"content": "<pad>", "id": 50257}), "<pad>"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "NFC"),
        (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "pre-tokenizer"),
        (lambda t: t.pop("model"), "not a Hugging Face tokenizer"),
        (lambda t: t.update(model=[]), "not a Hugging Face tokenizer"),
    ],
)
def test_another_tokenizers_file_is_refused_with_what_was_found(saved, tmp_path, change, message):
    description = json.loads(saved.read_text("utf-8"))
    change(description)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(description), "utf-8")
    with pytest.raises(TokenizerError, match=message):
        get_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        get_tokenizer(file)


@pytest.mark.parametrize("name", ["gpt5", "", "tiktoken:gpt5", "x" * 5000, "nul\0", "tiktoken:"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(TokenizerError, match="gpt2") as refusal:
        get_tokenizer(name)
    assert isinstance(refusal.value, GptrsError)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        get_tokenizer(tmp_path)


def test_tiktokens_own_encoding_is_asked_of_tiktoken(monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: (name, "encoding"))
    assert get_tokenizer("tiktoken:gpt2") == ("gpt2", "encoding")


def test_tiktoken_without_a_network_is_a_tokenizer_error(tmp_path):
    program = """if True:
        from gptrs.errors import TokenizerError
        from gptrs.tokenizer import get_tokenizer
        try:
            get_tokenizer("tiktoken:gpt2")
        except TokenizerError as error:
            print(error)
    """
    nowhere = dict.fromkeys(["HTTPS_PROXY", "https_proxy", "ALL_PROXY"], "http://127.0.0.1:9")
    message = run_python(program, TIKTOKEN_CACHE_DIR=str(tmp_path), NO_PROXY="", **nowhere)
    assert "as_tiktoken()" in message

"""The tokenizer against tiktoken's own encoder and regex engine, built from our ranks."""

import base64
import copy
import hashlib
import os
import pickle
import re
import subprocess
import sys
import sysconfig
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptrs.errors import GptrsError, TokenIdError, TokenizerError
from gptrs.text.given_tokenizer import end_of_text_id
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer_training import train_tokenizer

END_OF_TEXT = "<|endoftext|>"

TOKENIZER = get_tokenizer("gpt2")
TIKTOKEN = TOKENIZER.as_tiktoken()

# Where scanners go wrong: contractions, every kind of whitespace and what only looks like it
# (U+180E, U+200B, U+FEFF, U+001C to U+001F), marks, and letters outside the first plane.
TRICKY = [
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'l", "'", "!", "_", "<|", "|>", "\0",
    *" \n\t\v\f\x1c\x1f\x85\xa0\u1680\u2000\u2028\u2029\u202f\u205f\u3000", "  ", "\r\n",
    "\u180e", "\u200b", "\u200d", "\ufeff", "e\u0301", "\u0301", "\u0345",
    "ß", "Ⓐ", "Ⅷ", "½", "²", "٣", "中文", "ไทย", "👩‍👩‍👧", "🏽", "𝒳", "\U0010ffff",
    "the", "The", "hello", "zqx", "0", "2026", END_OF_TEXT,
]  # fmt: skip
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


CODE_POINTS = [point for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]


def test_every_code_point_is_encoded_as_tiktoken_does():
    # After and before a letter, a digit, a symbol, a space, an apostrophe and line breaks. `'s` is
    # a contraction after a letter, a number or a space, and not after a symbol.
    assert_same_ids_in("y{0}1{0}!{0} {0}'{0}\n{0}'s{0}\r\n{0}z\n", CODE_POINTS)


def test_every_code_point_is_encoded_as_tiktoken_does_at_both_ends_of_a_text():
    # A special token ends a text, and the next begins.
    ends = f"{{0}}{END_OF_TEXT}{{0}}x{END_OF_TEXT}x{{0}}{END_OF_TEXT}"
    assert_same_ids_in(ends, CODE_POINTS, allowed_special="all")


def test_code_points_of_every_script_are_encoded_as_tiktoken_does_between_any_two_others():
    # All up to the kana; then a sample of the large blocks, in each of which all are alike.
    points = [point for point in CODE_POINTS if point < 0x3100 or point % 401 == 0]
    others = ["a", "1", "!", "'", "'s", " ", "  ", "\n", "\r\n", " \n", "\u3000"]
    # A newline between two letters is a piece of its own, so the contexts do not touch.
    between = [f"z\ny{one}{{0}}{other}" for one in others for other in [*others, "{0}"]]
    for start in range(0, len(between), 12):
        assert_same_ids_in("".join(between[start : start + 12]), points)


@pytest.mark.parametrize(
    "text", [chr(32), "\n", "a", "'", "é", "中", "🤖", "\u3000", "\ufeff", "\0"]
)
def test_a_single_character_is_encoded_as_tiktoken_does(text):
    for repeated in (text, text * 2, text * 3):
        assert_same_ids(repeated)


def assert_same_ids_in(context, points, **options):
    assert_same_ids("".join(context.format(chr(point)) for point in points), **options)


@given(texts)
def test_any_text_is_encoded_as_tiktoken_does(text):
    ids = TOKENIZER.encode_ordinary(text)
    assert ids == TIKTOKEN.encode_ordinary(text)
    assert TOKENIZER.encode_to_numpy(text, disallowed_special=()).tolist() == ids
    assert TOKENIZER.count(text, disallowed_special=()) == len(ids)
    assert TOKENIZER.decode(ids) == text


@given(texts)
def test_allowed_special_tokens_are_encoded_as_tiktoken_does(text):
    ids = TOKENIZER.encode(text, allowed_special="all")
    assert ids == TIKTOKEN.encode(text, allowed_special="all")
    assert TOKENIZER.count(text, allowed_special="all") == len(ids)


@given(st.text(alphabet=st.characters() | st.characters(categories=["Cs"])))
def test_surrogates_are_repaired_as_tiktoken_does(text):
    ids = TOKENIZER.encode_ordinary(text)
    assert ids == TIKTOKEN.encode_ordinary(text)
    assert TOKENIZER.encode_to_numpy(text, disallowed_special=()).tolist() == ids
    assert TOKENIZER.count(text) == len(ids)


def test_the_standard_library_is_encoded_as_tiktoken_does():
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    assert len(files) > 100
    for file in files:
        assert_same_ids(file.read_text(encoding="utf-8", errors="replace"))


MANY_SCRIPTS = """
The sea was calm that morning, and three boats (No. 7, 12 & 40) came home before noon; didn't they?
Το πρωί η θάλασσα ήταν ήρεμη και οι ψαράδες γύρισαν νωρίς στο λιμάνι, με 12 καλάθια ψάρια.
Утром море было спокойным, и лодки вернулись рано: «Всё хорошо», — сказал рыбак.
Їжак із'їв 3 яблука.
Ծովը հանդարտ էր այդ առավոտ, և նավակները շուտ վերադարձան։ დილით ზღვა მშვიდი იყო, 3 ნავი დაბრუნდა.
הים היה שקט בבוקר, והסירות חזרו מוקדם לנמל. "בוקר טוב!" אמר הדייג — שָׁלוֹם.
كان البحر هادئًا في الصباح، وعادت القوارب مبكرًا إلى الميناء ومعها ١٢ سلة.
صبح دریا آرام بود؛ قایق‌ها برگشتند.
सुबह समुद्र शांत था और तीन नावें जल्दी लौट आईं। মাছ ধরার ৩টি নৌকা সকালে ফিরে এল।
காலையில் கடல் அமைதியாக இருந்தது. ఉదయం సముద్రం ప్రశాంతంగా ఉంది. ಬೆಳಿಗ್ಗೆ ಸಮುದ್ರ ಶಾಂತವಾಗಿತ್ತು.
രാവിലെ കടൽ ശാന്തമായിരുന്നു. උදේ මුහුද නිසල විය.
เช้านี้ทะเลสงบ เรือ ๓ ลำกลับมาแต่เช้า ຕອນເຊົ້າທະເລງຽບ ព្រឹកនេះសមុទ្រស្ងប់ស្ងាត់។
မနက်က ပင်လယ် ငြိမ်သက်နေတယ်။ ཞོགས་པར་རྒྱ་མཚོ་ཞི་འཇམ་རེད།
ጠዋት ባሕሩ ጸጥ ያለ ነበር፤ ሦስት ጀልባዎች ተመለሱ።
早上海面很平静，三条船（共12筐鱼）提前回港了。朝の海は静かで、船が３隻、早く帰ってきました。「おはよう！」
아침 바다는 고요했고 배 세 척이 일찍 돌아왔다. Sáng nay biển lặng, ba chiếc thuyền về sớm.
Çiğ köfte İstanbul'da; Łódź, naïve, œuvre, Straße, fiancé's café; ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ;
ᚠᚢᚦᚨᚱᚲ; 𐌰𐌱𐌲; 𝓪𝓫𝓬 ①②③ ½ ⅷ ٤٢
"""


def test_sentences_in_many_scripts_are_encoded_as_tiktoken_does():
    for line in MANY_SCRIPTS.splitlines(keepends=True):
        assert_same_ids(line)
        assert_same_ids(unicodedata.normalize("NFD", line))
        assert_same_ids(line.upper())
    assert_same_ids(MANY_SCRIPTS)


@pytest.mark.parametrize("unit", ["a", "ab", "estin", "é", "=-", " ", "\n", " \n", "\u3000", "1a"])
def test_a_megabyte_without_a_break_is_encoded(unit):
    # Where tiktoken runs out of stack, the ids must at least be the text.
    text = unit * (1_000_000 // len(unit)) + "b"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert_same_ids(text[-20_000:])


def test_a_piece_above_64_mib_is_refused_with_its_offset():
    text = "é " + "a" * (2**26 + 1)
    for encode in (TOKENIZER.encode, TOKENIZER.encode_to_numpy, TOKENIZER.count):
        with pytest.raises(TokenizerError, match="at byte 2 has more than 67108864 bytes"):
            encode(text)
    with pytest.raises(TokenizerError, match="at byte 15 "):
        TOKENIZER.encode(END_OF_TEXT + text, allowed_special="all")


def test_whitespace_before_a_special_token_is_the_end_of_a_segment():
    ids = TOKENIZER.encode(f"a\n\n{END_OF_TEXT}b", allowed_special={END_OF_TEXT})
    assert ids == [64, 628, 50256, 65]
    assert ids == TIKTOKEN.encode(f"a\n\n{END_OF_TEXT}b", allowed_special={END_OF_TEXT})


def assert_same_ids(text, **options):
    expected = TIKTOKEN.encode_to_numpy(text, disallowed_special=(), **options)
    ids = TOKENIZER.encode_to_numpy(text, disallowed_special=(), **options)
    if not np.array_equal(ids, expected):  # Comparing is fast, telling what differs is not.
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


SEVERAL_SPECIAL = ["<|a|>", "<|a|>b", "b<|c|>", "|>", "||", "中<|中|>"]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A byte-pair encoding with special tokens that start alike and overlap."""
    file = tmp_path_factory.mktemp("several") / "text.txt"
    file.write_text("a b c ab bc abc <a> 中 " * 10, "utf-8")
    return train_tokenizer(file, 270, special_tokens=SEVERAL_SPECIAL)


def test_of_special_tokens_that_start_at_one_place_the_longest_counts(several):
    first = several.n_vocab - len(SEVERAL_SPECIAL)
    assert several.encode("<|a|>b<|a|>", allowed_special="all") == [first + 1, first]
    assert several.encode("<|a|>b<|c|>", allowed_special="all")[0] == first + 1
    # What is not allowed is not looked for.
    assert several.encode("<|a|>b", allowed_special={"<|a|>"}, disallowed_special=())[0] == first


@given(st.lists(st.sampled_from([*SEVERAL_SPECIAL, *"ab<|c>中 "]), max_size=12).map("".join))
def test_several_special_tokens_split_a_text_from_the_left(several, text):
    pattern = "|".join(map(re.escape, sorted(SEVERAL_SPECIAL, key=len, reverse=True)))
    expected, start = [], 0
    for found in re.finditer(pattern, text):
        expected += several.encode_ordinary(text[start : found.start()])
        expected.append(several.n_vocab - len(SEVERAL_SPECIAL) + SEVERAL_SPECIAL.index(found[0]))
        start = found.end()
    expected += several.encode_ordinary(text[start:])
    assert several.encode(text, allowed_special="all") == expected
    assert several.decode(expected) == text


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


@given(texts)
def test_offsets_are_the_characters_in_which_tiktoken_says_each_token_begins(text):
    ids = TOKENIZER.encode_ordinary(text)
    assert TOKENIZER.decode_with_offsets(ids) == TIKTOKEN.decode_with_offsets(ids)


def test_ids_without_a_whole_text_have_no_offsets():
    assert TOKENIZER.decode_with_offsets([]) == ("", [])
    with pytest.raises(UnicodeDecodeError):
        TOKENIZER.decode_with_offsets(TOKENIZER.encode("🤖")[:-1])
    with pytest.raises(TokenIdError):
        TOKENIZER.decode_with_offsets([50257])


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


def test_copies_and_pickles_are_the_same_tokenizer(several):
    assert pickle.loads(pickle.dumps(TOKENIZER)) is TOKENIZER
    assert copy.copy(TOKENIZER) is TOKENIZER
    assert copy.deepcopy(TOKENIZER) is TOKENIZER
    assert get_tokenizer() is TOKENIZER
    for twin in (pickle.loads(pickle.dumps(several)), copy.deepcopy(several)):
        assert twin is not several
        assert twin == several
        assert hash(twin) == hash(several)
        assert (twin.name, twin.n_vocab) == (several.name, several.n_vocab)
        assert twin.encode("abc <|a|>", allowed_special="all") == several.encode(
            "abc <|a|>", allowed_special="all"
        )


def test_tokenizers_with_other_ids_are_not_equal(several, tmp_path):
    assert several != TOKENIZER
    assert several != "tokenizer"
    (tmp_path / "text.txt").write_text("a b c ab bc abc <a> 中 " * 10, "utf-8")
    options = {"special_tokens": SEVERAL_SPECIAL}
    assert train_tokenizer(tmp_path / "text.txt", 270, **options) == several
    assert train_tokenizer(tmp_path / "text.txt", 269, **options) != several
    options = {"special_tokens": SEVERAL_SPECIAL[::-1]}
    assert train_tokenizer(tmp_path / "text.txt", 270, **options) != several


def test_end_of_text_has_an_id_only_where_it_is_a_special_token(several):
    assert TOKENIZER.eot_token == end_of_text_id(TOKENIZER) == end_of_text_id(TIKTOKEN) == 50256
    assert several.eot_token is None
    assert end_of_text_id(several.as_tiktoken()) is None
    assert end_of_text_id(object()) is None


def test_text_that_is_no_str_is_refused_by_type():
    for wrong in (b"bytes", None, 5, ["a"]):
        with pytest.raises(TypeError, match=f"text must be a str, found {type(wrong).__name__}"):
            TOKENIZER.encode(wrong)
    with pytest.raises(TypeError, match="allowed_special"):
        TOKENIZER.encode("", allowed_special=END_OF_TEXT)
    with pytest.raises(TypeError, match="disallowed_special"):
        TOKENIZER.encode("", disallowed_special=None)


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


# Names


@pytest.mark.parametrize("name", ["gpt5", "", "tiktoken:gpt5", "x" * 5000, "nul\0", "tiktoken:"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(TokenizerError, match="gpt2") as refusal:
        get_tokenizer(name)
    assert isinstance(refusal.value, GptrsError)


def test_tiktokens_own_encoding_is_asked_of_tiktoken(monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: (name, "encoding"))
    assert get_tokenizer("tiktoken:gpt2") == ("gpt2", "encoding")


def test_tiktoken_without_a_network_is_a_tokenizer_error(tmp_path):
    program = """if True:
        from gptrs.errors import TokenizerError
        from gptrs.text.named_tokenizers import get_tokenizer
        try:
            get_tokenizer("tiktoken:gpt2")
        except TokenizerError as error:
            print(error)
    """
    nowhere = dict.fromkeys(["HTTPS_PROXY", "https_proxy", "ALL_PROXY"], "http://127.0.0.1:9")
    message = run_python(program, TIKTOKEN_CACHE_DIR=str(tmp_path), NO_PROXY="", **nowhere)
    assert "as_tiktoken()" in message

"""Patterns over tokens against Python's `re` and the `regex` package, which nobody here wrote."""

import gc
import itertools
import json
import re
import sys
import threading
import unicodedata
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import regex
import tokenizers
import transformers

from gptrs import _core, get_tokenizer, train_tokenizer
from gptrs.errors import ConfigError, GenerationError, TokenIdError
from gptrs.sampling.constraints import token_bytes

GPT2 = get_tokenizer("gpt2")
GPT2_BYTES = token_bytes(GPT2)

PATTERNS = [
    r"\d{4}-\d{2}-\d{2}",
    r"[0-9]{1,3}(\.[0-9]{1,3}){3}",
    r"[a-z0-9._]{1,30}@[a-z0-9]{1,20}\.(com|org|net)",
    r'{"name": "[^"\\\n]{1,40}", "age": [0-9]{1,3}, "tags": \["[a-z]+"(, "[a-z]+"){0,4}\]}',
    r"[a-z ]{1,200}",
    r".*",
    r".{3,9}",
    r"(?s).{0,12}",
    r"\w+ \w+",
    r"\W{1,9}",
    r"\S+\s\S+",
    r"\D{2,}",
    r"(yes|no|maybe)(, (yes|no|maybe))*",
    r"(?i)hello,? world!?",
    r"[^a-zA-Z]{2,20}",
    r"(a|ab)(c|bcd)?d*",
    r"a+?b*?(?:c{2,3}|d{,2})$",
    r"^#[0-9A-Fa-f]{6}\Z",
    "[\u4e00-\u9fff]{1,8}",
    "[\U0001f600-\U0001f64f]+ok",
    r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?",
    r"(?P<year>19|20)[0-9]{2}|never",
    r"[[&&~~\]-]{3}",
    r"\"\<\>\\\{\}[\b]?",
]


def decoded(ids: Sequence[int], tokens: _core.TokenBytes = GPT2_BYTES) -> str:
    return b"".join(tokens[i] for i in ids).decode("utf-8", "strict")


def random_walk(grammar: _core.Grammar, max_new_tokens: int, seed: int) -> list[int]:
    """The tokens of a model that knows nothing."""
    random = np.random.default_rng(seed)
    matcher = grammar.start()
    ids: list[int] = []
    while True:
        allowed, may_end = matcher.allowed(max_new_tokens - len(ids))
        choices = np.flatnonzero(allowed)
        if not len(choices) or (may_end and random.random() < 0.05):
            assert may_end
            return ids
        ids.append(int(random.choice(choices)))
        matcher.push(ids[-1])


def least_budget(grammar: _core.Grammar) -> int:
    for budget in range(100):
        try:
            grammar.check_budget(budget)
        except ConfigError:
            continue
        return budget
    raise AssertionError


@pytest.mark.filterwarnings("ignore:Possible (set|nested):FutureWarning")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_model_that_knows_nothing_writes_a_match_in_any_budget_that_allows_one(pattern):
    grammar = _core.Grammar.regex(pattern, GPT2_BYTES)
    least = least_budget(grammar)
    for seed in range(20):
        budget = least + seed
        ids = random_walk(grammar, budget, seed)
        assert len(ids) <= budget
        assert re.fullmatch(pattern, decoded(ids)), decoded(ids)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"[0-9]{4}-[0-9]{2}", ["", "20", "2024-1"]),
        (r"[a-z ]{1,5}", ["", "the "]),
        (r"(cat|category|dog)s?", ["", "cat", "catego"]),
        (r'"[^"\n]*", [0-9]+', ['"', '"x", ', '"", 1']),
        (r"(?s).{2,3}", ["", "é", "éé"]),
        (r"[^ -~]+x?", ["", "é"]),
    ],
)
def test_what_is_allowed_is_what_regex_calls_a_partial_match(pattern, texts):
    grammar = _core.Grammar.regex(pattern, GPT2_BYTES)
    compiled = regex.compile(pattern)
    strings = {}
    for token_id in range(len(GPT2_BYTES)):
        try:
            strings[token_id] = GPT2_BYTES[token_id].decode()
        except UnicodeDecodeError:
            continue  # Part of a character: `regex` has no opinion.
    for text in texts:
        matcher = grammar.start()
        for token_id in GPT2.encode(text):
            matcher.push(token_id)
        allowed, may_end = matcher.allowed(1000)
        assert may_end == bool(compiled.fullmatch(text))
        for token_id, token in strings.items():
            expected = token and compiled.fullmatch(text + token, partial=True)
            assert allowed[token_id] == bool(expected), (text, token)


@pytest.mark.filterwarnings("ignore:Possible (set|nested):FutureWarning")
@pytest.mark.parametrize(
    "pattern",
    [
        r"a{,2}b", "a{b", "{}", "a{1,2}{", "[]a]{2}", "[^]a]", "[[a]+", "[a&&b]", "a|", "(|a)b",
        "(?:a|b)*?c", "(?s).", ".", "^a$", r"a\Z", "(?i)AB", "(?i:a)b", "(?P<n>a)b?", r"[\]\-a]",
        "[a-]", "a[b-]*", r"\x61\u0062", "(ab?)*", "(a{2}){0,2}", "[{}]a", r"a\.?", "()", "",
    ],
)  # fmt: skip
def test_a_pattern_means_what_it_means_in_python(pattern):
    """For every text of up to three of these letters."""
    letters = [*"abcA[]{}-&.\n"]
    grammar = _core.Grammar.regex(pattern, _core.TokenBytes([x.encode() for x in letters]))
    compiled = re.compile(pattern)

    def matches(ids):
        matcher = grammar.start()
        try:
            for token_id in ids:
                matcher.push(token_id)
        except GenerationError:
            return False
        return matcher.allowed(9)[1]

    for length in range(4):
        for ids in itertools.product(range(len(letters)), repeat=length):
            text = "".join(letters[i] for i in ids)
            # Python's $ also matches before a last line end; ours is \Z.
            expected = compiled.fullmatch(text) and not (text.endswith("\n") and "$" in pattern)
            assert matches(ids) == bool(expected), text


@pytest.fixture(scope="module")
def characters() -> tuple[str, _core.TokenBytes]:
    """Every character, and a vocabulary of them."""
    every = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    return "".join(every), _core.TokenBytes([char.encode() for char in every])


@pytest.mark.parametrize(
    "pattern",
    [r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", ".", r"[^\w\s]", r"[\d_]", "(?i)k", "(?i)[^s]"],
)
def test_a_class_has_only_characters_that_it_has_in_python(pattern, characters):
    every, tokens = characters
    allowed, _ = _core.Grammar.regex(pattern, tokens).start().allowed(1)
    expected = {*re.findall(pattern, every)}
    found = {every[i] for i in np.flatnonzero(allowed)}
    assert found <= expected
    # What is missing had no meaning yet in Unicode 14, or has another one in 16.
    missing = [char for char in expected - found if unicodedata.category(char) != "Cn"]
    newer = float(unicodedata.unidata_version.rsplit(".", 1)[0]) > 14
    assert len(missing) <= (0.1 * len(expected) if newer else 30)


def test_exactly_the_choices_come_out_and_each_can():
    choices = ["a", "ab", "abc", "the cat", "the category", "Zürich", "日本"]
    grammar = _core.Grammar.choices(choices, GPT2_BYTES)
    found, seen, begun = set(), {b""}, [()]
    for ids in begun:  # Grows.
        matcher = grammar.start()
        for token_id in ids:
            matcher.push(token_id)
        allowed, may_end = matcher.allowed(40)
        if may_end:
            found.add(decoded(ids))
        for token_id in np.flatnonzero(allowed).tolist():
            text = b"".join(GPT2_BYTES[i] for i in (*ids, token_id))
            if text not in seen:
                seen.add(text)
                begun.append((*ids, token_id))
    assert found == {*choices}


def test_a_choice_of_one_token_needs_a_budget_of_one_token():
    grammar = _core.Grammar.choices(["positive", "negative"], GPT2_BYTES)
    with pytest.raises(ConfigError, match="max_new_tokens is 0, but this list of 2 choices needs"):
        grammar.check_budget(0)
    (positive,) = GPT2.encode("positive")
    allowed, may_end = grammar.start().allowed(1)
    assert positive in np.flatnonzero(allowed)
    assert not may_end
    negative = GPT2.encode("negative")
    assert bool(allowed[negative[0]]) == (len(negative) == 1)


def test_a_thousand_choices_are_told_apart():
    random = np.random.default_rng(7)
    words = ["".join(random.choice([*"abcdefgh "], 8)) for _ in range(1000)]
    grammar = _core.Grammar.choices(words, GPT2_BYTES)
    for seed in range(50):
        assert decoded(random_walk(grammar, 20, seed)) in words


def test_special_tokens_are_never_allowed():
    allowed, may_end = _core.Grammar.regex("(?s).*", GPT2_BYTES).start().allowed(100)
    assert may_end
    assert np.flatnonzero(~allowed).tolist() == [
        i for i in range(50257) if i == GPT2.eot_token or not _begins_text(GPT2_BYTES[i])
    ]


def _begins_text(token: bytes) -> bool:
    """Whether some text begins with these bytes."""
    try:
        token.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_trained_tokenizers_follow_patterns_too(kind, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Der Bär läuft über die Brücke. Ein Café, 12 Gäste.\n" * 20, encoding="utf-8")
    tokenizer = train_tokenizer(text, None if kind == "char" else 290, kind=kind)
    tokens = token_bytes(tokenizer)
    for pattern in [r"\w+ \w{3}", "[äüé]{2,5}", "Bär|Brücke", "[A-Z][a-z]*\\."]:
        grammar = _core.Grammar.regex(pattern, tokens)
        least = least_budget(grammar)
        for seed in range(20):
            ids = random_walk(grammar, least + seed, seed)
            assert re.fullmatch(pattern, tokenizer.decode(ids))
    if kind == "char":  # It has no token for a part of a character, nor one for a q.
        with pytest.raises(ConfigError, match="no text that the vocabulary's tokens can make"):
            _core.Grammar.regex("q+", tokens)
        assert random_walk(_core.Grammar.regex("(q|B)r?", tokens), 1, 0) == tokenizer.encode("B")


def test_every_kind_of_tokenizer_gives_the_same_bytes(tmp_path):
    """Which `re` cannot judge, but tiktoken's own bytes can."""
    encoding = GPT2.as_tiktoken()
    expected = [encoding.decode_single_token_bytes(i) for i in range(50256)] + [b""]
    file = GPT2.save(tmp_path / "tokenizer.json")
    kinds = [
        GPT2,
        encoding,
        tokenizers.Tokenizer.from_file(str(file)),
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(file)),
    ]
    for tokenizer in kinds:
        found = token_bytes(tokenizer)
        assert [found[i] for i in range(len(found))] == expected
        assert token_bytes(tokenizer) is found


def test_tokens_that_were_added_later_are_seen(tmp_path):
    file = GPT2.save(tmp_path / "tokenizer.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    assert len(token_bytes(tokenizer)) == 50257
    tokenizer.add_tokens(["<thé>"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    found = token_bytes(tokenizer)
    assert [found[50257], found[50258]] == ["<thé>".encode(), b""]


def test_a_tokenizer_of_ones_own_lists_its_tokens():
    class Own:
        def token_bytes(self):
            return (b"a", b"b", b"")

    assert len(token_bytes(Own())) == 3


def test_a_tokenizer_whose_bytes_nobody_knows_is_refused_with_what_is_needed():
    class DecodesOnly:
        def decode(self, ids):
            return ""

    with pytest.raises(ConfigError, match=r"token_bytes\(\).*DecodesOnly"):
        token_bytes(DecodesOnly())
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ConfigError, match="not ByteLevel"):
        token_bytes(words)
    words.decoder = tokenizers.decoders.Metaspace()
    with pytest.raises(ConfigError, match="is Metaspace, not ByteLevel"):
        token_bytes(words)


def test_remembered_tokenizers_are_few():
    class Own:
        def token_bytes(self):
            return [b"a"]

    alive = weakref.WeakSet()
    for _ in range(50):
        tokenizer = Own()
        alive.add(tokenizer)
        token_bytes(tokenizer)
    gc.collect()
    assert len(alive) <= 8


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?=a)a", "look-around is not supported"),
        (r"(a)\1", "references to groups are not supported"),
        (r"\bword\b", "word boundaries are not supported"),
        ("a*+", "possessive"),
        ("(a", "unclosed group"),
        ("a{3,2}", "invalid repetition count range"),
        ("(a|b|c){1000}{1000}", "a repetition is repeated"),
        ("((a|b|c){1000}){1000}", "too large"),
        ("(a|b)*a(a|b){25}", "too large"),
        ("a$b", "no text"),
        (r"[^\s\S]", "no text"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_named_with_the_reason(pattern, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)) as raised:
        _core.Grammar.regex(pattern, GPT2_BYTES)
    assert json.dumps(pattern) in str(raised.value)


def test_bad_choices_stop_strings_and_tokens_are_refused():
    for choices, reason in [([], "found none"), (["a", ""], "number 1 is empty")]:
        with pytest.raises(ConfigError, match=reason):
            _core.Grammar.choices(choices, GPT2_BYTES)
    for stops, reason in [([], "found none"), (["a", ""], "stop string 1 is empty")]:
        with pytest.raises(ConfigError, match=reason):
            _core.StopStrings(stops, GPT2_BYTES)
    with pytest.raises(TokenIdError, match="50257 is outside"):
        GPT2_BYTES[50257]
    matcher = _core.Grammar.regex("[0-9]", GPT2_BYTES).start()
    with pytest.raises(GenerationError, match=r"token id 50256 is not allowed here"):
        matcher.push(50256)
    assert not matcher.allowed(5)[0].any()


def test_threads_share_a_grammar():
    grammar = _core.Grammar.regex(r'"[^"\n]{1,40}"(, "[a-z]+")*', GPT2_BYTES)
    alone = [random_walk(grammar, 30, seed) for seed in range(4)]
    fresh = _core.Grammar.regex(r'"[^"\n]{1,40}"(, "[a-z]+")*', GPT2_BYTES)
    together: list[list[int]] = [[]] * 4

    def run(seed: int) -> None:
        together[seed] = random_walk(fresh, 30, seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone

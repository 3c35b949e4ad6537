"""`tokenizer.json`, written and read, against the tokenizers library's own reading of it."""

import hashlib
import json
import os

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

import gptrs
from gptrs.errors import TokenizerError
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|end|>", "<pad>")
# Quotes and escapes of JSON, marks, joiners, the letters that stand for bytes, the last code point.
CORPUS = (
    "The quick brown 'fox' isn't\tlazy;\r\n\n  the \"other\" one \\ is. 42 é e\u0301 ñ 中文 🤖 "
    "\u200d👩\u200d👧 \x00\x1f\x7f \u2028\u3000\ufeff ĠĊ ▁ ## </w> \U0010ffff " * 3
)
KINDS = pytest.mark.parametrize("saved", ["gpt2", "bpe", "char"], indirect=True)
TRAINED = pytest.mark.parametrize("saved", ["bpe", "char"], indirect=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The file of GPT-2's tokenizer, and of a trained one of each kind."""
    directory = tmp_path_factory.mktemp("tokenizers")
    corpus = directory / "corpus.txt"
    corpus.write_text(CORPUS, "utf-8", newline="")
    files = {"gpt2": get_tokenizer("gpt2").save(directory / "gpt2.json")}
    for kind in ("bpe", "char"):
        trained = gptrs.train_tokenizer([corpus], 300, special_tokens=SPECIAL, kind=kind)
        files[kind] = directory / f"{kind}.json"
        trained.save(files[kind])
    return files


@pytest.fixture
def saved(files, request):
    return files[request.param]


def assert_same_tokenizer(theirs, ours, text):
    ids = ours.encode(text, allowed_special="all")
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids, skip_special_tokens=False) == text == ours.decode(ids)


def texts(alphabet):
    """Texts with special tokens in them."""
    parts = st.lists(st.sampled_from(SPECIAL) | st.text(alphabet, max_size=20), max_size=8)
    return parts.map("".join)


@pytest.fixture(scope="module")
def ours(files):
    return {kind: Tokenizer.load(file) for kind, file in files.items()}


@pytest.fixture(scope="module")
def theirs(files):
    """Hugging Face's reading of the files."""
    return {kind: tokenizers.Tokenizer.from_file(str(file)) for kind, file in files.items()}


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
@given(text=texts(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_the_same_ids_in_hugging_faces_library(ours, theirs, kind, text):
    assert_same_tokenizer(theirs[kind], ours[kind], text)


@KINDS
def test_the_vocabulary_is_the_same_in_hugging_faces_library(saved):
    theirs, ours = tokenizers.Tokenizer.from_file(str(saved)), Tokenizer.load(saved)
    assert theirs.get_vocab_size() == ours.n_vocab
    assert theirs.token_to_id("<|endoftext|>") == ours.eot_token


@given(text=texts(st.sampled_from(sorted(set(CORPUS)))))
def test_every_character_has_its_own_id_in_hugging_faces_library_too(ours, theirs, text):
    assert_same_tokenizer(theirs["char"], ours["char"], text)
    if not any(token in text for token in SPECIAL):
        assert len(ours["char"].encode(text)) == len(text)


def test_an_unknown_character_is_an_error_in_both(ours, theirs):
    with pytest.raises(Exception, match="UNK"):
        theirs["char"].encode("fΩx")
    with pytest.raises(TokenizerError, match="Ω"):
        ours["char"].encode("fΩx")


@KINDS
def test_what_hugging_faces_libraries_save_is_read(saved, tmp_path):
    again = tmp_path / "again.json"
    tokenizers.Tokenizer.from_file(str(saved)).save(str(again))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(saved))
    fast.save_pretrained(tmp_path)
    for file in (again, tmp_path / "tokenizer.json"):
        assert_same_tokenizer(
            tokenizers.Tokenizer.from_file(str(saved)), Tokenizer.load(file), CORPUS + SPECIAL[0]
        )


@KINDS
def test_what_is_loaded_is_saved_byte_for_byte(saved, tmp_path):
    Tokenizer.load(saved).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == saved.read_bytes()


@KINDS
def test_a_byte_order_mark_is_no_part_of_the_file(saved, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + saved.read_bytes())
    assert Tokenizer.load(tmp_path) == Tokenizer.load(saved)


@KINDS
def test_a_tokenizer_is_found_by_its_file_and_by_its_directory(saved, tmp_path):
    tokenizer = Tokenizer.load(saved)
    assert tokenizer.save(tmp_path) == tmp_path / "tokenizer.json"
    for spec in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        assert get_tokenizer(spec) == tokenizer


def test_the_file_of_gpt2_is_gpt2(files):
    assert Tokenizer.load(files["gpt2"]) is get_tokenizer("gpt2")


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_merges_in_the_older_form_are_read(files, tmp_path, kind):
    older = json.loads(files[kind].read_text("utf-8"))
    older["model"]["merges"] = [" ".join(merge) for merge in older["model"]["merges"]]
    file = tmp_path / "older.json"
    file.write_text(json.dumps(older), "utf-8")
    assert Tokenizer.load(file) == Tokenizer.load(files[kind])


def test_saving_replaces_a_file_whole_or_leaves_it(files, tmp_path, monkeypatch):
    file = tmp_path / "my.json"
    file.write_text("before")
    tokenizer = Tokenizer.load(files["bpe"])

    def full_disk(_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            tokenizer.save(file)
    assert file.read_text() == "before"
    assert tokenizer.save(file) == file
    assert file.read_bytes() == files["bpe"].read_bytes()
    assert os.listdir(tmp_path) == ["my.json"]


@TRAINED
def test_the_fingerprint_is_the_documented_hash_of_what_the_file_says(saved):
    model = json.loads(saved.read_bytes())["model"]
    vocab = model["vocab"]
    if model["type"] == "BPE":
        lines = ["bpe", *(f"{vocab[left]} {vocab[right]}" for left, right in model["merges"])]
    else:
        lines = ["char", *(str(ord(char)) for char in vocab if len(char) == 1)]
    text = "".join(f"{line}\n" for line in [*lines, "", *SPECIAL])
    assert model["gptrs_fingerprint"] == hashlib.sha256(text.encode()).hexdigest()


def rename(old, new):
    """Gives another name to a token wherever it stands."""

    def change(description):
        text = json.dumps(description, ensure_ascii=False)
        description.update(json.loads(text.replace(old, new)))

    return change


@TRAINED
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("<pad>", "<dap>"), "altered"),
        (lambda t: t["model"].update(type="WordPiece"), "type is WordPiece"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "normalizer is .*NFC"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer is .*Whitespace"),
        (lambda t: t["added_tokens"].pop(), "<pad>|special token"),
        (lambda t: t["model"]["vocab"].pop("T"), "expected"),
        (lambda t: t.pop("model"), "missing field `model`"),
    ],
)
def test_an_altered_or_foreign_file_is_refused_by_name(saved, tmp_path, change, message):
    description = json.loads(saved.read_bytes())
    change(description)
    assert_refused(description, tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["vocab"].pop("!"), "no token has the id 0"),
        (lambda t: t["model"]["merges"].pop(), "expected 50255"),
        (lambda t: t["added_tokens"].append({"content": "<pad>", "id": 50257}), "<pad>"),
        (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer is .*true"),
        (lambda t: t.update(model=[]), "expected a model, which is a JSON object"),
    ],
)
def test_a_file_that_is_almost_gpt2_is_refused(files, tmp_path, change, message):
    description = json.loads(files["gpt2"].read_bytes())
    change(description)
    assert_refused(description, tmp_path, message)


def assert_refused(description, tmp_path, message):
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(description), "utf-8")
    with pytest.raises(TokenizerError, match=message) as refusal:
        Tokenizer.load(file)
    assert str(refusal.value).startswith(f"{file}: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: .*expected a tokenizer in JSON"):
        get_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read: No such file"):
        get_tokenizer(tmp_path)


@TRAINED
def test_a_truncated_file_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    file = tmp_path / "truncated.json"
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        file.write_bytes(whole[:length])
        with pytest.raises(TokenizerError, match="expected a tokenizer in JSON"):
            Tokenizer.load(file)

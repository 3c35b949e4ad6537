"""`gptrs inspect`, `gptrs verify` and `gptrs convert`, as a terminal sees them."""

import re

import numpy as np
import pytest

import gptrs
from gptrs import plots
from gptrs.errors import MissingExtraError

TEXTS = ["the cat sat on the mat", "the dog", "", "one two three four five six seven eight nine"]


@pytest.fixture
def train(tmp_path):
    """A nanoGPT file of some texts."""
    tokenizer = gptrs.get_tokenizer()
    ids = [token for text in TEXTS for token in [*tokenizer.encode(text), tokenizer.eot_token]]
    np.array(ids, np.uint16).tofile(tmp_path / "train.bin")
    return tmp_path / "train.bin"


@pytest.mark.parametrize("command", ["inspect", "verify", "convert"])
def test_every_command_explains_itself(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: gptrs {command}")


def test_inspect_counts_what_is_there(run, train):
    out = run("inspect", train, "--length", 6, "--window", 0, "--top", 2)[1]
    tokenizer = gptrs.get_tokenizer()
    ids = np.fromfile(train, np.uint16)
    assert f"  tokens      {len(ids)}\n  documents   4\n" in out
    num_bytes = sum(map(len, TEXTS))
    assert f"  text        {num_bytes} bytes, {num_bytes / len(ids):.2f} bytes a token\n" in out
    lengths = [len(tokenizer.encode(text)) + 1 for text in TEXTS]
    assert f"document lengths in tokens: {min(lengths)} to {max(lengths)}, half of them" in out
    assert f"{100 * 4 / len(ids):6.2f} %               4   50256  '<|endoftext|>'\n" in out
    assert out.endswith("\nwindow 0, tokens 0 to 5\nthe cat sat on the mat\n")


@pytest.mark.parametrize("lengths", [[105] * 4, [6], [3, 9, 30, 50], [200, 210, 1000], [17] * 9])
def test_half_of_the_documents_have_at_most_as_many_tokens_as_inspect_says(run, tmp_path, lengths):
    eot = gptrs.get_tokenizer().eot_token
    ids = [token for length in lengths for token in [1] * (length - 1) + [eot]]
    np.array(ids, np.uint16).tofile(tmp_path / "train.bin")
    out = run("inspect", tmp_path / "train.bin", "--windows", 0)[1]
    numbers = re.search(r"tokens: ([\d,]+) to ([\d,]+), half of them up to about ([\d,]+)\n", out)
    shortest, longest, median = (int(number.replace(",", "")) for number in numbers.groups())
    assert (shortest, longest) == (min(lengths), max(lengths))
    # At most an eighth more than half of them really have.
    exact = int(np.quantile(lengths, 0.5, method="inverted_cdf"))
    assert exact <= median <= min(longest, exact * 9 / 8)


def test_inspect_shows_the_same_windows_for_the_same_seed(run, train):
    def windows(*options):
        return run("inspect", train, "--length", 1, "--windows", 5, "--top", 0, *options)[1]

    assert windows("--seed", 1) == windows("--seed", 1) != windows("--seed", 2)
    assert windows().count("\nwindow ") == 5


def test_a_sample_looks_at_about_so_many_tokens(run, tmp_path):
    np.tile(np.array([1, 2, 3, 50256], np.uint16), 100_000).tofile(tmp_path / "many.bin")
    out = run("inspect", tmp_path / "many.bin", "--sample", 1000, "--windows", 0, "--top", 1)[1]
    assert "  documents   ?\n" in out
    assert "document lengths" not in out
    (line,) = [line for line in out.splitlines() if "%" in line]
    assert 900 <= int(line.split()[2].replace(",", "")) * 4 <= 1200


def test_an_empty_store_has_no_documents_rather_than_an_unknown_number(run, tmp_path):
    gptrs.build_store([[""]], tmp_path / "store")
    code, out, _ = run("inspect", tmp_path / "store")
    assert code == 0
    assert "  tokens      0\n  documents   0\n" in out


def test_inspect_draws_a_picture(run, train, tmp_path):
    code, out, _ = run("inspect", train, "--plot", tmp_path / "store.png")
    assert (code, f"drawn: {tmp_path / 'store.png'}" in out) == (0, True)
    assert (tmp_path / "store.png").read_bytes().startswith(b"\x89PNG")
    sampled = run("inspect", train, "--sample", 3, "--plot", tmp_path / "sampled.svg")
    assert sampled[0] == 0
    assert b"not counted" in (tmp_path / "sampled.svg").read_bytes()


def test_without_matplotlib_a_picture_is_refused_with_the_pip_line(run, train, monkeypatch):
    def missing(*args, **kwargs):
        raise MissingExtraError('pictures need matplotlib: pip install "gptrs[plots]"')

    monkeypatch.setattr(plots, "save_store_figure", missing)
    code, _, err = run("inspect", train, "--plot", "x.png")
    assert (code, 'pip install "gptrs[plots]"' in err) == (1, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", "x.txt: a picture's name ends in .png, .svg, .pdf"),
        ("no/x.png", "there is no folder"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_tokens_are_counted(
    run, train, tmp_path, name, message
):
    code, out, err = run("inspect", train, "--plot", tmp_path / name)
    assert (code, out) == (2, "")
    assert message in err
    assert "counting" not in err
    assert err.count("\n") == 1


def test_an_empty_store_can_be_looked_at(run, tmp_path):
    (tmp_path / "empty.bin").write_bytes(b"")
    for arguments in (["inspect", "--plot", tmp_path / "empty.png"], ["verify"]):
        code, _, err = run(*arguments, tmp_path / "empty.bin")
        assert (code, err) == (0, "")


def test_convert_and_verify_say_what_they_did(run, train, tmp_path):
    store = tmp_path / "store"
    code, out, _ = run("convert", train, store, "--to", "gptrs", "--shard-tokens", 9)
    num_tokens = len(np.fromfile(train, np.uint16))
    assert (code, out.splitlines()[0]) == (0, f"{num_tokens} tokens are in {store}")
    assert run("verify", store)[:2] == (
        0, f"{store} is whole: {num_tokens} tokens, ids below 50,257, checksums\n",
    )  # fmt: skip
    assert run("convert", store, tmp_path / "back.bin", "--to", "nanogpt")[0] == 0
    assert (tmp_path / "back.bin").read_bytes() == train.read_bytes()
    assert "  shards      3\n" in run("inspect", store)[1]


def test_damage_is_a_failure_on_the_way_and_named(run, train, tmp_path):
    run("convert", train, tmp_path / "store", "--to", "gptrs")
    shard = tmp_path / "store" / "tokens-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-4] ^= 1
    shard.write_bytes(content)
    code, _, err = run("verify", tmp_path / "store")
    assert code == 1
    assert f"gptrs: {shard}: is damaged: the XXH3 checksum of its content is" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere: cannot be read: there is no such file or folder"),
        (["verify", "nowhere.bin"], "nowhere.bin: cannot be read: there is no such file or folder"),
        (["inspect", "TRAIN", "--window", "99"], "window 99 was asked for, and there are 1"),
        (["convert", "TRAIN", "out"], "Missing option '--to'"),
        (["convert", "TRAIN", "out", "--to", "fish"], "'fish' is not one of 'gptrs', 'nanogpt'"),
        (["convert", "TRAIN", "out", "--to", "llmc"], "out: the file's name has to end in .bin"),
        (["inspect", "TRAIN", "--tokenizer", "elvish"], "no tokenizer is named 'elvish'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(run, train, arguments, message):
    code, out, err = run(*[train if argument == "TRAIN" else argument for argument in arguments])
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1

"""The examples run from a terminal and print what the book prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gptrs

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    """What examples/`name` prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def embeddings():
    return run("embeddings_by_hand.py")


@pytest.fixture(scope="module")
def shortcuts():
    return run("shortcut_gradients.py")


@pytest.fixture(scope="module")
def positions():
    """Position kind to (difference, verdict) with one block and with two."""
    cell = r" +(\d\S+)  (different|the same)"
    rows = re.findall(rf"^(\w+){cell}{cell}$", run("why_positions.py"), re.MULTILINE)
    return {
        kind: ((float(one), says), (float(two), says_2)) for kind, one, says, two, says_2 in rows
    }


@pytest.mark.parametrize(
    "line",
    [
        "id 3 is the fourth row: [-0.4015, 0.9666, -1.1481]",
        "ids [5, 1, 3, 2] look up four rows:\n[-2.8400, -0.7849, -1.4096]\n",
        "one-hot @ weight == lookup: True",
        "[0.5000, -0.2000, 0.1000] + [0.1000, 0.3000, -0.1000] = [0.6000, 0.1000, 0.0000]",
        "first window [40, 367, 2885, 1464] -> [367, 2885, 1464, 1807]",
        "token embeddings    (8, 4, 256)",
        "position embeddings   (4, 256)",
        "their sum           (8, 4, 256)",
        "position 0 adds the same vector in all 8 rows: True",
        "id 40 at positions 0 and 1 gives the same input: False",
        "they are the same: True",
        "ids counted from 0",
    ],
)
def test_embeddings_by_hand_prints_the_books_values(embeddings, line):
    assert line in embeddings


def test_one_training_step_moves_the_rows_of_the_batch_and_no_other(embeddings):
    rows = re.findall(r"row (\d+), (.*):\n  before (.*)\n  after  (.*)\n", embeddings)
    (_, name, before, after), (_, other_name, other_before, other_after) = rows
    assert (name, other_name) == ("in the batch", "not in it")
    assert before != after
    assert other_before == other_after
    distinct = int(re.search(r"different ids in the batch: (\d+)", embeddings)[1])
    moved = int(re.search(r"rows that moved: (\d+) of 50,257", embeddings)[1])
    assert 0 < distinct == moved <= 32


def test_shortcuts_are_shown_to_bring_the_first_layer_more_gradient(shortcuts):
    for layer in ("first layer", "token embedding"):
        found = re.search(
            rf"^{layer}: (\S+) with shortcuts, (\S+) without", shortcuts, re.MULTILINE
        )
        assert float(found[1]) > 2 * float(found[2]) > 0


def test_shortcuts_are_shown_block_by_block(shortcuts):
    rows = [line.split() for line in shortcuts.splitlines() if re.match(r" +\d+ ", line)]
    assert [int(row[0]) for row in rows] == list(range(12))
    assert all(float(row[1]) > float(row[2]) for row in rows)
    assert float(rows[-1][3]) < 0.5 < 0.99 < float(rows[-1][4])


def test_without_positions_one_block_is_shown_not_to_tell_the_cat_from_the_mat(positions):
    (one, verdict), (two, verdict_of_two) = positions.pop("none")
    assert one < 1e-5 < 1e-3 < two
    assert (verdict, verdict_of_two) == ("the same", "different")
    assert len(positions) == 8
    for kind, columns in positions.items():
        for difference, verdict in columns:
            assert difference > 1e-4, kind
            assert verdict == "different"


def test_widths_are_measured_and_a_wider_model_is_shown_to_learn_more():
    printed = run("width.py", "--widths", "4", "64", "--steps", "15")
    rows = [line.replace(",", "").split() for line in printed.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["4", "64"]
    # The book's block has 12 emb_dim^2 + 10 emb_dim parameters, 7,085,568 at 768.
    assert [int(row[2]) for row in rows] == [4 * (12 * dim**2 + 10 * dim) for dim in (4, 64)]
    (narrow, narrow_bits), (wide, wide_bits) = (map(float, row[3:]) for row in rows)
    assert wide < narrow < 8
    assert wide_bits < narrow_bits < 5


def test_a_trained_retriever_is_shown_to_find_what_a_models_own_vectors_do_not(tmp_path):
    torch.manual_seed(0)
    model = gptrs.GPTModel(
        gptrs.GPTConfig(emb_dim=16, n_heads=2, n_layers=1, context_length=128, init="gpt2")
    )
    gptrs.save_checkpoint(model, tmp_path / "model", tokenizer=gptrs.get_tokenizer("gpt2"))
    settings = ("--passages", "200", "--questions", "40", "--steps", "3")
    printed = run("which_layer.py", str(tmp_path / "model"), *settings)
    assert printed.startswith("200 passages, 40 questions\n")
    row = re.compile(r"^([a-z_ ]+?) +(-?\d)? +(\S+)% +(\S+)%$", re.MULTILINE)
    rows = {(name, layer): float(first) for name, layer, first, _ in row.findall(printed)}
    assert len(rows) == 8
    assert rows["that retriever", ""] > rows["last", "-1"]

"""`gptrs finetune-classifier` and `gptrs classify`, from a table to a label."""

import json
import random

import pytest
import torch

import gptrs
from gptrs.classifier.classifier import Classifier
from gptrs.classifier.labelled_texts import read_table
from gptrs.errors import ConfigError, DataError, SourceError

SHAPE = {
    "vocab_size": 50257,
    "context_length": 16,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
FAST = ("--device", "cpu", "--dtype", "float32", "--epochs", 2)


@pytest.fixture(scope="module")
def gpt_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt")
    torch.manual_seed(0)
    gptrs.GPTModel(SHAPE).save_pretrained(folder, tokenizer=gptrs.get_tokenizer("gpt2"))
    return folder


@pytest.fixture
def table(tmp_path):
    draw = random.Random(0)
    lines = ["kind,number,message"]
    for number in range(60):
        kind, words = (("spam", "free prize win"), ("ham", "see you soon"))[number % 3 == 0]
        text = " ".join(draw.choices(words.split(), k=6))
        lines.append(f'{kind},{number},"{text}, ""quoted""\nand a second line"')
    file = tmp_path / "data.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_table_becomes_a_classifier_with_its_metrics_and_picture(run, table, gpt_dir, tmp_path):
    out = tmp_path / "spam"
    code, printed, _ = run(
        "finetune-classifier", table, "--text", "message", "--label", "kind", "--model", gpt_dir,
        "--out", out, "--pooling", "mean", "--balanced", *FAST,
    )  # fmt: skip
    assert code == 0
    assert "      20  ham\n      40  spam\n" in printed
    assert "validation loss" in printed
    assert "texts were cut" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["classes"] == {"ham": 20, "spam": 40}
    assert (metrics["num_learned_from"], metrics["num_held_out"]) == (54, 6)
    assert len(metrics["epochs"]) == 2
    assert sum(map(sum, metrics["confusion"])) == 6
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    classifier = Classifier.load(out, device="cpu")
    texts = ["free prize win win", "see you soon"]
    code, printed, _ = run("classify", out, *texts, "--device", "cpu")
    labels, shares, found = zip(*(line.split("\t") for line in printed.splitlines()), strict=True)
    assert code == 0
    assert [*labels] == classifier.predict(texts).tolist()
    assert [*shares] == [f"{share:.3f}" for share in classifier.predict_proba(texts).max(1)]
    assert [*found] == texts


def test_without_matplotlib_all_but_the_picture_is_written(
    run, table, gpt_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    arguments = (
        "--text",
        "message",
        "--label",
        "kind",
        "--model",
        gpt_dir,
        "--out",
        tmp_path / "o",
    )
    code, printed, _ = run("finetune-classifier", table, *arguments, *FAST)
    assert code == 0
    assert 'no confusion.png: pictures need matplotlib: pip install "gptrs[plots]"' in printed
    assert "the classifier and metrics.json are in" in printed
    assert (tmp_path / "o" / "metrics.json").is_file()


def test_a_folder_of_another_models_classifier_is_refused_before_the_training(
    run, table, gpt_dir, tmp_path, monkeypatch
):
    other = gptrs.train_tokenizer(table, kind="char")
    other.save(tmp_path)
    monkeypatch.setattr(Classifier, "fit", None)  # What is called all the same fails.
    code, _, error = run(
        "finetune-classifier", table, "--text", "message", "--label", "kind", "--model", gpt_dir,
        "--out", tmp_path, *FAST,
    )  # fmt: skip
    assert code == 2
    assert "tokenizer.json has another tokenizer" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"--text": "txt"},
            "no column 'txt'; its columns are 'kind', 'number', 'message'",
        ),
        ({"--label": "class"}, "there is no column 'class'"),
        ({"--label": "message", "--delimiter": "|"}, "its columns are 'kind,number,message'"),
        ({"--delimiter": "||"}, "a delimiter is one character, found '||'"),
        ({"--model": "nowhere"}, "nowhere: no such file or folder"),
        ({"--epochs": 0}, "epochs is at least 1, found 0"),
        ({"--max-length": 17}, "max_length is 17, and the model takes 16 tokens at most"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    run, table, gpt_dir, tmp_path, options, message
):
    out = tmp_path / "out"
    given = {"--text": "message", "--label": "kind", "--model": gpt_dir, "--out": out} | options
    code, _, error = run(
        "finetune-classifier", table, *FAST, *(x for o in given.items() for x in o)
    )
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_one_class_only_is_refused(run, gpt_dir, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\n")
    arguments = ("--text", "text", "--label", "label", "--model", gpt_dir, "--out", tmp_path / "o")
    code, _, error = run("finetune-classifier", tmp_path / "one.csv", *arguments)
    assert code == 2
    assert "two classes at least, found ['x']" in error


def test_a_folder_without_a_classifier_is_refused(run, tmp_path):
    code, _, error = run("classify", tmp_path, "text")
    assert code == 2
    assert f"{tmp_path}: no classifier here: there is no classifier.json" in error


# --- tables ---


@pytest.mark.parametrize(
    ("name", "content", "delimiter"),
    [
        ("a.csv", 'label,text\nx,"one, two"\n\ny,"three\nfour"\n', None),
        ("a.tsv", "label\ttext\nx\tone, two\ny\t\"three\nfour\"\n", None),
        ("a.txt", 'text;label\r\n"one, two";x\r\n"three\nfour";y\r\n', ";"),
        ("a.csv", '\ufeffother,text,label\n1,"one, two",x\n2,"three\nfour",y', None),
    ],
)  # fmt: skip
def test_tables_are_read_by_the_names_of_their_columns(tmp_path, name, content, delimiter):
    (tmp_path / name).write_bytes(content.encode())
    found = read_table(tmp_path / name, "text", "label", delimiter)
    assert found.texts == ["one, two", "three\nfour"]
    assert found.labels == ["x", "y"]


def test_a_text_may_be_longer_than_the_csv_modules_limit(tmp_path):
    (tmp_path / "a.csv").write_text(f"text,label\n{'x ' * 100_000},y\n")
    assert len(read_table(tmp_path / "a.csv", "text", "label").texts[0]) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is no column 'text'; its columns are none"),
        ("text,label\n", "has no line besides the names of its columns"),
        ("text,label,text\na,b,c\n", "there are 2 columns 'text'"),
        ("text,label\na,b\n,c\n", "line 3 has no text"),
        ('text,label\n"a\nb",c\nd\n', "line 4 has no label"),
        ('text,label\n"a,b\n', "line 2: unexpected end of data"),
        ('text,label\n"a"b,c\n', "line 2: ',' expected after '\"'"),
    ],
)
def test_a_damaged_table_is_refused_with_the_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=rf"a\.csv: .*{message}"):
        read_table(tmp_path / "a.csv", "text", "label")


def test_a_file_that_is_missing_or_not_utf8_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read_table(tmp_path / "a.csv", "text", "label")
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff,b\n")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_table(tmp_path / "a.csv", "text", "label")
    (tmp_path / "a.csv").write_bytes(b"text,label\n")
    with pytest.raises(ConfigError, match="one character"):
        read_table(tmp_path / "a.csv", "text", "label", "")

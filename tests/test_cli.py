"""The command `gptrs`, as a terminal sees it."""

import io
import os
import subprocess
import sys

import click
import pytest
import tiktoken
import torch

import gptrs
from gptrs import cli
from gptrs.commands.groups import TopicGroup
from gptrs.commands.plot import plot
from gptrs.config import GPTConfig
from gptrs.errors import MissingExtraError
from gptrs.model.gpt import GPTModel
from gptrs.training.reports import reports as run_reports
from gptrs.weights.checkpoint import load_metadata

TINY_RUN = [
    "--steps", "2", "--context-length", "8", "--emb-dim", "8", "--n-heads", "2", "--n-layers", "1",
    "--device", "cpu", "--dtype", "float32",
]  # fmt: skip


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `gptrs` with these arguments: exit code, stdout, stderr."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(context_length=8, emb_dim=8, n_heads=2, n_layers=1))
    gptrs.save_checkpoint(model, tmp_path / "model", tokenizer=gptrs.get_tokenizer("gpt2"))
    return tmp_path / "model"


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, **options)


@pytest.mark.parametrize(
    "command", ["demo", "train", "generate", "train-tokenizer", "tokenize", "params", "explain"]
)
def test_every_command_explains_itself(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: gptrs {command}")
    assert command in run("--help")[1]


def test_the_version_is_the_packages(run):
    assert run("--version")[:2] == (0, f"gptrs {gptrs.__version__}\n")


def test_python_dash_m_is_the_same_command():
    result = python("-m", "gptrs", "tokenize", "--text", "Hello")
    assert (result.returncode, result.stdout) == (0, b"15496\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["tokenize", "--cuont"], "No such option '--cuont'"),
        (["train"], "Missing argument 'DATA...'. (see gptrs train --help)"),
        (["train", "here", "--steps", "many"], "'many' is not a valid integer"),
        (["train", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["train", __file__, "--emb-dim", "10", "--n-heads", "4"], "emb_dim 10 is not a multiple"),
        (["train", __file__, "--pos", "absolute"], "'absolute' is not one of 'learned', "),
        (["train", __file__, "--rel-max-distance", "9"], 'pos="learned" has no such limit'),
        (["train", __file__, "--pos", "t5", "--rel-max-distance", "9"], 'pos="t5" has a bucket'),
        (["demo", "--steps", "0"], "steps is 0; it must be a whole number from 1 up"),
        (["demo", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda', 'mps'"),
        (["generate", "--model", "nowhere", "--prompt", "x"], "nowhere: no such file or folder"),
        (["tokenize", "nowhere.txt"], "nowhere.txt: no such file"),
        (["tokenize", "a.txt", "--text", "b"], "--text and files exclude each other"),
        (["tokenize", "--text", "x", "--tokenizer", "gpt9"], "no tokenizer is named 'gpt9'"),
        (["train-tokenizer"], "Missing argument 'DATA...'"),
        (["train-tokenizer", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["train-tokenizer", __file__], 'kind "bpe" needs a vocab_size'),
        (["train-tokenizer", __file__, "--vocab-size", "256"], "vocab_size"),
        (["train-tokenizer", __file__, "--vocab-size", "9", "--kind", "char"], "room for 8"),
        (["train-tokenizer", __file__, "--kind", "char", "--output", "no/t"], "no folder no"),
        (["train-tokenizer", __file__, "--kind", "char", "--special-token", ""], "empty"),
        (["params", "gpt9"], "unknown preset 'gpt9'"),
    ],
)
def test_bad_usage_is_one_line_on_stderr_and_exit_code_2(
    run, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert err.startswith("gptrs: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", [[], ["plot"]])
def test_a_group_without_a_command_shows_its_help_as_it_is(run, group):
    help_text = run(*group, "--help")[1]
    assert run(*group) == (cli.EXIT_USAGE, "", help_text)


@pytest.mark.parametrize("group", [cli.gptrs, plot])
def test_the_help_of_a_group_has_every_command_once_with_its_whole_sentence(run, group):
    names = [] if group is cli.gptrs else [group.name]
    told = " ".join(run(*names, "--help")[1].split())
    for name, command in group.commands.items():
        sentence = " ".join(command.help.split("\n\n")[0].split())
        assert told.count(f" {name} {sentence.removesuffix('.')}") == 1, name
    assert "..." not in told.removeprefix(
        f"Usage: {' '.join(['gptrs', *names])} [OPTIONS] COMMAND [ARGS]..."
    )


def test_a_command_that_no_topic_has_is_listed_all_the_same():
    group = TopicGroup("group", commands=[click.Command("late", help="Comes last.")])
    group.add_topic("First", click.Command("early", help="Comes first."))
    told = group.get_help(click.Context(group)).split("\n\n")[-2:]
    assert told == ["First:\n  early  Comes first.", "Commands:\n  late   Comes last."]


def test_a_failure_on_the_way_is_one_line_and_exit_code_1(run, tmp_path):
    (tmp_path / "text.txt").write_text("one two three four " * 60)
    (tmp_path / "runs").write_text("a file where the folder should be")
    code, _, err = run("train", tmp_path / "text.txt", *TINY_RUN, "--runs", tmp_path / "runs" / "x")
    assert code == cli.EXIT_FAILURE
    assert err.count("\n") == 1
    assert err.startswith("gptrs: ")


def test_ctrl_c_is_exit_code_130(run, checkpoint, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("gptrs.generation.generator.Generator.stream", interrupted)
    code, _, err = run("generate", "--model", checkpoint, "--prompt", "x")
    assert (code, err) == (130, "gptrs: stopped\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["--version"],
        ["params", "gpt2-124m"],
        ["tokenize", "--text", "Hello"],
        ["tokenize", __file__, "--count"],
        ["train-tokenizer", __file__, "--vocab-size", "300"],
        ["train-tokenizer", __file__, "--kind", "char"],
    ],
)
def test_what_needs_no_tensors_does_not_import_torch(tmp_path, arguments):
    program = (
        "import sys; from gptrs.cli import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    result = python("-c", program, *arguments, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_a_closed_stream_is_the_null_device(closed):
    # What is opened next gets no number of a standard stream, so that nothing is printed into it.
    program = (
        "import os, sys; from gptrs.cli import main; code = main(['tokenize']); "
        "sys.exit(code if os.open(sys.executable, os.O_RDONLY) > 2 else 9)"
    )
    closing = " ".join(f"{number}>&-" for number in closed)
    shell = f'"$0" -X dev -c "$1" {closing}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, program], input=b"Hello", capture_output=True
    )
    expected = b"" if 1 in closed else b"\n" if 0 in closed else b"15496\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the stream")
def test_generate_has_no_prompt_where_standard_input_is_closed(checkpoint):
    shell = '"$0" -m gptrs generate --model "$1" <&-'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, checkpoint], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"gptrs: standard input is empty")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_enough_is_no_error(tmp_path):
    (tmp_path / "long.txt").write_text("word " * 200_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "gptrs", "tokenize", tmp_path / "long.txt", "--pieces"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"4775\tb'word'\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_tokenize_prints_ids_a_line_a_file(run, tmp_path):
    (tmp_path / "a").write_text("Hello, world")
    (tmp_path / "b").write_text("")
    code, out, _ = run("tokenize", tmp_path / "a", tmp_path / "b")
    assert (code, out) == (0, "15496 11 995\n\n")


def test_tokenize_reads_standard_input_where_no_file_is_named(run):
    assert run("tokenize", stdin=b"Hello")[1] == "15496\n"
    assert run("tokenize", "-", stdin=b"Hello")[1] == "15496\n"
    code, _, err = run("tokenize", stdin=b"ab\xff")
    assert code == 2
    assert "standard input: not UTF-8: byte 0xff at offset 2" in err


def test_tokenize_counts_and_shows_pieces(run):
    assert run("tokenize", "--text", "Hello, world", "--count")[1] == "3\n"
    assert (
        run("tokenize", "--text", "héé", "--pieces")[1]
        == "71\tb'h'\n2634\tb'\\xc3\\xa9'\n2634\tb'\\xc3\\xa9'\n"
    )


def test_tokenize_takes_end_of_text_for_special_only_if_asked(run):
    assert "50256" not in run("tokenize", "--text", "<|endoftext|>")[1]
    assert run("tokenize", "--text", "<|endoftext|>", "--allow-special")[1] == "50256\n"


def test_tokenize_replaces_what_is_not_utf8_if_asked(run, tmp_path):
    (tmp_path / "a").write_bytes(b"ab\xff")
    expected = " ".join(map(str, gptrs.get_tokenizer("gpt2").encode("ab\ufffd")))
    assert run("tokenize", tmp_path / "a", "--errors", "replace")[1] == f"{expected}\n"
    assert run("tokenize", "--errors", "replace", stdin=b"ab\xff")[1] == f"{expected}\n"
    code, _, err = run("tokenize", tmp_path / "a")
    assert code == 2
    assert "a: not UTF-8: byte 0xff at offset 2" in err


def test_tokenize_takes_files_of_many_parts(run, tmp_path):
    text = ("word " + "-" * 640) * 14_000
    (tmp_path / "large.txt").write_text(text)
    ids = gptrs.get_tokenizer("gpt2").encode(text)
    assert run("tokenize", tmp_path / "large.txt")[1] == " ".join(map(str, ids)) + "\n"
    assert run("tokenize", tmp_path / "large.txt", "--count")[1] == f"{len(ids)}\n"


def test_tokenize_takes_tiktokens_own_encoding(run, tmp_path, monkeypatch):
    encoding = gptrs.get_tokenizer("gpt2").as_tiktoken()
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: encoding)
    (tmp_path / "a").write_text("Hello, world")
    for source in (["--text", "Hello, world"], [tmp_path / "a"]):
        code, out, _ = run("tokenize", *source, "--tokenizer", "tiktoken:gpt2")
        assert (code, out) == (0, "15496 11 995\n")


def test_params_shows_the_books_124m_model_part_by_part(run):
    out = run("params", "book-124m")[1]
    for count in ("163,009,536", "38,597,376", "786,432", "7,085,568", "85,026,816"):
        assert count in out


def test_generate_streams_the_prompt_and_what_the_library_would_write(run, checkpoint):
    arguments = [
        "--prompt",
        "Hello",
        "--max-new-tokens",
        7,
        "--seed",
        5,
        "--top-k",
        9,
        "--top-p",
        0.9,
    ]
    code, out, err = run("generate", "--model", checkpoint, *arguments, "--device", "cpu")
    model, tokenizer = gptrs.load_checkpoint(checkpoint)
    expected = gptrs.Generator(model, tokenizer)(
        "Hello", 7, temperature=0.8, top_k=9, top_p=0.9, seed=5
    )[0].text
    assert (code, out, err) == (0, f"Hello{expected}\n", "")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--top-k", 0), ("--temperature", -1), ("--top-p", 2), ("--max-new-tokens", -1)],
)
def test_generate_refuses_impossible_settings_before_it_writes(run, checkpoint, option, value):
    code, out, err = run("generate", "--model", checkpoint, "--prompt", "Hello", option, value)
    assert (code, out) == (2, "")
    assert str(value) in err


def test_an_empty_prompt_is_bad_usage(run, checkpoint):
    code, out, err = run("generate", "--model", checkpoint, "--prompt", "")
    assert (code, out) == (2, "")
    assert "--prompt is empty" in err


def test_a_trained_model_generates(run, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one two three four " * 40)
    (folder / "b.md").write_text("five six seven eight " * 40)
    code, out, _ = run("train", folder, *TINY_RUN, "--runs", tmp_path / "runs")
    assert code == 0
    assert "this model" in out
    for name in ("metrics.jsonl", "loss.png", "checkpoint/config.json"):
        assert (tmp_path / "runs" / "train-001" / name).is_file()
    run_checkpoint = tmp_path / "runs" / "train-001" / "checkpoint"
    for model in (run_checkpoint, run_checkpoint.parent):
        assert run("generate", "--model", model, "--prompt", "one")[0] == 0
    assert run("train", folder, *TINY_RUN, "--runs", tmp_path / "runs")[0] == 0
    assert (tmp_path / "runs" / "train-002").is_dir()


@pytest.mark.parametrize(
    ("options", "pos", "rel_max_distance"),
    [
        ([], "learned", None),
        (["--pos", "rope"], "rope", None),
        (["--pos", "relative_key", "--rel-max-distance", "5"], "relative_key", 5),
    ],
)
def test_a_run_has_the_positions_that_were_asked_for(run, tmp_path, options, pos, rel_max_distance):
    (tmp_path / "a.txt").write_text("one two three four " * 40)
    arguments = ["train", tmp_path / "a.txt", *TINY_RUN, *options, "--runs", tmp_path / "runs"]
    assert run(*arguments)[0] == 0
    cfg = gptrs.load_checkpoint(tmp_path / "runs" / "train-001")[0].cfg
    assert (cfg.pos, cfg.rel_max_distance) == (pos, rel_max_distance)


def test_train_takes_tiktokens_own_encoding_of_gpt2_and_no_other(run, tmp_path, monkeypatch):
    encoding = gptrs.get_tokenizer("gpt2").as_tiktoken()
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: encoding)
    text = tmp_path / "text.txt"
    text.write_text("one two three four " * 40)
    losses = []
    for number, spec in enumerate(["gpt2", "tiktoken:gpt2"], start=1):
        arguments = ["train", text, *TINY_RUN, "--runs", tmp_path / "runs", "--tokenizer", spec]
        assert run(*arguments)[0] == 0
        metadata = load_metadata(tmp_path / "runs" / f"train-00{number}")
        losses.append(metadata["val_loss"])
    assert losses[0] == losses[1]
    other = tiktoken.Encoding(
        "letters", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<|endoftext|>": 1}
    )
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: other)
    code, _, err = run(*arguments)
    assert code == 2
    assert "tiktoken's gpt2, found <Encoding 'letters'>" in err


def test_a_tokenizer_is_learned_used_and_trained_with(run, tmp_path):
    text = " ".join(f"{number} squared is {number**2}" for number in range(200))
    (tmp_path / "text.txt").write_text(text)
    file = tmp_path / "small.json"
    options = ["--vocab-size", 300, "--special-token", "<|end|>", "--special-token", "<pad>"]
    code, out, err = run("train-tokenizer", tmp_path, *options[:2], "--output", file)
    assert (code, err) == (0, "")
    assert f"300 ids are in {file}" in out
    assert gptrs.Tokenizer.load(file) == gptrs.train_tokenizer(tmp_path / "text.txt", 300)
    assert f"gptrs train {tmp_path} --tokenizer {file}" in out
    ends = run("tokenize", "--text", "<|endoftext|>", "--tokenizer", file, "--allow-special")
    assert ends == (0, "299\n", "")
    arguments = ["train", tmp_path, *TINY_RUN, "--tokenizer", file, "--runs", tmp_path / "runs"]
    assert run(*arguments)[0] == 0
    model, tokenizer = gptrs.load_checkpoint(tmp_path / "runs" / "train-001")
    assert model.cfg.vocab_size == tokenizer.n_vocab == 300
    assert run("generate", "--model", tmp_path / "runs" / "train-001", "--prompt", "one")[0] == 0
    # A folder takes the file under its usual name, and special tokens are as asked.
    assert run("train-tokenizer", tmp_path, *options, "--output", tmp_path)[0] == 0
    learned = gptrs.Tokenizer.load(tmp_path / "tokenizer.json")
    assert learned.special_tokens_set == {"<|end|>", "<pad>"}


def test_a_tokenizer_is_never_written_over_the_text_it_is_learned_from(run, tmp_path):
    text = tmp_path / "tokenizer.json"
    text.write_text("hello " * 100)
    (tmp_path / "link").symlink_to(text)
    for data, output in [(text, text), (text, tmp_path), (text, tmp_path / "link")]:
        code, out, err = run("train-tokenizer", data, "--vocab-size", 260, "--output", output)
        assert (code, out) == (2, "")
        assert "cannot be written: it is what is read; name another file" in err
    assert text.read_text() == "hello " * 100


def test_characters_are_learned_without_a_size(run, tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    output = ["--output", tmp_path / "chars.json"]
    assert run("train-tokenizer", tmp_path / "text.txt", "--kind", "char", *output)[0] == 0
    assert run("tokenize", "--text", "hello", "--tokenizer", tmp_path / "chars.json")[1] == (
        "1 0 2 2 3\n"
    )
    (tmp_path / "text.txt").write_text("hallo")
    code, _, err = run("tokenize", tmp_path / "text.txt", "--tokenizer", tmp_path / "chars.json")
    assert code == 2
    assert "text.txt: the character 'a' at byte 1" in err


def test_ctrl_c_while_a_tokenizer_is_learned_leaves_the_file_as_it_was(run, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("hello " * 100)
    (tmp_path / "tokenizer.json").write_text("before")

    def interrupted(*args, on_progress, **kwargs):
        on_progress(3)
        raise KeyboardInterrupt

    monkeypatch.setattr("gptrs.commands.tokens.learn", interrupted)
    options = ["--vocab-size", 300, "--output", tmp_path]
    code, _, err = run("train-tokenizer", tmp_path / "text.txt", *options)
    assert code == 130
    assert err.endswith("gptrs: stopped\n")
    assert (tmp_path / "tokenizer.json").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2


def test_without_matplotlib_the_pip_line_stands_in_for_the_picture(run, tmp_path, monkeypatch):
    def no_matplotlib(*args, **kwargs):
        raise MissingExtraError('pip install "gptrs[plots]"')

    monkeypatch.setattr(run_reports, "loss_figure", no_matplotlib)
    (tmp_path / "a.txt").write_text("one two three four " * 40)
    code, out, _ = run("train", tmp_path / "a.txt", *TINY_RUN, "--runs", tmp_path / "runs")
    assert code == 0
    assert 'pip install "gptrs[plots]"' in out
    assert not list(tmp_path.rglob("loss.png"))


def test_text_too_short_to_train_on_leaves_no_run(run, tmp_path):
    (tmp_path / "a.txt").write_text("one two")
    code, _, err = run("train", tmp_path / "a.txt", *TINY_RUN, "--runs", tmp_path / "runs")
    assert code == 2
    assert "context_length 8 needs 9" in err
    assert list((tmp_path / "runs").iterdir()) == []

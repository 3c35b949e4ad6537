"""`gptrs generate`: to the terminal, from standard input, and from file to file."""

import io
import json
import os
import re

import click
import pytest
import torch

import gptrs
from gptrs import cli
from gptrs.commands import prompt_files
from gptrs.config import GPTConfig
from gptrs.model.gpt import GPTModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(context_length=32, emb_dim=16, n_heads=2, n_layers=1))
    folder = tmp_path_factory.mktemp("model")
    gptrs.save_checkpoint(model, folder, tokenizer=gptrs.get_tokenizer("gpt2"))
    return folder


@pytest.fixture(scope="module")
def generator(checkpoint):
    return gptrs.Generator(*gptrs.load_checkpoint(checkpoint))


@pytest.fixture
def run(capsysbinary, monkeypatch, checkpoint):
    """Runs `gptrs generate` with these arguments: exit code, stdout, stderr."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(["generate", "--model", str(checkpoint), *map(str, arguments)])
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


@pytest.fixture
def prompts(tmp_path):
    """A file of five prompts, some with settings of their own."""
    lines = [
        {"prompt": "Hello", "id": "a"},
        {"prompt": "One two three", "id": "b"},
        {"prompt": "Hello", "temperature": 0.0, "max_new_tokens": 3},
        {"prompt": "Été", "top_k": 3, "seed": 9},
        {"prompt": "Hello", "id": {"any": "thing"}},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    return file


@pytest.fixture
def killed(run, prompts, tmp_path, monkeypatch):
    """Runs until the first two prompts have their texts, then dies; the file of results."""

    def killed(*arguments):
        out = tmp_path / "out.jsonl"
        results_of = prompt_files._results

        def dying(generator, lines, seed):
            if lines[0].index:
                raise KeyboardInterrupt
            return results_of(generator, lines, seed)

        with monkeypatch.context() as patch:
            patch.setattr(prompt_files, "LINES_TOGETHER", 2)
            patch.setattr(prompt_files, "_results", dying)
            assert run("--file", prompts, "--out", out, *arguments)[0] == cli.EXIT_INTERRUPT
        assert len(results(out)) == 2
        return out

    return killed


def of_characters(text, folder):
    file = folder / "text.txt"
    file.write_text(text)
    tokenizer = gptrs.train_tokenizer(file, None, kind="char")
    file.unlink()
    return tokenizer


def results(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_standard_input_is_a_prompt(run, generator):
    expected = generator("Hello", 5, temperature=0.8, seed=3)[0].text
    code, out, err = run("--max-new-tokens", 5, "--seed", 3, stdin=b"Hello\n")
    assert (code, out, err) == (0, f"Hello{expected}\n", "")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([], b"", "standard input is empty"),
        ([], b"ab\xff", "standard input: not UTF-8: byte 0xff at offset 2"),
        (["--prompt", "x", "--file", __file__], b"", "--prompt and --file exclude each other"),
        (["--prompt", "x", "--out", "y"], b"", "--out is for --file"),
        (["--prompt", "x", "--logprobs", "2"], b"", "--logprobs is for --file"),
        (["--file", __file__, "--show-probs"], b"", "--show-probs is for the terminal"),
        (["--prompt", "x", "--logit-bias", "5"], b"", "--logit-bias is ID=VALUE"),
        (["--prompt", "x", "--min-p", "2"], b"", "min_p"),
        (["--prompt", "x", "--typical-p", "0"], b"", "typical_p"),
        (["--prompt", "x", "--repetition-penalty", "0"], b"", "repetition_penalty"),
        (["--prompt", "x", "--regex", "("], b"", "regex"),
        (["--prompt", "x", "--num-samples", "0"], b"", "num_samples"),
        (["--file", "nowhere.jsonl"], b"", "nowhere.jsonl"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(run, arguments, stdin, message):
    code, out, err = run(*arguments, stdin=stdin)
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert message in err
    assert err.count("\n") == 1


def test_every_setting_reaches_the_sampling_loop(run, generator):
    settings = {
        "top_k": 200, "top_p": 0.99, "min_p": 0.001, "typical_p": 0.95, "repetition_penalty": 1.3,
        "frequency_penalty": 0.2, "presence_penalty": 0.3, "no_repeat_ngram_size": 2,
        "min_new_tokens": 3, "seed": 4,
    }  # fmt: skip
    arguments = [part for k, v in settings.items() for part in (f"--{k.replace('_', '-')}", v)]
    _, out, _ = run("--prompt", "Hello", "--max-new-tokens", 8, *arguments, "--logit-bias", "11=30")
    [expected] = generator("Hello", 8, temperature=0.8, **settings, logit_bias={11: 30.0})
    assert out == f"Hello{expected.text}\n"
    assert "," in expected.text


def test_a_banned_word_is_not_written(run, generator):
    settings = ("--prompt", "Hello", "--max-new-tokens", 6, "--temperature", 0)
    [completion] = generator("Hello", 6, temperature=0.0)
    word = generator.tokenizer.decode(completion.token_ids[2:3]).strip()
    assert word in completion.text
    _, out, _ = run(*settings, "--ban", word)
    assert word not in out


def test_log_probabilities_go_into_the_file(run, generator, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    run("--file", prompts, "--out", out, "--seed", 5, "--max-new-tokens", 3, "--logprobs", 2)
    row = results(out)[1]
    [expected] = generator(row["prompt"], 3, temperature=0.8, seed=5, sequences=[1], logprobs=2)
    assert row["token_ids"] == expected.token_ids
    assert row["logprobs"] == pytest.approx([each.chosen for each in expected.logprobs], abs=1e-5)
    assert [[token for token, _ in top] for top in row["top_logprobs"]] == [
        [token for token, _ in each.top] for each in expected.logprobs
    ]


def test_a_constraint_holds(run):
    _, out, _ = run("--prompt", "x", "--choice", "yes", "--choice", "no", "--seed", 1)
    assert out in ("xyes\n", "xno\n")
    _, out, _ = run("--prompt", "x", "--regex", "[0-9]{3}-[a-f]+", "--max-new-tokens", 12)
    assert re.fullmatch("x[0-9]{3}-[a-f]+\n", out)


def test_several_texts_are_numbered(run, generator):
    expected = generator("Hello", 4, temperature=0.8, seed=2, num_samples=2)
    _, out, _ = run("--prompt", "Hello", "--max-new-tokens", 4, "--seed", 2, "--num-samples", 2)
    assert out == "".join(f"--- {n}\nHello{c.text}\n" for n, c in enumerate(expected, start=1))


def test_the_likeliest_of_several_texts_is_kept(run, generator):
    for option, name in (("--best-of", "best_of"), ("--num-beams", "num_beams")):
        arguments = {"temperature": 0.8, "seed": 2, name: 3}
        [expected] = generator("Hello", 4, **arguments)
        _, out, _ = run("--prompt", "Hello", "--max-new-tokens", 4, "--seed", 2, option, 3)
        assert out == f"Hello{expected.text}\n"


def test_colours_say_how_probable_tokens_are(run, generator, monkeypatch):
    [completion] = generator("Hello", 6, temperature=0.0, logprobs=0)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    _, out, err = run(
        "--prompt", "Hello", "--max-new-tokens", 6, "--temperature", 0, "--show-probs"
    )
    assert click.unstyle(out) == f"Hello{completion.text}\n"
    assert out.count("\x1b[38;5;") == 6 + 1
    assert "probability" in err


def test_a_file_gives_what_each_prompt_gives_by_itself(run, generator, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    code, printed, _ = run("--file", prompts, "--out", out, "--seed", 5, "--max-new-tokens", 6)
    assert (code, printed) == (0, "")
    rows = results(out)
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row.get("id") for row in rows] == ["a", "b", None, None, {"any": "thing"}]
    own = [{}, {}, {"temperature": 0.0}, {"top_k": 3, "seed": 9}, {}]
    for index, (row, settings) in enumerate(zip(rows, own, strict=True)):
        arguments = {"temperature": 0.8, "seed": 5, "sequences": [index]} | settings
        [alone] = generator(row["prompt"], 3 if index == 2 else 6, **arguments)
        assert (row["text"], row["seed"]) == (alone.text, arguments["seed"])
        assert row["finish_reason"] == alone.finish_reason
    assert not list(tmp_path.glob("*.settings.json"))


def test_without_out_a_files_texts_are_printed(run, prompts, tmp_path):
    run("--file", prompts, "--out", tmp_path / "out", "--seed", 5, "--max-new-tokens", 6)
    code, printed, _ = run("--file", prompts, "--seed", 5, "--max-new-tokens", 6)
    assert (code, printed) == (0, (tmp_path / "out").read_text())


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("seed", [(), ("--seed", 5)])
def test_a_stopped_file_goes_on_as_if_it_had_not(
    run, prompts, tmp_path, monkeypatch, seed, num_samples
):
    """Killed after every number of bytes that makes a difference."""
    monkeypatch.setattr(prompt_files, "LINES_TOGETHER", 2)
    monkeypatch.setattr(prompt_files, "fresh_seed", lambda: 77)
    out = tmp_path / "out.jsonl"
    settings_file = tmp_path / "out.jsonl.settings.json"
    arguments = ("--file", prompts, "--out", out, "--max-new-tokens", 4, *seed,
                 "--num-samples", num_samples)  # fmt: skip
    with monkeypatch.context() as patch:
        kept = []
        patch.setattr(
            prompt_files.Path,
            "unlink",
            lambda path, missing_ok=False: missing_ok or kept.append(path.read_bytes()),
        )
        assert run(*arguments)[0] == 0
    whole = out.read_bytes()
    settings_file.unlink(missing_ok=True)
    assert len(whole.splitlines()) == 5 * num_samples
    monkeypatch.setattr(prompt_files, "fresh_seed", lambda: 78)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in [0, 1, ends[0] - 1, ends[0], ends[1], ends[1] + 5, ends[-2], len(whole)]:
        out.write_bytes(whole[:size])
        settings_file.write_bytes(kept[0])
        assert run(*arguments)[0] == 0
        assert out.read_bytes() == whole
        assert not settings_file.exists()


def test_results_are_never_mixed_or_overwritten(run, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = ("--file", prompts, "--out", out, "--max-new-tokens", 2)
    assert run(*arguments)[0] == 0
    whole = out.read_bytes()
    code, _, err = run(*arguments)
    assert code == cli.EXIT_USAGE
    assert "is complete already" in err

    begun = {"max_new_tokens": 2, "temperature": 0.5, "overflow": "slide", "num_samples": 1}
    (tmp_path / "out.jsonl.settings.json").write_text(json.dumps(begun | {"seed": 1}))
    code, _, err = run(*arguments)
    assert code == cli.EXIT_USAGE
    assert "was begun with" in err
    assert out.read_bytes() == whole


def test_results_of_other_prompts_are_not_gone_on_with(run, prompts, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    arguments = ("--file", prompts, "--out", out, "--max-new-tokens", 2)
    with monkeypatch.context() as patch:
        patch.setattr(prompt_files.Path, "unlink", lambda path, missing_ok=False: None)
        run(*arguments)
    whole = out.read_bytes()
    prompts.write_text(prompts.read_text().replace("One two", "Two one"))
    code, _, err = run(*arguments)
    assert code == cli.EXIT_USAGE
    assert "line 2 is of 'One two three'" in err
    assert out.read_bytes() == whole


@pytest.mark.parametrize("changed", ["weight", "tokenizer", "n_heads"])
def test_another_model_of_the_same_path_does_not_go_on(run, prompts, killed, tmp_path, changed):
    folder = tmp_path / "model"
    tokenizer = gptrs.get_tokenizer("gpt2")
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(context_length=32, emb_dim=16, n_heads=2, n_layers=1))
    gptrs.save_checkpoint(model, folder, tokenizer=tokenizer)
    arguments = ("--model", folder, "--max-new-tokens", 2)
    out = killed(*arguments)
    begun = out.read_bytes()

    if changed == "weight":  # One number, which few samples would have.
        with torch.no_grad():
            model.trf_blocks[0].ff.layers[0].weight[3, 5] += 1e-3
    elif changed == "tokenizer":
        tokenizer = of_characters("Hello", tmp_path)
        (folder / "tokenizer.json").unlink()
    else:
        other = GPTModel(GPTConfig(context_length=32, emb_dim=16, n_heads=4, n_layers=1))
        other.load_state_dict(model.state_dict())
        model = other
    gptrs.save_checkpoint(model, folder, tokenizer=tokenizer)
    if changed == "tokenizer":
        prompts.write_text('{"prompt": "Hello", "id": "a"}')
    code, _, err = run("--file", prompts, "--out", out, *arguments)
    assert (code, err.count("\n")) == (cli.EXIT_USAGE, 1)
    assert re.search("was begun with model_digest = '[0-9a-f]{16}', and now it is '[0-9a-f]", err)
    assert out.read_bytes() == begun


def test_another_dtype_does_not_go_on(run, prompts, killed):
    out = killed("--device", "cpu")
    code, _, err = run("--file", prompts, "--out", out, "--device", "cpu", "--dtype", "int8")
    assert code == cli.EXIT_USAGE
    assert "was begun with dtype = None, and now it is 'int8'" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"id": "b"', '"id": "c"', "line 2 was asked for with another id or other settings"),
        ('"id": "b"', '"id": "b", "top_k": 5', "line 2 was asked for with another id or other"),
        ('"id": "b"', '"id": "b", "num_samples": 2', None),  # One of two texts is not all.
        ('"id": "a"', '"id": "a", "num_samples": 2', "line 1 was asked for with another id"),
        ('"id": "a"', '"id": "a", "seed": 3', "line 1 was asked for with another id or other"),
        ('"id": "a"', ' "id":  "a" ', None),
        ('"top_k": 3', '"top_k": 4', None),  # This one has no text yet.
    ],
)
def test_a_prompt_that_has_its_text_stays_as_it_was_asked(run, prompts, killed, old, new, message):
    out = killed("--max-new-tokens", 2)
    begun = out.read_bytes()
    prompts.write_text(prompts.read_text().replace(old, new))
    code, _, err = run("--file", prompts, "--out", out, "--max-new-tokens", 2)
    if message is None:
        assert (code, results(out)[-1]["index"]) == (0, 4)
    else:
        assert (code, out.read_bytes()) == (cli.EXIT_USAGE, begun)
        assert message in err


def test_prompts_may_be_added_before_a_file_goes_on_but_not_taken_away(run, prompts, killed):
    out = killed("--max-new-tokens", 2)
    begun = out.read_bytes()
    whole = prompts.read_text()
    prompts.write_text(whole.split("\n")[0])
    code, _, err = run("--file", prompts, "--out", out, "--max-new-tokens", 2)
    assert (code, out.read_bytes()) == (cli.EXIT_USAGE, begun)
    assert "line 2 is of a prompt that is not there, as there are 1" in err
    prompts.write_text(whole + '{"prompt": "One more"}\n')
    assert run("--file", prompts, "--out", out, "--max-new-tokens", 2)[0] == 0
    assert [row["index"] for row in results(out)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("left", [None, ""])
def test_without_results_a_stopped_file_begins_anew_with_other_settings(run, prompts, killed, left):
    out = killed("--max-new-tokens", 3)
    code, _, err = run("--file", prompts, "--out", out, "--max-new-tokens", 2, "--seed", 6)
    assert code == cli.EXIT_USAGE
    assert f"{out} was begun with max_new_tokens = 3, and now it is 2; remove it to begin" in err
    out.unlink()
    if left is not None:
        out.write_text(left)
    assert run("--file", prompts, "--out", out, "--max-new-tokens", 2, "--seed", 6)[0] == 0
    assert [row["seed"] for row in results(out)] == [6, 6, 6, 9, 6]
    assert sorted(out.parent.iterdir()) == [out, prompts]


def test_a_prompt_that_the_tokenizer_cannot_encode_is_found_first(run, tmp_path):
    tokenizer = of_characters("abc", tmp_path)
    model = GPTModel(
        GPTConfig(vocab_size=tokenizer.n_vocab, context_length=8, emb_dim=8, n_heads=2, n_layers=1)
    )
    gptrs.save_checkpoint(model, tmp_path / "model", tokenizer=tokenizer)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "abc"}\n' * 100 + '{"prompt": "abcd"}\n')
    out = tmp_path / "out.jsonl"
    for where in (("--out", out), ()):
        code, printed, err = run("--model", tmp_path / "model", "--file", file, *where)
        assert (code, printed, err.count("\n")) == (cli.EXIT_USAGE, "", 1)
        assert f"{file}:101: " in err
        assert "'d'" in err
    assert sorted(tmp_path.iterdir()) == [tmp_path / "model", file]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", ":3: not JSON"),
        (b"[1]", ':3: expected {"prompt": "..."}, found [1]'),
        (b'{"text": "x"}', ":3: expected"),
        (b'{"prompt": 5}', ":3: expected"),
        (b'{"prompt": ""}', ":3: the prompt is empty"),
        (b'{"prompt": "x", "temprature": 1}', ":3: unknown setting 'temprature'"),
        (b"\xff", "not UTF-8"),
        (b'{"prompt": "x", "top_p": 7}', ":3: top_p is above 0 and at most 1"),
        (b'{"prompt": "x", "temperature": "hot"}', ":3: temperature is a number, found 'hot'"),
        (b'{"prompt": "x", "seed": -1}', ":3: a seed is an int from 0"),
        (b'{"prompt": "x", "logit_bias": {"x": 1}}', ":3: logit_bias has token ids for keys"),
        (b'{"prompt": "x", "num_samples": "3"}', ":3: num_samples is at least 1, found '3'"),
        (b'{"prompt": "x", "num_samples": null}', ":3: num_samples is at least 1, found None"),
        (b'{"prompt": "x", "max_new_tokens": 1.5}', ":3: max_new_tokens is at least 0, found 1.5"),
        (b'{"prompt": "x", "regex": 5}', ":3: regex is a text, found 5"),
        (b'{"prompt": "x", "choices": "yes"}', ":3: choices is a list of texts, found 'yes'"),
        (b'{"prompt": "x", "choices": [1]}', ":3: choices is a list of texts, found [1]"),
        (b'{"prompt": "x\\ud800"}', ":3: \\ud800 is half a character: no UTF-8 has it"),
        (b'{"prompt": "x", "id": "\\ude00"}', ":3: \\ude00 is half a character"),
        (
            b'{"prompt": "' + b" x" * 33 + b'", "overflow": "stop"}',
            ":3: the prompt has 33 tokens; with overflow 'stop' it may have at most 32",
        ),
    ],
)
def test_a_bad_line_is_found_before_anything_is_written(run, tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "x"}\n\n' + line + b"\n")
    code, out, err = run("--file", file, "--out", tmp_path / "out")
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert message in err
    assert list(tmp_path.iterdir()) == [file]


def test_a_line_may_take_a_setting_back(run, tmp_path, generator):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    line = {"prompt": "Hello", "top_k": None, "best_of": None, "logit_bias": {"11": 30}}
    file.write_text(json.dumps(line))
    arguments = ("--top-k", 1, "--best-of", 2, "--seed", 5, "--max-new-tokens", 6)
    assert run("--file", file, "--out", out, *arguments)[0] == 0
    [expected] = generator("Hello", 6, temperature=0.8, seed=5, logit_bias={11: 30.0})
    assert results(out)[0]["text"] == expected.text


def test_settings_that_fail_at_once_do_not_stand_in_the_way_of_others(run, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    arguments = ("--file", prompts, "--out", out, "--max-new-tokens", 2)
    for wrong in (("--top-p", 7), ("--regex", "("), ("--logit-bias", "99999=1")):
        code, _, err = run(*arguments, *wrong)
        assert (code, err.count("\n")) == (cli.EXIT_USAGE, 1)
        assert list(tmp_path.iterdir()) == [prompts]
    assert run(*arguments)[0] == 0
    assert len(results(out)) == 5


def test_the_texts_do_not_go_where_the_prompts_are_or_nothing_can_be(run, prompts, tmp_path):
    before = prompts.read_bytes()
    code, _, err = run("--file", prompts, "--out", prompts)
    assert (code, prompts.read_bytes()) == (cli.EXIT_USAGE, before)
    assert "has the prompts: --out names another file" in err
    code, _, err = run("--file", prompts, "--out", tmp_path / "none" / "out.jsonl")
    assert code == cli.EXIT_USAGE
    assert f"there is no folder {tmp_path / 'none'}" in err
    os.mkfifo(tmp_path / "pipe")
    code, _, err = run("--file", prompts, "--out", tmp_path / "pipe")
    assert code == cli.EXIT_USAGE
    assert "is no file to go on with: without --out the texts are printed" in err


def test_rust_and_pytorch_write_the_same_and_int8_is_rusts(run, tmp_path):
    asked = ("--prompt", "Hello", "--temperature", 0, "--max-new-tokens", 5, "--device", "cpu")
    texts = {run(*asked, "--engine", engine)[1] for engine in ("auto", "native", "torch")}
    assert len(texts) == 1
    code, text, _ = run(*asked, "--dtype", "int8", "--int8-file", tmp_path / "int8.safetensors")
    assert (code, (tmp_path / "int8.safetensors").exists()) == (0, True)
    assert run(*asked, "--dtype", "int8", "--int8-file", tmp_path / "int8.safetensors")[1] == text
    code, _, err = run(*asked, "--int8-file", tmp_path / "int8.safetensors")
    assert (code, 'int8_file is for dtype="int8", found dtype=None' in err) == (2, True)
    code, _, err = run(*asked, "--dtype", "int8", "--engine", "torch")
    assert code == 2
    assert 'dtype="int8": the native engine cannot run this (engine="torch" was asked for)' in err

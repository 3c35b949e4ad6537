"""`gptrs params` and `gptrs explain`, as a terminal sees them."""

import subprocess
import sys

import pytest
import torch

import gptrs
from gptrs import cli
from gptrs.config import PRESETS, GPTConfig, get_config
from gptrs.costs.flops import format_flops
from gptrs.costs.memory_budget import format_memory
from gptrs.costs.params import format_budget
from gptrs.model.gpt import GPTModel

CONFIG = GPTConfig(context_length=8, emb_dim=8, n_heads=2, n_layers=1)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "run" / "checkpoint"
    gptrs.save_checkpoint(GPTModel(CONFIG), folder, tokenizer=gptrs.get_tokenizer("gpt2"))
    return folder


@pytest.mark.parametrize("command", ["params", "explain"])
def test_both_commands_explain_themselves(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: gptrs {command} [OPTIONS] ")
    assert f"  {command} " in run("--help")[1]


@pytest.mark.parametrize("name", PRESETS)
def test_params_prints_parameters_flops_and_memory_of_every_preset(run, name):
    cfg = get_config(name)
    texts = (format_budget(cfg, name), format_flops(cfg), format_memory(cfg))
    assert run("params", name) == (0, "\n\n".join(texts) + "\n", "")


def test_params_counts_for_a_length_and_a_batch_size(run):
    cfg = get_config("gpt2-124m")
    code, out, _ = run("params", "gpt2-124m", "--length", 128, "--batch-size", 16)
    assert code == 0
    assert format_flops(cfg, 128) in out
    assert format_memory(cfg, 128, 16) in out


def test_params_takes_a_checkpoint_or_a_run_and_needs_no_weights(run, checkpoint):
    (weights,) = checkpoint.glob("*.safetensors")
    weights.unlink()
    for folder in (checkpoint, checkpoint.parent):
        code, out, _ = run("params", folder)
        assert code == 0
        assert out.startswith(format_budget(CONFIG, str(folder)))


FOREIGN = GPTConfig(context_length=8, emb_dim=64, n_heads=1, n_layers=1, qkv_bias=True)


@pytest.fixture
def foreign(tmp_path):
    """The same model in a Hugging Face folder, and in a file of the book's beside no config."""
    torch.manual_seed(0)
    model = GPTModel(FOREIGN)
    model.save_pretrained(tmp_path / "hf", format="hf")
    torch.save(model.state_dict(), tmp_path / "book.pth")
    return model, tmp_path


@pytest.mark.filterwarnings("default:.*how many heads the model has:UserWarning")
@pytest.mark.parametrize("command", ["params", "explain"])
def test_a_guess_is_told_once_and_in_a_line(run, foreign, command):
    path = foreign[1] / "book.pth"
    arguments = [path] if command == "params" else ["Hello", "--model", path]
    code, _, err = run(command, *arguments)
    assert code == 0
    assert err.startswith(f"gptrs: warning: {path}: the weights do not say how many heads")
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*how many heads the model has:UserWarning")
@pytest.mark.parametrize("name", ["hf", "book.pth"])
def test_both_commands_take_weights_of_others(run, foreign, name):
    model, folder = foreign
    code, out, err = run("params", folder / name)
    assert (code, err) == (0, "")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in out
    code, out, err = run("explain", "Hello", "--model", folder / name)
    assert (code, err) == (0, "")
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[15496]]))
    assert f"{logits.max().item():.3f}" in out


@pytest.mark.filterwarnings("ignore:.*how many heads the model has:UserWarning")
@pytest.mark.parametrize("vocab_size", [50257, 50304])
def test_a_vocabulary_that_was_filled_up_is_gpt2s(run, tmp_path, vocab_size):
    model = _favours_the_last_id(vocab_size)
    torch.save(model.state_dict(), tmp_path / "book.pth")
    code, out, err = run("explain", "Hello", "--model", tmp_path / "book.pth")
    assert (code, err) == (0, "")
    # What has no text is shown as its number.
    assert ("<50257>" in out) == (vocab_size > 50257)
    arguments = ("--prompt", "Hello", "--max-new-tokens", "2", "--temperature", "0")
    code, out, err = run("generate", "--model", tmp_path / "book.pth", *arguments)
    # What was never trained is not written, however likely: the likeliest of the others is.
    idx = torch.tensor([[15496]])
    for _ in range(2):
        last = model.eval()(idx)[:, -1, :50257]
        idx = torch.cat([idx, last.argmax(-1, keepdim=True)], dim=1)
    assert (code, out.strip()) == (0, gptrs.get_tokenizer("gpt2").decode(idx[0].tolist()))


def _favours_the_last_id(vocab_size):
    cfg = GPTConfig(vocab_size=vocab_size, context_length=8, emb_dim=64, n_heads=1, n_layers=1)
    torch.manual_seed(5)
    model = GPTModel(cfg)
    with torch.no_grad():
        model.final_norm.shift.fill_(1.0)
        model.out_head.weight[50257:].fill_(1.0)
    return model


@pytest.mark.filterwarnings("ignore:.*how many heads the model has:UserWarning")
def test_weights_of_others_need_a_tokenizer_to_be_explained(run, tmp_path):
    cfg = GPTConfig(vocab_size=100, context_length=8, emb_dim=64, n_heads=1, n_layers=1)
    torch.save(GPTModel(cfg).state_dict(), tmp_path / "book.pth")
    code, out, err = run("explain", "Hello", "--model", tmp_path / "book.pth")
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert "was saved without a tokenizer" in err


def test_params_of_another_architecture_says_what_is_different(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "n_embd": 8}')
    code, out, err = run("params", tmp_path)
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert "model_type is 'llama', expected 'gpt2'" in err


@pytest.mark.parametrize("model", ["gpt3-175b", "checkpoint", "hf"])
def test_params_does_not_import_torch(checkpoint, foreign, model):
    program = (
        "import sys; from gptrs.cli import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    model = {"checkpoint": str(checkpoint), "hf": str(foreign[1] / "hf")}.get(model, model)
    command = [sys.executable, "-c", program, "params", model]
    result = subprocess.run(command, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


def test_explain_shows_the_whole_way_through_a_checkpoint(run, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent.parent)
    code, out, err = run("explain", "Hello, I am", "--model", "run")
    assert (code, err) == (0, "")
    assert "the weights saved in run" in out
    order = [
        " 1  text", "token ids", "token embeddings", "positional embeddings", "input embeddings",
        "trf_blocks.0.norm1", "queries, keys, values", "attention scores", "attention weights",
        "context vectors", "first shortcut", "trf_blocks.0.norm2", "feed forward",
        "second shortcut", "all blocks", "final_norm", "logits", "probabilities", "greedy: ",
    ]  # fmt: skip
    places = [out.index(step) for step in order]
    assert places == sorted(places)
    assert max(map(len, out.splitlines())) <= 100


def test_explain_says_that_a_presets_weights_are_random_and_draws_them_by_seed(run, monkeypatch):
    small = GPTConfig(context_length=8, emb_dim=8, n_heads=2, n_layers=1)
    monkeypatch.setattr("gptrs.commands.model.PRESETS", {"small": small})
    monkeypatch.setattr("gptrs.commands.model.get_config", lambda name: small)
    state = torch.random.get_rng_state()
    texts = [run("explain", "Hi", "--model", "small", "--seed", seed)[1] for seed in (1, 1, 2)]
    assert "random weights from seed 1: it has learned nothing" in texts[0]
    assert texts[0] == texts[1]
    assert texts[0].replace("seed 1", "seed 2") != texts[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_explain_refuses_a_preset_that_is_larger_than_memory(run, monkeypatch):
    monkeypatch.setattr("gptrs.memory.available_bytes", lambda device: 10**9)
    code, out, err = run("explain", "Hi", "--model", "gpt3-175b")
    assert (code, out) == (cli.EXIT_FAILURE, "")
    assert "gpt3-175b in float32 takes 698.42 GB; 1.00 GB are available" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["params"], "Missing argument 'PRESET|PATH'"),
        (["params", "gpt2-124"], "unknown preset 'gpt2-124': did you mean"),
        (["params", "runs/none"], "runs/none: no such file or folder"),
        (["params", "."], "no weights here: there is no model.safetensors"),
        (["params", "gpt2-124m", "--length", "2000"], "length is 2000; it must be 1 to"),
        (["params", "gpt2-124m", "--batch-size", "0"], "--batch-size"),
        (["explain", "Hi"], "Missing option '--model'"),
        (["explain", "", "--model", "gpt2-124m"], "TEXT is empty"),
        (["explain", "Hi", "--model", "gpt9"], "unknown preset 'gpt9'"),
        (["explain", "Hi", "--model", "."], "no weights here: there is no model.safetensors"),
        (["explain", "Hi", "--model", "gpt2-124m", "--seed", "-1"], "--seed"),
        (["explain", "Hi", "--model", "gpt2-124m", "--blocks", "-1"], "--blocks"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert message in err
    assert err.count("\n") == 1


def test_explain_needs_a_tokenizer_and_a_text_that_the_model_can_see(run, tmp_path, checkpoint):
    code, out, err = run("explain", "a b c d e f g h i", "--model", checkpoint)
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert "9 tokens, more than context_length 8" in err
    gptrs.save_checkpoint(GPTModel(CONFIG), tmp_path / "bare")
    code, out, err = run("explain", "Hi", "--model", tmp_path / "bare")
    assert (code, out) == (cli.EXIT_USAGE, "")
    assert "was saved without a tokenizer, so it takes no text" in err

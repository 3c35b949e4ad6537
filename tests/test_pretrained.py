"""Weights of others come in and ours go out, and both models compute the same."""

import json
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import get_args

import huggingface_hub
import pytest
import torch
from llms_from_scratch import ch04
from random_models import (
    FORMATS,
    SHAPE,
    assert_same_logits,
    assert_same_weights,
    logits,
    random_gpt2,
    random_ours,
    refused,
)
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

import gptrs
from gptrs.config import GPTConfig, Pos
from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel

SIZES = {"124m": (768, 12), "355m": (1024, 16), "774m": (1280, 20), "1558m": (1600, 25)}
KINDS = get_args(Pos)

load = GPTModel.from_pretrained


# --- transformers ---


@pytest.mark.parametrize("size", SIZES)
def test_openais_sizes_compute_the_same_both_ways(tmp_path, size):
    emb_dim, n_heads = SIZES[size]
    preset = gptrs.get_config(f"gpt2-{size}")
    assert (preset.emb_dim, preset.n_heads) == (emb_dim, n_heads)
    theirs = random_gpt2(n_embd=emb_dim, n_head=n_heads, n_layer=1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert_same_logits(ours, theirs)
    ours.save_pretrained(tmp_path / "ours", format="hf")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    assert_same_weights(again, theirs)
    # Neither the heads nor anything else has to be said: all of GPT-2's heads are 64 wide.
    bare = tmp_path / "bare.safetensors"
    (tmp_path / "theirs" / "model.safetensors").rename(bare)
    assert load(bare).cfg == ours.cfg


def test_a_model_as_deep_as_openais_medium_computes_the_same_both_ways(tmp_path):
    theirs = random_gpt2(n_embd=96, n_head=6, n_layer=24)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert_same_logits(ours, theirs, tokens=16)
    ours.save_pretrained(tmp_path / "ours", format="hf")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    assert_same_weights(again, theirs)


@pytest.mark.parametrize("seed", range(24))
def test_any_gpt2_comes_in_and_goes_out_unchanged(tmp_path, seed):
    draw = random.Random(seed)
    n_head = draw.choice([1, 2, 3, 5])
    shape = {
        "vocab_size": draw.randrange(20, 99),
        "n_positions": draw.randrange(8, 40),
        "n_head": n_head,
        "n_embd": n_head * draw.choice([1, 4, 7, 16]),
        "n_layer": draw.randrange(1, 12),
        "tie_word_embeddings": draw.choice([True, False]),
    }
    theirs = random_gpt2(seed, **shape)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=draw.choice(["5GB", "10KB"]))
    ours = load(tmp_path / "theirs")
    assert_same_logits(ours, theirs, vocab_size=shape["vocab_size"], tokens=8)
    assert ours.cfg.tie_embeddings == shape["tie_word_embeddings"]
    ours.save_pretrained(tmp_path / "ours", format="hf")
    again, info = GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(again, theirs)
    assert_same_weights(load(tmp_path / "ours"), ours)


def test_sharded_weights_are_read_from_their_folder_and_their_index(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert_same_logits(load(path), theirs)


@pytest.mark.parametrize("head", ["left out", "written too"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_openais_own_names_masks_and_head_are_understood(tmp_path, prefix, head, suffix):
    theirs = random_gpt2()
    tensors = {prefix + name: t for name, t in theirs.transformer.state_dict().items()}
    for index in range(2):
        tensors[f"{prefix}h.{index}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        tensors[f"{prefix}h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
    file = tmp_path / f"model{suffix}"
    if head == "written too":
        tensors["lm_head.weight"] = theirs.lm_head.weight.detach().clone()
    (save_file if suffix == ".safetensors" else torch.save)(tensors, file)
    ours = load(file, cfg={"n_heads": 2})
    assert_same_logits(ours, theirs)
    assert ours.cfg.tie_embeddings == (head == "left out")


def test_a_model_of_the_book_goes_to_transformers_untied_and_with_zero_biases(tmp_path):
    ours = random_ours()
    ours.save_pretrained(tmp_path, format="hf")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert_same_logits(ours, theirs)
    assert not theirs.config.tie_word_embeddings
    assert not theirs.transformer.h[1].attn.c_attn.bias.any()


def test_the_books_untied_model_takes_a_tied_files_matrix_twice(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, cfg={**SHAPE, "qkv_bias": True, "tie_embeddings": False})
    assert_same_logits(ours, theirs)
    assert ours.out_head.weight.data_ptr() != ours.tok_emb.weight.data_ptr()


# --- The book, nanoGPT, and ourselves ---


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [ch04.GPTModel, ch04.GPTModelFast])
def test_the_books_state_dicts_are_read(tmp_path, kind, qkv_bias, wrapped):
    torch.manual_seed(3)
    theirs = kind({**SHAPE, "qkv_bias": qkv_bias}).eval()
    state = theirs.state_dict()
    if wrapped:
        state = {"model_state_dict": {f"_orig_mod.{n}": t for n, t in state.items()}, "epoch": 3}
    torch.save(state, tmp_path / "model.pth")
    ours = load(tmp_path / "model.pth", cfg={"n_heads": 2})
    assert_same_logits(ours, theirs)
    assert ours.cfg == GPTConfig.of({**SHAPE, "qkv_bias": qkv_bias})


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_books_model_loads_strictly_what_is_saved_for_it(tmp_path, qkv_bias):
    ours = random_ours(qkv_bias=qkv_bias)
    ours.save_pretrained(tmp_path, format="book")
    theirs = ch04.GPTModel(json.loads((tmp_path / "config.json").read_text())).eval()
    theirs.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("compiled", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_checkpoints_are_read(tmp_path, compiled, bias):
    theirs = random_gpt2()
    layers = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    state = {}
    for name, tensor in theirs.state_dict().items():
        if not bias and name.endswith(".bias"):
            tensor.zero_()  # In transformers' model, so that it computes what is meant.
        else:
            state[compiled + name] = tensor.T if name.endswith(layers) else tensor
    args = {"n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 16, "vocab_size": 61}
    args |= {"bias": bias, "dropout": 0.25}
    torch.save({"model": state, "model_args": args, "iter_num": 7}, tmp_path / "ckpt.pt")
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        ours = load(path)
        assert_same_logits(ours, theirs)
        assert (ours.cfg.drop_rate, ours.cfg.tie_embeddings) == (0.25, True)
        assert ours.cfg.qkv_bias == bias


def test_our_checkpoint_and_the_run_that_has_it_are_read(tmp_path):
    ours = random_ours()
    ours.save_pretrained(tmp_path / "checkpoint")
    assert_same_weights(load(tmp_path / "checkpoint"), ours)
    assert_same_weights(load(tmp_path), ours)
    assert load(tmp_path, cfg=SHAPE, dtype=torch.float16).tok_emb.weight.dtype == torch.float16
    with pytest.raises(ConfigError, match="n_layers is 3 in cfg, and 2 in"):
        load(tmp_path, cfg={**SHAPE, "n_layers": 3})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True, "init": "gpt2"}, {"qkv_bias": True, "n_heads": 8}]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_comes_back_bit_for_bit(tmp_path, kind, changes, dtype):
    ours = random_ours(**changes).to(dtype)
    ours.save_pretrained(tmp_path, format=kind)
    again = load(tmp_path)
    if kind == "hf" and not ours.cfg.qkv_bias:
        assert not again.trf_blocks[1].att.W_key.bias.any()
        found = {name: t for name, t in again.state_dict().items() if name in ours.state_dict()}
        torch.testing.assert_close(found, dict(ours.state_dict()), rtol=0, atol=0)
    else:
        assert_same_weights(again, ours)
    assert again.tok_emb.weight.dtype == dtype
    assert (again.out_head.weight is again.tok_emb.weight) == ours.cfg.tie_embeddings
    assert (again.cfg.n_heads, again.cfg.context_length) == (ours.cfg.n_heads, 16)
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pos", KINDS)
def test_every_kind_of_positions_comes_back_bit_for_bit(tmp_path, pos, tied):
    model = random_ours(3, pos=pos, qkv_bias=True, tie_embeddings=tied, init="gpt2")
    model.save_pretrained(tmp_path)
    loaded = GPTModel.from_pretrained(tmp_path)
    assert loaded.cfg == model.cfg
    assert_same_weights(loaded, model)
    assert torch.equal(logits(loaded), logits(model))


def test_a_memory_and_a_largest_distance_come_back(tmp_path):
    settings = {"rel_max_distance": 7, "memory_length": 5}
    model = random_ours(pos="transformer_xl", **settings)
    model.save_pretrained(tmp_path)
    assert GPTModel.from_pretrained(tmp_path).cfg == model.cfg


def test_dropout_tying_and_memory_of_our_checkpoint_are_the_callers_choice(tmp_path):
    model = random_ours(pos="transformer_xl", tie_embeddings=True, init="gpt2")
    model.save_pretrained(tmp_path)
    wanted = replace(model.cfg, tie_embeddings=False, drop_rate=0.5, memory_length=4)
    loaded = GPTModel.from_pretrained(tmp_path, cfg=wanted)
    assert loaded.cfg == wanted
    assert_same_weights(loaded, model)
    assert loaded.out_head.weight is not loaded.tok_emb.weight


def test_a_checkpoint_from_before_there_were_kinds_of_positions_is_read(tmp_path):
    model = random_ours()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("pos", "rel_max_distance", "memory_length"):
        del config["model"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = GPTModel.from_pretrained(tmp_path)
    assert loaded.cfg == model.cfg
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("pos", KINDS)
def test_a_model_has_nothing_to_fill_but_its_parameters(pos):
    with torch.device("meta"):
        model = random_ours(pos=pos)
    assert not list(model.buffers())
    assert {*model.state_dict()} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", ["hf", "book"])
@pytest.mark.parametrize("pos", KINDS[1:])
def test_formats_that_have_only_learned_positions_refuse_the_others(tmp_path, kind, pos):
    with pytest.raises(ConfigError, match=f'pos is "{pos}", and format="{kind}" has learned'):
        random_ours(pos=pos).save_pretrained(tmp_path / "new", format=kind)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("pos", KINDS[1:])
def test_weights_of_other_positions_than_asked_for_are_refused(tmp_path, kind, pos):
    model = random_ours()
    model.save_pretrained(tmp_path, format=kind)
    wanted = replace(model.cfg, pos=pos, n_heads=1, vocab_size=62)
    with pytest.raises(ConfigError, match="does not fit the weights") as error:
        GPTModel.from_pretrained(tmp_path, cfg=wanted)
    assert f"pos is '{pos}' in cfg, and 'learned' in" in str(error.value)
    assert "vocab_size is 62" in str(error.value)


def test_a_dtype_can_be_asked_for_and_torchs_generator_is_left_alone(tmp_path):
    random_gpt2().to(torch.bfloat16).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(tmp_path, dtype=torch.float32).parameters()} == {torch.float32}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "float16"])
def test_a_dtype_may_be_named(tmp_path, name):
    random_gpt2().save_pretrained(tmp_path)
    assert load(tmp_path, dtype=name).tok_emb.weight.dtype == getattr(torch, name)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, "int8", "auto", 16, []]
)
def test_a_dtype_that_weights_cannot_have_is_refused_before_anything_is_fetched(
    tmp_path, monkeypatch, dtype
):
    random_gpt2().save_pretrained(tmp_path)
    message = "must be float64, float32, float16, bfloat16"
    assert message in refused(tmp_path, ConfigError, dtype=dtype)[0]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ConfigError, match=message):
        gptrs.from_hub("gpt2", dtype=dtype)


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "gpu"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_device_that_holds_no_numbers_is_refused(tmp_path, kind, device):
    random_ours().save_pretrained(tmp_path, format=kind)
    (message,) = refused(tmp_path, ConfigError, device=device)
    assert message.startswith("device is ")


def test_a_loaded_model_does_not_depend_on_the_file(tmp_path):
    ours = random_ours()
    ours.save_pretrained(tmp_path, format="book")
    again = load(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"")  # A mapped file that shrinks ends the process.
    assert_same_weights(again, ours)


# --- Memory ---


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_little_more_memory_than_the_weights(tmp_path):
    model = GPTModel(
        {
            "vocab_size": 5000,
            "context_length": 64,
            "emb_dim": 512,
            "n_heads": 8,
            "n_layers": 16,
            "qkv_bias": True,
        }
    )
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert weights > 200e6
    model.save_pretrained(tmp_path / "hf", format="hf")
    # nanoGPT's, with AdamW's state in the same file: what is not needed is not read.
    state = load_file(tmp_path / "hf" / "model.safetensors")
    for name in [n for n in state if n.endswith((".c_attn.weight", "_proj.weight", "_fc.weight"))]:
        state[name] = state[name].T.contiguous()
    args = {"n_layer": 16, "n_head": 8, "n_embd": 512, "block_size": 64, "vocab_size": 5000}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(25_000_000)}}}
    ckpt = {"model": state, "model_args": args, "optimizer": optimizer}
    torch.save(ckpt, tmp_path / "ckpt.pt")
    random_ours().save_pretrained(tmp_path / "small", format="hf")
    model.save_pretrained(tmp_path / "own")
    paths = [tmp_path / name for name in ("small", "hf", "ckpt.pt", "own")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == 3
    assert max(peaks) <= 1.1 * weights


MEASURE = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    import torch
    import gptrs.weights.pretrained

    def memory(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(field))
        return int(line.split()[1]) * 1024

    torch.set_num_threads(1)
    small, *paths = sys.argv[1:]
    for path in paths:
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            continue
        gptrs.GPTModel.from_pretrained(small)  # The code that it takes is not what is measured.
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts here.
        model = gptrs.GPTModel.from_pretrained(path)
        print(memory("VmHWM") - before, flush=True)
        os._exit(0)
""")

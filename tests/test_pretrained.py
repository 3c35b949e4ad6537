"""Weights of others come in and ours go out, and both models compute the same."""

import json
import logging
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import get_args

import huggingface_hub
import pytest
import torch
import transformers
from llms_from_scratch import ch04
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

import gptrs
from gptrs.config import PRESETS, GPTConfig, Pos
from gptrs.errors import CheckpointError, ConfigError, MissingExtraError, TokenizerError
from gptrs.model.gpt import GPTModel
from gptrs.text.tokenizer import get_tokenizer
from gptrs.weights.pretrained import config_of_pretrained

SIZES = {"124m": (768, 12), "355m": (1024, 16), "774m": (1280, 20), "1558m": (1600, 25)}
SHAPE = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 128,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
FORMATS = ("gptrs", "hf", "book")
KINDS = get_args(Pos)

load = GPTModel.from_pretrained


@pytest.fixture(autouse=True)
def no_progress_bars():
    transformers.utils.logging.disable_progress_bar()


def random_gpt2(seed=0, **changes):
    """transformers' GPT-2, every weight random, norms and biases too."""
    sizes = {"vocab_size": 61, "n_positions": 16, "n_embd": 128, "n_head": 2, "n_layer": 2}
    model = GPT2LMHeadModel(GPT2Config(**(sizes | changes))).eval()
    return with_random_weights(model, seed)


def random_ours(seed=0, **changes):
    return with_random_weights(GPTModel(SHAPE | changes), seed).eval()


def with_random_weights(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = name.endswith((".scale", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
        parameter.data = (1 + 0.1 * noise) if is_scale else 0.05 * noise
    if isinstance(model, GPTModel) and model.cfg.tie_embeddings:
        model.out_head.weight = model.tok_emb.weight
    elif hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def logits(model, vocab_size=61, tokens=11):
    ids = torch.randint(0, vocab_size, (2, tokens), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = model(ids)
    return getattr(result, "logits", result)


def assert_same_logits(ours, theirs, **shape):
    expected = logits(theirs, **shape)
    error = (logits(ours, **shape) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5


def assert_same_weights(one, other):
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


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


# --- Tokenizers ---


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("Hello, wörld! The quick brown fox said # # ## 12 'tis. " * 9, "utf-8")
    return {
        "gpt2": get_tokenizer("gpt2"),
        "bpe": gptrs.train_tokenizer(file, 290),
        "char": gptrs.train_tokenizer(file, None, kind="char"),
    }


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_transformers_pipeline_gives_our_greedy_text(tmp_path, tokenizers, kind):
    tokenizer = tokenizers[kind]
    ours = random_ours(vocab_size=tokenizer.n_vocab, context_length=64, emb_dim=24)
    with torch.no_grad():
        ours.tok_emb.weight *= 20  # Else a model of noise repeats one token.
    ours.save_pretrained(tmp_path, format="hf", tokenizer=tokenizer)
    pipeline = transformers.pipeline("text-generation", str(tmp_path))
    gen = gptrs.Generator(ours, tokenizer)
    for prompt in ("Hello", "The quick", "said # 12"):
        expected = gen(prompt, max_new_tokens=16, temperature=0)[0].text
        (found,) = pipeline(prompt, max_new_tokens=16)
        assert found["generated_text"] == prompt + expected
        assert len(set(expected)) > 1
    gen.close()


@pytest.mark.parametrize("length", [64, 300])
def test_transformers_pipeline_fills_a_short_context_where_nothing_else_is_said(
    tmp_path, caplog, length
):
    ours = random_ours(vocab_size=50257, context_length=length, emb_dim=8)
    ours.save_pretrained(tmp_path, format="hf")
    pipeline = transformers.pipeline("text-generation", str(tmp_path))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # Its messages go no further than its own.
    prompt = "Every effort moves you"
    found = [pipeline(prompt * times, return_tensors=True)[0] for times in (1, 8)]
    logger.removeHandler(caplog.handler)
    ends = [1 + ids.index(50256) if 50256 in ids else length for ids in map(token_ids, found)]
    assert [len(token_ids(ids)) for ids in found] == ends
    assert not caplog.messages


def token_ids(found):
    return found["generated_token_ids"]


def test_a_long_context_is_not_filled_by_transformers_pipeline(tmp_path):
    random_ours(context_length=1024).save_pretrained(tmp_path, format="hf")
    assert GenerationConfig.from_pretrained(tmp_path).max_length is None


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_the_tokenizer_of_an_exported_model_is_the_same_to_everybody(tmp_path, tokenizers, kind):
    tokenizer, text = tokenizers[kind], "Hello, wörld! ## 'tis"
    random_ours(vocab_size=tokenizer.n_vocab).save_pretrained(
        tmp_path, format="hf", tokenizer=tokenizer
    )
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.encode(text)
    assert get_tokenizer(tmp_path) == tokenizer
    assert (tmp_path / "vocab.json").exists() == (kind != "char")
    if kind != "char":
        (tmp_path / "tokenizer.json").unlink()
        assert get_tokenizer(tmp_path) == tokenizer


def test_vocab_and_merges_as_transformers_writes_them_are_read(tmp_path, tokenizers):
    tokenizers["gpt2"].save(tmp_path)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    theirs.backend_tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    assert get_tokenizer(tmp_path) is get_tokenizer("gpt2")


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_either_of_vocab_and_merges_stands_for_both(tmp_path, tokenizers, kind, name):
    tokenizer = tokenizers[kind]
    random_ours(vocab_size=tokenizer.n_vocab).save_pretrained(
        tmp_path, format="hf", tokenizer=tokenizer
    )
    # It is these two that were named, whatever else is there.
    (tmp_path / "tokenizer.json").write_text("{}")
    assert get_tokenizer(tmp_path / name) == tokenizer


@pytest.mark.parametrize(
    ("there", "missing"), [("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")]
)
def test_vocab_without_merges_says_what_is_missing(tmp_path, tokenizers, there, missing):
    tokenizer = tokenizers["bpe"]
    random_ours(vocab_size=tokenizer.n_vocab).save_pretrained(
        tmp_path / "model", format="hf", tokenizer=tokenizer
    )
    (tmp_path / there).write_bytes((tmp_path / "model" / there).read_bytes())
    for path in (tmp_path, tmp_path / there):
        with pytest.raises(TokenizerError, match=f"{missing} is missing, which {there} needs"):
            get_tokenizer(path)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_tokenizer_that_was_saved_as_vocab_json_is_read_from_there(tmp_path, tokenizers, kind):
    file = tokenizers[kind].save(tmp_path / "vocab.json")
    assert get_tokenizer(file) == tokenizers[kind]


@pytest.mark.parametrize(
    ("vocab", "merges"), [(b"{", b""), (b"[]", b""), (b'{"a": "b"}', b""), (b"{}", b"\xff")]
)
def test_damaged_vocab_and_merges_are_refused(tmp_path, vocab, merges):
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(TokenizerError):
        get_tokenizer(tmp_path)


def test_gpt2s_vocabulary_brings_gpt2s_tokenizer_and_another_brings_none(tmp_path):
    random_ours(vocab_size=50257).save_pretrained(tmp_path / "a", format="hf")
    assert get_tokenizer(tmp_path / "a") is get_tokenizer("gpt2")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["eos_token_id"] == 50256
    random_ours().save_pretrained(tmp_path / "b", format="hf")
    assert not (tmp_path / "b" / "tokenizer.json").exists()
    assert GPT2Config.from_pretrained(tmp_path / "b").eos_token_id is None


# --- What does not fit ---


def refused(path, error=CheckpointError, **options):
    """The lines of what `from_pretrained` says."""
    with pytest.raises(error) as info:
        load(path, **options)
    return str(info.value).splitlines()


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.h.0.mlp.c_fc.bias"] = torch.zeros(3)
    tensors["transformer.h.1.ln_1.bias"] = torch.zeros(128, dtype=torch.int8)
    tensors["score.weight"] = torch.zeros(2, 128)
    save_file(tensors, file)
    head, *problems = refused(tmp_path)
    assert head == f"{file}: the weights do not fit the model:"
    assert sorted(map(str.strip, problems)) == [
        "final_norm.shift has nothing to load",
        "score.weight is unexpected",
        "transformer.h.1.ln_1.bias has dtype I8; it must be floating point",
        "trf_blocks.0.ff.layers.0.bias is [512], transformer.h.0.mlp.c_fc.bias of [3] gives [3]",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    random_gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.wpe.weight"][3, 5] = value
    tensors["transformer.h.1.attn.c_attn.weight"][7, 200] = value
    save_file(tensors, tmp_path / "model.safetensors")
    _, *problems = refused(tmp_path)
    assert len(problems) == 2
    assert "transformer.wpe.weight: pos_emb.weight has values that are not finite" in "".join(
        problems
    )
    assert "trf_blocks.1.att.W_key.weight has values" in "".join(problems)


def test_missing_extra_and_wrong_tensors_are_listed_together(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.h.0.ln_1.bias"] = torch.full((3,), float("nan"))
    tensors["transformer.wpe.weight"][3, 5] = float("nan")
    tensors["transformer.h.1.mlp.c_fc.bias"][9] = 1e6
    tensors["score.weight"] = torch.full((2, 128), float("nan"))
    save_file(tensors, tmp_path / "model.safetensors")
    _, *problems = refused(tmp_path, dtype="float16")
    assert sorted(map(str.strip, problems)) == [
        "final_norm.shift has nothing to load",
        "score.weight is unexpected",
        "transformer.h.1.mlp.c_fc.bias: trf_blocks.1.ff.layers.0.bias has values that are not "
        "finite in torch.float16",
        "transformer.wpe.weight: pos_emb.weight has values that are not finite in torch.float16",
        "trf_blocks.0.norm1.shift is [128], transformer.h.0.ln_1.bias of [3] gives [3]",
    ]


def test_a_file_in_which_nothing_fits_is_refused_by_every_tensor(tmp_path):
    state = random_ours().state_dict()
    torch.save({name: tensor.int() for name, tensor in state.items()}, tmp_path / "a.pth")
    _, *problems = refused(tmp_path / "a.pth", cfg={"n_heads": 2})
    assert len(problems) == len(state)
    assert all(line.endswith("it must be floating point") for line in problems)


def test_a_dtype_that_cannot_hold_the_values_is_refused(tmp_path):
    model = random_gpt2()
    model.transformer.wte.weight.data[0, 0] = 1e9
    model.save_pretrained(tmp_path)
    _, problem = refused(tmp_path, dtype=torch.float16)
    assert problem.endswith("tok_emb.weight has values that are not finite in torch.float16")


def test_a_config_that_does_not_fit_lists_every_field(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    changes = {"n_layers": 3, "n_heads": 4, "qkv_bias": False, "vocab_size": 62, "drop_rate": 0.7}
    head, *problems = refused(tmp_path, ConfigError, cfg={**SHAPE, **changes})
    assert head == "cfg does not fit the weights:"
    fields = [problem.split()[0] for problem in problems]
    assert fields == ["vocab_size", "n_heads", "n_layers", "qkv_bias"]


def test_a_config_of_another_architecture_lists_what_is_different(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    changes = {"activation_function": "relu", "layer_norm_epsilon": 1e-6, "n_inner": 99}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    head, *problems = refused(tmp_path)
    assert "config.json: not a model that GPTModel can be" in head
    assert [problem.split()[0] for problem in problems] == [
        "activation_function",
        "layer_norm_epsilon",
        "n_inner",
    ]


def test_a_head_that_differs_from_a_tied_embedding_is_not_dropped(tmp_path):
    random_gpt2(tie_word_embeddings=False).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    _, problem = refused(tmp_path)
    assert problem.strip().startswith("lm_head.weight is not transformer.wte.weight")
    assert load(tmp_path, cfg={"tie_embeddings": False}).cfg.tie_embeddings is False


def test_an_untied_model_without_its_head_is_refused(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}))
    _, problem = refused(tmp_path)
    assert problem.strip() == "out_head.weight has nothing to load"


def test_a_config_that_the_tensors_contradict_lists_every_field(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    changes = {"n_layer": 10**9, "n_positions": 15}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    _, *problems = refused(tmp_path)
    assert [problem.strip() for problem in problems] == [
        "context_length is 15 in its config, and the tensors give 16",
        "n_layers is 1000000000 in its config, and the tensors give 2",
    ]


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"wpe.weight": torch.zeros(16, 128)}, tmp_path / "model.safetensors")
    _, problem = refused(tmp_path)
    assert problem.strip() == "wpe.weight is unexpected"


def test_a_foreign_config_beside_a_file_is_not_asked(tmp_path):
    ours = random_ours()
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    (tmp_path / "config.json").write_text('{"editor": "vi"}')
    assert_same_weights(load(tmp_path / "a.pth", cfg={"n_heads": 2}), ours)


def test_heads_of_another_width_need_a_config(tmp_path):
    ours = random_ours(emb_dim=24, n_heads=3)
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    assert "the weights do not say n_heads" in refused(tmp_path / "a.pth")[0]
    again = load(tmp_path / "a.pth", cfg={**SHAPE, "emb_dim": 24, "n_heads": 3})
    assert_same_logits(again, ours)


def test_a_guessed_number_of_heads_is_said(tmp_path):
    ours = random_ours(n_heads=4)
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    message = r"a\.pth: the weights do not say how many heads .* n_heads=2 is a guess.*cfg={"
    with pytest.warns(UserWarning, match=message) as warned:
        guessed = load(tmp_path / "a.pth")
    assert [warning.filename for warning in warned] == [__file__]
    assert guessed.cfg.n_heads == 2
    with pytest.raises(AssertionError):
        assert_same_logits(guessed, ours)
    with pytest.warns(UserWarning, match=message):
        config_of_pretrained(tmp_path / "a.pth")
    # What the message says to write, either way; pytest makes an error of any further warning.
    assert_same_logits(load(tmp_path / "a.pth", cfg={"n_heads": 4}), ours)
    (tmp_path / "config.json").write_text('{"emb_dim": 128, "n_heads": 4}')
    assert_same_logits(load(tmp_path / "a.pth"), ours)


def test_a_mapping_says_only_what_it_has(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path)
    expected = replace(load(tmp_path).cfg, drop_rate=0.3)
    assert load(tmp_path, cfg={"drop_rate": 0.3}).cfg == expected
    assert load(tmp_path, cfg={}).cfg == load(tmp_path).cfg
    _, *problems = refused(tmp_path, ConfigError, cfg={"n_heads": 4, "drop_rate": 0.3})
    assert [problem.split(" in cfg")[0].strip() for problem in problems] == ["n_heads is 4"]
    (message,) = refused(tmp_path, ConfigError, cfg={"n_head": 2})
    assert "did you mean 'n_heads'?" in message
    # A whole config means all of its fields, a preset too.
    with pytest.raises(ConfigError, match="does not fit the weights") as error:
        load(tmp_path, cfg="gpt2-124m")
    assert len(str(error.value).splitlines()) == 6


class Bomb:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_pickled_objects_are_refused_and_not_run(tmp_path, capsys):
    torch.save({"model": Bomb()}, tmp_path / "a.pth")
    (message,) = refused(tmp_path / "a.pth")
    assert "holds other pickled objects, which could run code" in message
    # torch's own text says how to run them, in bold.
    assert message.endswith("(found print). Save the model's state_dict() instead")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_whole_model_that_was_pickled_is_refused_by_its_class(tmp_path, is_zip):
    torch.save(random_ours(), tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    (message,) = refused(tmp_path / "a.pth")
    assert message.endswith(
        "(found gptrs.model.gpt.GPTModel). Save the model's state_dict() instead"
    )
    assert message.isprintable()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x80\x02", bytes(99)])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.safetensors.index.json", "a.txt"])
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refused(tmp_path / name)[0]


def test_other_models_say_what_was_found(tmp_path):
    save_file({"bert.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert "it has bert.weight" in refused(tmp_path / "a.safetensors")[0]
    torch.save([torch.zeros(2)], tmp_path / "a.pth")
    assert "a dict of tensors by name; found a list" in refused(tmp_path / "a.pth")[0]
    assert "there is no model.safetensors or" in refused(tmp_path)[0]


@pytest.mark.parametrize("name", ["gpt2-small-124M.pth", "a.pt", "a.safetensors", "sharded"])
def test_a_folders_only_weights_need_no_usual_name(tmp_path, name):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if name == "sharded" else "5GB")
    if name == "sharded":
        index = tmp_path / "model.safetensors.index.json"
        index.rename(tmp_path / "other.safetensors.index.json")
        for shard in tmp_path.glob("model-*"):
            shard.rename(tmp_path / shard.name.replace("model", "other"))
        renamed = index.with_name("other.safetensors.index.json")
        renamed.write_text(renamed.read_text().replace("model-", "other-"))
    elif name == "a.safetensors":
        (tmp_path / "model.safetensors").rename(tmp_path / name)
    else:
        torch.save(theirs.state_dict(), tmp_path / name)
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / "train.bin").touch()
    assert_same_logits(load(tmp_path), theirs)


def test_several_files_of_weights_are_named(tmp_path):
    for name in ("b.pth", "a.safetensors", ".hidden.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert "several other files of weights: a.safetensors, b.pth. Name the" in refused(tmp_path)[0]


def test_a_shard_by_itself_points_to_its_index(tmp_path):
    random_gpt2().save_pretrained(tmp_path, max_shard_size="1MB")
    shard, *others = sorted(tmp_path.glob("model-*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    text = f"{shard}: one of {1 + len(others)} shards of a model: "
    assert len(others) > 0
    assert refused(shard) == [f"{text}open {index}"]
    index.unlink()
    assert refused(shard) == [f"{text}{index.name}, which joins them, is missing"]


def test_a_model_that_is_its_only_shard_is_read(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path)
    shard = tmp_path / "model-00001-of-00001.safetensors"
    (tmp_path / "model.safetensors").rename(shard)
    for path in (shard, tmp_path):
        assert_same_logits(load(path), theirs)


def test_an_index_opens_nothing_outside_its_folder(tmp_path):
    (tmp_path / "a").mkdir()
    random_gpt2().save_pretrained(tmp_path)
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../model.safetensors"}}))
    assert "is not the name of a file beside it" in refused(index)[0]


def test_a_shard_without_a_promised_tensor_is_noticed(tmp_path):
    random_gpt2().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = max(tmp_path.glob("model-*.safetensors"))
    tensors = load_file(shard)
    del tensors["transformer.ln_f.weight"]
    save_file(tensors, shard)
    assert "final_norm.scale has nothing to load" in refused(tmp_path)[1]


# --- Saving ---


@pytest.mark.parametrize("step", ["writing", "renaming"])
def test_a_failed_save_leaves_the_old_model_or_none(tmp_path, monkeypatch, step):
    random_ours().save_pretrained(tmp_path, format="hf")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, renamed = Path.replace, []

    def fail(*_, **__):
        raise OSError("the disk is full")

    def fail_at_the_second(path, target):
        if target.parent == tmp_path:
            renamed.append(target)
        return fail() if len(renamed) == 2 else rename(path, target)

    if step == "writing":
        monkeypatch.setattr("gptrs.weights.export.save_file", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail_at_the_second)
    with pytest.raises(CheckpointError, match="the disk is full"):
        random_ours(1).save_pretrained(tmp_path, format="hf")
    if step == "writing":
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    else:
        assert not (tmp_path / "config.json").exists()
        assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("other", FORMATS[1:])
@pytest.mark.parametrize("first", FORMATS)
def test_a_model_is_saved_over_another_only_in_the_same_format(tmp_path, first, other):
    random_ours().save_pretrained(tmp_path, format=first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if other == first:
        random_ours(1).save_pretrained(tmp_path, format=other)
        assert torch.equal(load(tmp_path).tok_emb.weight, random_ours(1).tok_emb.weight)
    else:
        with pytest.raises(ConfigError, match="has a model in another format"):
            random_ours(1).save_pretrained(tmp_path, format=other)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_that_was_given_more_tokens_is_saved_once_its_config_says_so(tmp_path, kind):
    model = random_ours()
    model.tok_emb = torch.nn.Embedding(70, SHAPE["emb_dim"])
    model.out_head = torch.nn.Linear(SHAPE["emb_dim"], 70, bias=False)
    advice = r"For 70 token ids, (model\.cfg = dataclasses\.replace\(model\.cfg, vocab_size=70\))"
    with pytest.raises(ConfigError, match=advice):
        model.save_pretrained(tmp_path, format=kind)
    assert not list(tmp_path.iterdir())
    model.cfg = replace(model.cfg, vocab_size=70)
    model.save_pretrained(tmp_path, format=kind)
    assert torch.equal(load(tmp_path).tok_emb.weight, model.tok_emb.weight)


def test_an_unknown_format_and_a_model_that_gpt2_is_not_are_refused(tmp_path):
    ours = random_ours()
    with pytest.raises(ConfigError, match="format is 'onnx'"):
        ours.save_pretrained(tmp_path / "a", format="onnx")
    ours.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"cannot be saved for transformers: .*extra\.weight"):
        ours.save_pretrained(tmp_path / "a", format="hf")
    assert not (tmp_path / "a").exists()


# --- The hub ---


def test_a_name_without_a_path_points_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "openai-community/gpt2"):
        assert f"gptrs.from_hub({name!r})" in refused(name)[0]
    assert "from_hub" not in refused(tmp_path / "no" / "such")[0]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("runs/train-1", "runs/train-001"),
        ("rnus/train-001", "runs/train-001"),
        ("rnus/trian-002/checkpoint", "runs/train-002/checkpoint"),
        ("model.safetensor", "model.safetensors"),
        ("runs/train-002/best", None),
        ("runs/demo", None),
        (".cach", None),
    ],
)
def test_a_misspelt_path_is_told_the_nearest_that_exists(tmp_path, monkeypatch, asked, meant):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/train-001", "runs/train-002/checkpoint", ".cache"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "model.safetensors").touch()
    for path in (Path(asked), tmp_path / asked):
        (line,) = refused(path)
        nearest = (
            path.parent / "x"
            if meant is None
            else Path(*path.parts[: -len(Path(asked).parts)], meant)
        )
        assert line.startswith(f"{path}: no such file or folder")
        assert (f"; did you mean {nearest}?" in line) == (meant is not None)
        assert ("did you mean" in line) == (meant is not None)
        # In a folder that is there, or a path of several: no name of the hub's.
        could_be_hubs = asked in ("rnus/train-001", "model.safetensor", ".cach")
        assert ("from_hub" in line) == (could_be_hubs and not path.is_absolute())


@pytest.mark.parametrize("name", ["gpt2-124m", "gpt2.py", "gpt2-124m/"])
def test_a_path_that_resembles_the_hubs_name_does_not_hide_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert refused("gpt2") == [
        f"gpt2: no such file or folder; did you mean {Path(name)}? gptrs.from_hub('gpt2') fetches "
        "a model from the Hugging Face hub"
    ]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("gpt2-")])
def test_a_preset_is_found_on_the_hub_under_its_name_there(tmp_path, monkeypatch, preset):
    monkeypatch.chdir(tmp_path)
    # Sizes by OpenAI's own names: https://huggingface.co/openai-community.
    hub_name = {768: "gpt2", 1024: "gpt2-medium", 1280: "gpt2-large", 1600: "gpt2-xl"}[
        PRESETS[preset].emb_dim
    ]
    assert f"gptrs.from_hub({hub_name!r})" in refused(preset)[0]
    asked = []
    random_gpt2().save_pretrained(tmp_path / "hub")
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **_: asked.append(name) or str(tmp_path / "hub"),
    )
    gptrs.from_hub(preset)
    assert asked == [hub_name]


def test_a_preset_without_published_weights_promises_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (message,) = refused("gpt3-175b")
    assert "from_hub" not in message
    assert "GPTModel('gpt3-175b') draws them" in message


def test_the_hub_is_asked_for_what_is_needed_and_its_folder_read(tmp_path, monkeypatch):
    random_gpt2().save_pretrained(tmp_path)
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = gptrs.from_hub("someone/gpt2", revision="v2", dtype=torch.bfloat16)
    assert model.tok_emb.weight.dtype == torch.bfloat16
    assert asked == [("someone/gpt2", "v2")]


def test_without_the_hub_an_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="'someone/gpt2' cannot be fetched"):
        gptrs.from_hub("someone/gpt2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install huggingface_hub"):
        gptrs.from_hub("someone/gpt2")


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

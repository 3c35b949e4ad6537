"""OpenAI's weights give what the book's function gives, and what transformers' GPT-2 says."""

import copy

import numpy as np
import pytest
import torch
from llms_from_scratch import ch04, ch05
from transformers import GPT2Config, GPT2LMHeadModel

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.weights.book import load_weights_into_gpt

CFG = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
TIED = {**CFG, "tie_embeddings": True, "init": "gpt2"}


@pytest.fixture(scope="module")
def gpt2():
    """A small GPT-2 of transformers, every weight random, norms and biases too."""
    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    config._attn_implementation = "eager"  # the only one that returns attention weights
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return model


@pytest.fixture
def params(gpt2):
    """The same weights as OpenAI's checkpoint has them; Conv1D stores [in, out] as they do."""
    state = {name: value.numpy() for name, value in gpt2.transformer.state_dict().items()}
    result = {
        "wte": state["wte.weight"],
        "wpe": state["wpe.weight"],
        "g": state["ln_f.weight"],
        "b": state["ln_f.bias"],
        "blocks": [],
    }
    for index in range(2):
        block = {}
        for norm in ("ln_1", "ln_2"):
            block[norm] = {
                "g": state[f"h.{index}.{norm}.weight"],
                "b": state[f"h.{index}.{norm}.bias"],
            }
        for part, layers in (("attn", ("c_attn", "c_proj")), ("mlp", ("c_fc", "c_proj"))):
            block[part] = {
                layer: {
                    "w": state[f"h.{index}.{part}.{layer}.weight"],
                    "b": state[f"h.{index}.{part}.{layer}.bias"],
                }
                for layer in layers
            }
        result["blocks"].append(block)
    return copy.deepcopy(result)


@pytest.fixture
def idx():
    return torch.randint(0, 61, (2, 11), generator=torch.Generator().manual_seed(1))


def test_it_loads_what_the_books_function_loads(params):
    theirs = ch04.GPTModel(CFG)
    ch05.load_weights_into_gpt(theirs, params)
    ours = GPTModel(CFG)
    load_weights_into_gpt(ours, params)
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_it_loads_into_the_books_model_too(params):
    theirs, expected = ch04.GPTModel(CFG), ch04.GPTModel(CFG)
    load_weights_into_gpt(theirs, params)
    ch05.load_weights_into_gpt(expected, params)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("cfg", [CFG, TIED], ids=["untied", "tied"])
def test_logits_hidden_states_and_attention_are_those_of_transformers(gpt2, params, idx, cfg):
    model = GPTModel(cfg).eval()
    load_weights_into_gpt(model, params)
    with torch.no_grad():
        theirs = gpt2(idx, output_hidden_states=True, output_attentions=True)
        ours = model(idx, return_hidden=True, return_attention=True)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(ours.logits, theirs.logits, **close)
    torch.testing.assert_close(model(idx), theirs.logits, **close)
    assert len(ours.hidden) == len(theirs.hidden_states)
    torch.testing.assert_close(ours.hidden, theirs.hidden_states, **close)
    torch.testing.assert_close(ours.attention, theirs.attentions, **close)


def test_a_tied_model_stays_tied(params):
    model = GPTModel(TIED)
    load_weights_into_gpt(model, params)
    assert model.out_head.weight is model.tok_emb.weight
    assert np.array_equal(model.out_head.weight.detach().numpy(), params["wte"])


def test_parameters_are_filled_in_place_so_an_optimizer_keeps_them(params):
    model = GPTModel(CFG)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    load_weights_into_gpt(model, params)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_models_dtype_is_kept(params):
    model = GPTModel(CFG).to(torch.bfloat16)
    load_weights_into_gpt(model, params)
    assert torch.equal(model.tok_emb.weight, torch.tensor(params["wte"]).to(torch.bfloat16))


@pytest.mark.filterwarnings("error")
def test_read_only_and_half_precision_arrays_load(params):
    params["wpe"] = params["wpe"].astype(np.float16)
    params["wte"].flags.writeable = False
    model = GPTModel(CFG)
    load_weights_into_gpt(model, params)
    assert np.array_equal(model.pos_emb.weight.detach().numpy(), params["wpe"].astype(np.float32))


def test_without_biases_on_either_side_the_rest_loads(params):
    for block in params["blocks"]:
        del block["attn"]["c_attn"]["b"]
    model = GPTModel({**CFG, "qkv_bias": False})
    load_weights_into_gpt(model, params)
    weight = model.trf_blocks[1].att.W_value.weight.detach().numpy()
    assert np.array_equal(weight, params["blocks"][1]["attn"]["c_attn"]["w"][:, 48:].T)


def refuses(cfg, params, dtype=torch.float32):
    """What `load_weights_into_gpt` says; asserts that the model is as it was."""
    model = GPTModel(cfg).to(dtype)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as error:
        load_weights_into_gpt(model, params)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    head, *problems = str(error.value).splitlines()
    assert head == "the weights do not fit the model, which is untouched:"
    return [problem.strip() for problem in problems]


def test_a_model_without_qkv_biases_is_told_once_how_to_get_them(params):
    problems = refuses({**CFG, "qkv_bias": False}, params)
    assert problems == [
        "attn.c_attn.b has QKV biases, and the model has none: build it with qkv_bias=True, "
        "as the presets gpt2-124m to gpt2-1558m do"
    ]


def test_every_mismatch_is_listed_in_one_error(params):
    params["wpe"] = params["wpe"][:8]
    params["blocks"][1]["attn"]["c_attn"]["w"] = params["blocks"][1]["attn"]["c_attn"]["w"][:, :-3]
    params["blocks"][0]["mlp"]["c_fc"]["b"] = params["blocks"][0]["mlp"]["c_fc"]["b"].astype(int)
    del params["g"]
    assert refuses(CFG, params) == [
        "pos_emb.weight is [16, 24], wpe gives [8, 24]",
        "blocks[0].mlp.c_fc.b has dtype int64; it must be floating point",
        "trf_blocks.1.att.W_query.weight is [24, 24], blocks[1].attn.c_attn.w gives [23, 24]",
        "trf_blocks.1.att.W_key.weight is [24, 24], blocks[1].attn.c_attn.w gives [23, 24]",
        "trf_blocks.1.att.W_value.weight is [24, 24], blocks[1].attn.c_attn.w gives [23, 24]",
        "final_norm.scale has nothing to load",
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_listed_with_all_else(params, value):
    params["wpe"][3, 5] = value
    params["blocks"][1]["mlp"]["c_fc"]["b"][7] = value
    params["blocks"][0]["attn"]["c_attn"]["w"][2, 30] = value  # Among the keys'.
    params["g"] = params["g"][:8]
    del params["blocks"][1]["ln_2"]["b"]
    assert refuses(CFG, params) == [
        "wpe: pos_emb.weight has values that are not finite in torch.float32",
        "final_norm.scale is [24], g gives [8]",
        "blocks[0].attn.c_attn.w: trf_blocks.0.att.W_key.weight has values that are not finite in "
        "torch.float32",
        "blocks[1].mlp.c_fc.b: trf_blocks.1.ff.layers.0.bias has values that are not finite in "
        "torch.float32",
        "trf_blocks.1.norm2.shift has nothing to load",
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, -1e9), (torch.float16, 65_520.0), (torch.float32, 1e39)]
)
def test_values_that_the_models_dtype_cannot_hold_are_refused(params, dtype, value):
    params["b"] = params["b"].astype(np.float64)
    params["b"][11] = value
    problem = f"b: final_norm.shift has values that are not finite in {dtype}"
    assert refuses(CFG, params, dtype) == [problem]
    larger = {torch.float16: torch.bfloat16, torch.float32: torch.float64}[dtype]
    model = GPTModel(CFG).to(larger)
    load_weights_into_gpt(model, params)
    assert model.final_norm.shift[11] == torch.tensor(value, dtype=larger)


def test_the_largest_value_of_a_dtype_is_loaded(params):
    params["b"][11] = 65_504
    model = GPTModel(CFG).to(torch.float16)
    load_weights_into_gpt(model, params)
    assert model.final_norm.shift[11] == 65_504


def test_arrays_that_no_layer_needs_are_listed(params):
    params["blocks"][1]["attn"]["c_attn"]["scale"] = np.ones(3)
    params["blocks"][0]["mlp"]["gate"] = {"w": np.ones((24, 96))}
    params["lm_head"] = params["wte"]
    params["hparams"] = {"n_layer": 2}  # Nothing that could be a weight.
    assert refuses(CFG, params) == [
        "blocks[0].mlp.gate.w is unexpected",
        "blocks[1].attn.c_attn.scale is unexpected",
        "lm_head is unexpected",
    ]


def test_more_or_fewer_blocks_than_the_models_are_refused(params):
    more = refuses({**CFG, "n_layers": 1}, params)
    assert len(more) == 16
    assert "blocks[1].ln_1.g gives trf_blocks.1.norm1.scale, which the model does not have" in more
    fewer = refuses({**CFG, "n_layers": 3}, params)
    assert len(fewer) == 16
    assert "trf_blocks.2.norm1.scale has nothing to load" in fewer


def test_weights_of_something_else_say_what_was_found(gpt2):
    (problem,) = refuses(CFG, gpt2.state_dict())
    assert problem.startswith("params has none of GPT-2's arrays; its keys are ['transformer.wte.")


def test_openais_sizes_all_have_a_preset_that_takes_their_shapes():
    for name, width, layers in [("gpt2-124m", 768, 12), ("gpt2-1558m", 1600, 48)]:
        cfg = GPTConfig.of(name)
        with torch.device("meta"):
            model = GPTModel(cfg)
        theirs = GPT2Config(n_embd=width, n_layer=layers, n_head=cfg.n_heads)
        with torch.device("meta"):
            expected = sum(p.numel() for p in GPT2LMHeadModel(theirs).parameters())
        assert sum(p.numel() for p in model.parameters()) == expected

"""The model is the book's, number for number; what it takes besides works; bad input says so."""

import copy
import io
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch import ch04
from safetensors.torch import load_model, save_model
from torch import nn

from gptrs.config import GPT_CONFIG_124M, GPTConfig
from gptrs.errors import ConfigError, DataError, TokenIdError
from gptrs.model.gpt import GPTModel, GPTOutput

SMALL = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 3,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TIED = {**SMALL, "tie_embeddings": True, "init": "gpt2"}


def tokens(*shape, vocab_size=61):
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(sum(shape)))


def build(cfg=SMALL, seed=123, of=GPTModel):
    torch.manual_seed(seed)
    return of(cfg)


@pytest.fixture(scope="module")
def book_124m():
    """The published example's model."""
    return build(GPT_CONFIG_124M).eval()


def compiled_pair():
    """A model, and it compiled, small enough to be traced in seconds."""
    torch._dynamo.reset()
    model = build({**SMALL, "n_layers": 1, "drop_rate": 0.0})
    return model, torch.compile(model, backend="aot_eager", fullgraph=True)


@pytest.fixture
def model():
    return build().eval()


# --- The book's numbers ---


def test_hello_i_am_goes_on_with_the_published_tokens(book_124m):
    idx = torch.tensor([[15496, 11, 314, 716]])
    with torch.no_grad():
        for _ in range(10):
            idx = torch.cat([idx, book_124m(idx)[:, -1].argmax(-1, keepdim=True)], dim=1)
    new = [27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]
    assert idx.tolist() == [[15496, 11, 314, 716, *new]]


def test_two_rows_of_four_tokens_give_2_4_50257_logits(book_124m):
    with torch.no_grad():
        logits = book_124m(torch.tensor([[6109, 3626, 6100, 345], [6109, 1110, 6622, 257]]))
    assert logits.shape == (2, 4, 50257)
    assert logits.dtype == torch.float32


def test_the_124m_model_has_163_009_536_parameters(book_124m):
    assert sum(parameter.numel() for parameter in book_124m.parameters()) == 163_009_536


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_a_seed_draws_the_books_weights_in_the_books_order(qkv_bias):
    cfg = {**SMALL, "qkv_bias": qkv_bias}
    theirs = build(cfg, of=ch04.GPTModel)
    state = torch.get_rng_state()
    ours = build(cfg)
    assert torch.equal(torch.get_rng_state(), state)
    expected = {k: v for k, v in theirs.state_dict().items() if not k.endswith("att.mask")}
    found = ours.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@settings(deadline=None, max_examples=20)
@given(batch=st.integers(1, 4), num_tokens=st.integers(1, 16), seed=st.integers(0, 2**32))
def test_logits_are_the_books_in_training_and_evaluation(batch, num_tokens, seed):
    ours, theirs = build(seed=seed), build(seed=seed, of=ch04.GPTModel)
    idx = tokens(batch, num_tokens)
    torch.manual_seed(seed)
    expected = theirs(idx)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    torch.testing.assert_close(ours(idx), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(ours.eval()(idx), theirs.eval()(idx), atol=1e-5, rtol=1e-5)


def train(model, num_steps=12):
    """Losses of `model` on the same batches, the same draws."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    losses = []
    for step in range(num_steps):
        idx = tokens(4, 9 + step % 2)
        loss = nn.functional.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_with_dropout_gives_the_books_losses():
    ours, theirs = train(build()), train(build(of=ch04.GPTModel))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0] - 0.2


def test_without_dropout_a_training_pass_draws_nothing():
    model = build({**SMALL, "drop_rate": 0.0}).train()
    state = torch.get_rng_state()
    assert torch.equal(model(tokens(2, 5)), model(tokens(2, 5)))
    assert torch.equal(torch.get_rng_state(), state)


# --- Initialisation and tying ---


def test_gpt2_init_has_its_spreads():
    cfg = {**SMALL, "emb_dim": 96, "vocab_size": 500, "qkv_bias": True, "init": "gpt2"}
    model = build(cfg)
    residual = 0.02 / (2 * cfg["n_layers"]) ** 0.5
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif name.endswith(("out_proj.weight", "ff.layers.2.weight")):
            assert parameter.std().item() == pytest.approx(residual, rel=0.05), name
        elif name.endswith(".weight"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert parameter.unique().tolist() == [float(name.endswith("scale"))], name


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_gpt2_init_starts_at_the_loss_of_guessing(tie_embeddings):
    model = build({**SMALL, "tie_embeddings": tie_embeddings, "init": "gpt2"}).eval()
    idx = tokens(8, 16)
    loss = nn.functional.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
    assert loss.item() == pytest.approx(torch.tensor(61.0).log().item(), abs=0.05)


def test_a_tied_model_has_one_matrix_under_two_names():
    model = build(TIED)
    assert model.out_head.weight is model.tok_emb.weight
    assert {"tok_emb.weight", "out_head.weight"} <= set(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double()):
        assert twin.out_head.weight is twin.tok_emb.weight


@pytest.mark.parametrize("left_out", [None, "out_head.weight", "tok_emb.weight"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_tied_model_loads_from_either_name_and_stays_tied(left_out, assign):
    state = {k: v.clone() for k, v in build(TIED).state_dict().items() if k != left_out}
    model = build(TIED, seed=7)
    model.load_state_dict(state, assign=assign)
    assert model.out_head.weight is model.tok_emb.weight
    torch.testing.assert_close(model.eval()(tokens(1, 5)), build(TIED).eval()(tokens(1, 5)))


def test_an_untied_checkpoint_is_refused_by_a_tied_model_and_changes_nothing():
    model = build(TIED)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"tok_emb.weight and out_head.weight differ"):
        model.load_state_dict(build(SMALL, seed=7).state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_untied_model_still_misses_a_left_out_head():
    state = build().state_dict()
    del state["out_head.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*out_head.weight"):
        build().load_state_dict(state)


def test_a_classifier_in_place_of_a_tied_head_stays():
    model = build(TIED)
    model.out_head = nn.Linear(24, 2)
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    assert model.out_head.weight.shape == (2, 24)
    assert model(tokens(1, 4)).shape == (1, 4, 2)


def test_safetensors_saves_and_loads_a_tied_model(tmp_path):
    model = build(TIED)
    save_model(model, str(tmp_path / "model.safetensors"))
    other = build(TIED, seed=7)
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other.tok_emb.weight, model.tok_emb.weight)
    assert other.out_head.weight is other.tok_emb.weight


# --- Checkpoints of others ---


@pytest.mark.parametrize("wrap", ["", "_orig_mod."])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_of_the_books_loads_strictly(wrap, assign):
    theirs = build(seed=9, of=ch04.GPTModel).eval()
    checkpoint = {wrap + key: value for key, value in theirs.state_dict().items()}
    keys = list(checkpoint)
    ours = build().eval()
    ours.load_state_dict(checkpoint, strict=True, assign=assign)
    assert list(checkpoint) == keys
    idx = tokens(2, 9)
    torch.testing.assert_close(ours(idx), theirs(idx), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_with_compiled_blocks_loads_strictly(model):
    wrapped = {k.replace(".att.", "._orig_mod.att."): v for k, v in model.state_dict().items()}
    other = build(seed=9)
    other.load_state_dict(wrapped, strict=True)
    assert torch.equal(other.eval()(tokens(1, 3)), model(tokens(1, 3)))


def test_a_model_with_compiled_blocks_loads_its_own_checkpoint(model):
    compiled = copy.deepcopy(model)
    compiled.trf_blocks[1] = torch.compile(compiled.trf_blocks[1], backend="eager")
    state = compiled.state_dict()
    assert any("_orig_mod." in key for key in state)
    compiled.load_state_dict(state, strict=True)


@pytest.mark.parametrize("extra", ["mask", "trf_blocks.0.att.masks", "_orig_mod.tok.weight"])
def test_a_foreign_key_is_refused(model, extra):
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**model.state_dict(), extra: torch.ones(1)})


def test_no_checkpoint_of_ours_carries_a_mask(model):
    assert not [key for key in model.state_dict() if "mask" in key]
    assert not list(model.buffers())


# --- Documents, positions, hidden states, attention ---


@st.composite
def packed_batches(draw):
    batch, num_tokens = draw(st.integers(1, 3)), draw(st.integers(1, 16))
    cuts = (
        draw(st.sets(st.integers(1, batch * num_tokens - 1))) if batch * num_tokens > 1 else set()
    )
    rows = {row * num_tokens for row in range(batch + 1)}
    repeated = draw(st.lists(st.sampled_from(sorted(rows)), max_size=2))
    return batch, num_tokens, sorted([*(cuts | rows), *repeated])


@settings(deadline=None, max_examples=40)
@given(packed_batches(), st.sampled_from([torch.int32, torch.int64]))
def test_packed_documents_are_as_each_alone(packed, dtype):
    batch, num_tokens, bounds = packed
    model = build().eval()
    idx = tokens(batch, num_tokens)
    logits = model(idx, cu_seqlens=torch.tensor(bounds, dtype=dtype)).flatten(0, 1)
    for start, end in pairwise(bounds):
        if start < end:
            alone = model(idx.flatten()[None, start:end])[0]
            torch.testing.assert_close(logits[start:end], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("bounds", "found"),
    [
        ([0, 4], r"is \[0, 4\]; it must run from 0 to batch \* tokens = 8"),
        ([1, 4, 8], "must run from 0"),
        ([], "must run from 0"),
        ([0, 4, 2, 8], "must not decrease"),
        ([0, 5, 8], "it must have 4, where row 1 starts"),
    ],
)
def test_bad_document_bounds_are_refused(model, bounds, found):
    with pytest.raises(DataError, match=found):
        model(tokens(2, 4), cu_seqlens=torch.tensor(bounds, dtype=torch.int32))


def test_position_ids_choose_the_position_embeddings(model):
    idx = tokens(2, 5)
    assert torch.equal(model(idx, position_ids=torch.arange(5)), model(idx))
    shifted = copy.deepcopy(model)
    shifted.pos_emb.weight.data[:5] = model.pos_emb.weight[3:8]
    position_ids = torch.arange(3, 8)
    expected = shifted(idx)
    assert torch.equal(model(idx, position_ids=position_ids), expected)
    assert torch.equal(model(idx, position_ids=position_ids.expand(2, 5)), expected)
    assert not torch.equal(expected, model(idx))


def test_one_token_at_two_positions_gives_two_different_inputs(model):
    out = model(torch.tensor([[7, 7], [9, 9]]), return_hidden=True)
    inputs = out.hidden[0]
    assert not torch.equal(inputs[0, 0], inputs[0, 1])
    position_0 = inputs[:, 0] - model.tok_emb.weight[[7, 9]]
    torch.testing.assert_close(position_0, model.pos_emb.weight[0].expand(2, -1))


def test_hidden_states_run_from_the_embeddings_to_the_final_norm(model):
    idx = tokens(2, 5)
    seen = []
    model.drop_emb.register_forward_hook(lambda *args: seen.append(args[2]))
    for block in model.trf_blocks[:-1]:
        block.register_forward_hook(lambda *args: seen.append(args[2]))
    model.final_norm.register_forward_hook(lambda *args: seen.append(args[2]))
    out = model(idx, return_hidden=True)
    assert isinstance(out, GPTOutput)
    assert out.attention is None
    assert len(out.hidden) == SMALL["n_layers"] + 1
    assert all(map(torch.equal, out.hidden, seen))
    assert torch.equal(out.logits, model(idx))
    assert torch.equal(model.hidden_states(idx), out.hidden[-1])


def test_attention_weights_are_those_that_make_the_logits(model):
    out = model(tokens(2, 5), return_attention=True)
    assert out.hidden is None
    assert [w.shape for w in out.attention] == [(2, 3, 5, 5)] * SMALL["n_layers"]
    for weights in out.attention:
        assert torch.equal(weights, weights.tril())
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    torch.testing.assert_close(out.logits, model(tokens(2, 5)))


def test_attention_weights_are_zero_between_documents(model):
    bounds = torch.tensor([0, 2, 5], dtype=torch.int32)
    (weights, *_) = model(tokens(1, 5), cu_seqlens=bounds, return_attention=True).attention
    assert not weights[:, :, 2:, :2].any()
    assert (weights[:, :, 4, 2:] > 0).all()


# --- Hooks, compile, devices, copies ---


def test_every_module_is_called_so_hooks_on_any_of_them_run(model):
    called = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(tokens(1, 4))
    assert called == {name for name, _ in model.named_modules()}


def test_the_blocks_are_a_sequential_whose_members_take_one_tensor(model):
    assert type(model.trf_blocks) is nn.Sequential
    without_second = copy.deepcopy(model)
    without_second.trf_blocks = model.trf_blocks[:1] + model.trf_blocks[2:]
    without_second.load_state_dict(without_second.state_dict())
    expected = without_second(tokens(1, 4))
    model.trf_blocks[1] = nn.Identity()
    assert torch.equal(model(tokens(1, 4)), expected)


def test_it_compiles_as_one_graph_for_any_shape():
    model, compiled = compiled_pair()
    for shape in [(2, 5), (3, 7), (1, 1)]:  # the second has symbolic sizes
        torch.testing.assert_close(compiled(tokens(*shape)), model(tokens(*shape)))


def test_it_compiles_as_one_graph_with_documents_and_everything_returned():
    model, compiled = compiled_pair()
    bounds = torch.tensor([0, 3, 5, 10], dtype=torch.int32)
    asked = {"cu_seqlens": bounds, "return_hidden": True, "return_attention": True}
    asked["position_ids"] = torch.arange(5)
    torch.testing.assert_close(compiled(tokens(2, 5), **asked), model(tokens(2, 5), **asked))


def test_a_compiled_model_trains_as_the_plain_one():
    model, compiled = compiled_pair()
    plain = train(copy.deepcopy(model), num_steps=3)
    assert train(compiled, num_steps=3) == pytest.approx(plain, rel=1e-5)


def test_it_runs_on_the_meta_device():
    with torch.device("meta"):
        model = GPTModel({**TIED, "qkv_bias": True})
        logits = model(torch.zeros(2, 5, dtype=torch.int64))
    assert logits.shape == (2, 5, 61)
    assert logits.is_meta


def test_a_meta_model_loads_weights_and_is_tied_again():
    with torch.device("meta"):
        model = GPTModel(TIED)
    model.to_empty(device="cpu").load_state_dict(build(TIED).state_dict())
    assert model.out_head.weight is model.tok_emb.weight
    assert torch.equal(model.eval()(tokens(1, 4)), build(TIED).eval()(tokens(1, 4)))


def test_copies_pickles_and_saved_models_say_the_same(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    expected = model(tokens(2, 5))
    saved = torch.load(buffer, weights_only=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved):
        assert torch.equal(twin(tokens(2, 5)), expected)
        twin.load_state_dict(build(of=ch04.GPTModel).state_dict())
        assert twin.cfg == model.cfg


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_logits_have_the_weights_dtype(dtype):
    assert build().to(dtype).eval()(tokens(1, 4)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_says_the_same_on_a_gpu(model):
    idx = tokens(2, 9)
    on_gpu = copy.deepcopy(model).to("cuda")
    torch.testing.assert_close(on_gpu(idx.cuda()).cpu(), model(idx), atol=1e-4, rtol=1e-4)


def test_a_config_a_dictionary_and_a_preset_all_build():
    assert build(GPTConfig.of(SMALL)).cfg == build(SMALL).cfg
    with torch.device("meta"):
        assert GPTModel("gpt2-124m").cfg == GPTConfig.of("gpt2-124m")


# --- Bad input ---


@pytest.mark.parametrize("outside", [61, 10_000, -1])
def test_a_token_id_outside_the_vocabulary_says_where_and_what(model, outside):
    idx = tokens(2, 4)
    idx[1, 2] = outside
    with pytest.raises(TokenIdError) as error:
        model(idx)
    assert str(error.value) == f"token id {outside} at [1, 2] is outside 0..60"


def test_ids_run_from_0():
    model = build({**SMALL, "vocab_size": 6})
    with pytest.raises(TokenIdError, match=r"^token id 6 at \[0, 5\] is outside 0\.\.5$"):
        model(torch.tensor([[1, 2, 3, 4, 5, 6]]))


def test_an_index_error_of_somebodys_own_arrives_unchanged(model):
    def fail(*_):
        raise IndexError("mine")

    model.tok_emb.register_forward_hook(fail)
    with pytest.raises(IndexError, match=r"^mine$") as error:
        model(tokens(1, 4))
    assert type(error.value) is IndexError


def test_a_position_outside_the_context_says_where_and_what(model):
    with pytest.raises(DataError, match=r"position id 16 at \[1\] is outside 0..15"):
        model(tokens(1, 2), position_ids=torch.tensor([0, 16]))


def test_position_ids_must_fit_the_input(model):
    with pytest.raises(DataError, match=r"shape \[3\]; .* it must be \[4\] or \[2, 4\]"):
        model(tokens(2, 4), position_ids=torch.arange(3))


@pytest.mark.parametrize(
    ("in_idx", "found"),
    [
        (torch.zeros(4, dtype=torch.int64), r"shape \[4\]; it must be \[batch, tokens\]; add the"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"shape \[1, 2, 3\]; it must be"),
        (torch.tensor(3), r"shape \[\]; it must be"),
        (torch.zeros(1, 4), r"dtype torch.float32; it must be torch.int64 or torch.int32"),
        (torch.zeros(1, 4, dtype=torch.bool), r"dtype torch.bool"),
        ([[1, 2]], "in_idx is a list; it must be a tensor of integers"),
    ],
)
def test_input_of_another_shape_or_type_says_so(model, in_idx, found):
    with pytest.raises(DataError, match=found):
        model(in_idx)


def test_int32_ids_are_as_good(model):
    assert torch.equal(model(tokens(2, 4).int()), model(tokens(2, 4)))


def test_an_input_longer_than_the_context_says_both_numbers(model):
    with pytest.raises(DataError, match="the input has 17 tokens, more than context_length 16"):
        model(tokens(1, 17))

"""Whole models with each kind of positions: cached, batched, long, packed, compiled, bfloat16."""

import io
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers.models.xlm.modeling_xlm import create_sinusoidal_embeddings

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, DataError
from gptrs.model.gpt import GPTModel

CONTEXT = 16
SHAPE = {
    "vocab_size": 61,
    "context_length": CONTEXT,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
}
DISTANT = {"t5": 20, "relative_key": 5, "relative_key_query": 5, "transformer_xl": 5}
"""Kinds that take a rel_max_distance, and one that binds within 40 tokens."""
KINDS = [
    *[(pos, None) for pos in ("learned", "sinusoidal", "rope", "alibi", *DISTANT, "none")],
    *DISTANT.items(),
]
EVERY_KIND = pytest.mark.parametrize(("pos", "far"), KINDS)
ENDLESS = [
    (pos, far) for pos, far in KINDS if GPTConfig(pos=pos, rel_max_distance=far).max_tokens is None
]
SEEDS = range(20)
FEW_SEEDS = range(8)  # for each of the 13 kinds
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def build(pos, far=None, seed=0, **changes):
    """A model in which every weight matters: what starts at 0 or 0.02 would hide its effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPTModel({**SHAPE, "pos": pos, "rel_max_distance": far, **changes}).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.25 * torch.randn(parameter.shape, generator=generator)
    return model


@cache
def built(pos, far=None):
    """The same model for all tests that leave it as it is."""
    return build(pos, far)


def tokens(*shape, seed=0):
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))


def cuts(total, seed):
    """`total` in a few random parts, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randint(0, total + 1, (int(seed % 5),), generator=generator).tolist()
    return [end - start for start, end in pairwise([0, *sorted(inner), total])]


# --- Cached, batched, long ---


@EVERY_KIND
@torch.no_grad()
def test_however_the_tokens_are_cut_the_logits_are_those_of_one_pass(pos, far):
    model = built(pos, far)
    for seed in FEW_SEEDS:
        idx = tokens(2, CONTEXT, seed=seed)
        parts = cuts(CONTEXT, seed) if seed else [1] * CONTEXT
        cache = model.new_cache(2)
        logits = [model(part, cache=cache) for part in idx.split(parts, dim=1)]
        assert_close(torch.cat(logits, dim=1), model(idx), **CLOSE)


@EVERY_KIND
@torch.no_grad()
def test_rows_of_different_lengths_each_go_on_as_if_alone(pos, far):
    model = built(pos, far)
    for seed in FEW_SEEDS:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, 11, (3,), generator=generator).tolist()
        num_new = 1 + seed % 6
        read, new = tokens(3, 10, seed=seed), tokens(3, num_new, seed=seed + 100)
        cache = model.new_cache(3)
        model(read, cache=cache)
        cache.lengths[:] = lengths  # forgets the rest
        logits = model(new, cache=cache)
        for row, length in enumerate(lengths):
            alone = model(torch.cat([read[row, :length], new[row]])[None])
            assert_close(logits[row], alone[0, length:], **CLOSE)


@EVERY_KIND
@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(pos, far):
    model = built(pos, far)
    for seed in FEW_SEEDS:
        idx = tokens(4, 1 + seed % CONTEXT, seed=seed)
        alone = torch.cat([model(row[None]) for row in idx])
        assert_close(model(idx), alone, **CLOSE)


@pytest.mark.parametrize(("pos", "far"), ENDLESS)
@torch.no_grad()
def test_beyond_the_trained_length_it_is_the_model_of_a_longer_context(pos, far):
    short = built(pos, far)
    longer = build(pos, far, context_length=40)
    longer.load_state_dict(short.state_dict())
    for seed in FEW_SEEDS:
        idx = tokens(2, 40 - seed, seed=seed)
        logits = short(idx)
        assert_close(logits, longer(idx), atol=0.0, rtol=0.0)
        # Nor does what comes later change what was said within the context.
        assert_close(logits[:, :CONTEXT], short(idx[:, :CONTEXT]), **CLOSE)


@pytest.mark.parametrize(("pos", "far"), sorted(set(KINDS) - set(ENDLESS), key=str))
def test_where_a_table_ends_so_does_the_input(pos, far):
    model = built(pos, far)
    assert model(tokens(1, CONTEXT)).shape == (1, CONTEXT, 61)
    with pytest.raises(DataError, match=r"17 tokens, more than context_length 16"):
        model(tokens(1, CONTEXT + 1))


# --- Documents and position ids ---


@EVERY_KIND
@torch.no_grad()
def test_packed_documents_are_as_each_alone(pos, far):
    model = built(pos, far)
    for seed in FEW_SEEDS:
        idx = tokens(2, CONTEXT, seed=seed)
        lengths = [*cuts(CONTEXT, seed), *cuts(CONTEXT, seed + 1)]
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        logits = model(idx, cu_seqlens=bounds).flatten(0, 1)
        for start, end in pairwise(bounds.tolist()):
            if start < end:
                alone = model(idx.flatten()[None, start:end])[0]
                assert_close(logits[start:end], alone, **CLOSE)


@torch.no_grad()
def test_sinusoids_are_a_learned_table_of_fixed_numbers():
    sinusoidal = built("sinusoidal")
    learned = build("learned", context_length=200)
    table = create_sinusoidal_embeddings(200, SHAPE["emb_dim"], learned.pos_emb.weight.data)
    learned.load_state_dict({**sinusoidal.state_dict(), "pos_emb.weight": table})
    for seed in SEEDS:
        idx = tokens(2, 9, seed=seed)
        assert_close(sinusoidal(idx), learned(idx), **CLOSE)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 200, (2, 9), generator=generator)
        for position_ids in (ids, ids[0]):
            logits = sinusoidal(idx, position_ids=position_ids)
            assert_close(logits, learned(idx, position_ids=position_ids), **CLOSE)


@torch.no_grad()
def test_rope_knows_distances_alone():
    model = built("rope")
    for seed in SEEDS:
        idx = tokens(2, 9, seed=seed)
        here = torch.arange(9)
        there = torch.stack([here, here + 1 + 7 * seed])
        assert_close(model(idx, position_ids=there), model(idx), atol=1e-3, rtol=1e-3)
        assert (model(idx, position_ids=2 * here) - model(idx)).abs().max() > 1e-2


@pytest.mark.parametrize("pos", ["learned", "sinusoidal", "rope"])
@torch.no_grad()
def test_position_ids_of_each_row_are_its_own(pos):
    model = built(pos)
    ids = torch.stack([torch.arange(6), torch.arange(6).flip(0), torch.arange(4, 10)])
    idx = tokens(3, 6)
    logits = model(idx, position_ids=ids)
    for row in range(3):
        alone = model(idx[row : row + 1], position_ids=ids[row])
        assert_close(logits[row : row + 1], alone, **CLOSE)
    assert (logits[1] - model(idx)[1]).abs().max() > 1e-2


@pytest.mark.parametrize("pos", ["alibi", *DISTANT, "none"])
def test_where_only_distances_count_position_ids_are_refused(pos):
    found = rf'position_ids were given, but pos is "{pos}": only learned, sinusoidal, rope number'
    with pytest.raises(ConfigError, match=found):
        built(pos)(tokens(1, 4), position_ids=torch.arange(4))


# --- What can be seen and saved ---


@EVERY_KIND
@torch.no_grad()
def test_attention_weights_are_causal_sum_to_1_and_change_nothing(pos, far):
    model = built(pos, far)
    for seed in FEW_SEEDS:
        idx = tokens(2, 1 + seed % CONTEXT, seed=seed)
        out = model(idx, return_attention=True)
        assert_close(out.logits, model(idx), **CLOSE)
        assert len(out.attention) == 2
        for weights in out.attention:
            assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
            assert not weights.triu(1).any()


ADDED = {
    "learned": {"pos_emb.weight": (CONTEXT, 24)},
    "t5": {"pos_bias.weight": (32, 3)},
    "relative_key": {"att.positions.distance_embedding.weight": (CONTEXT, 8)},
    "relative_key_query": {"att.positions.distance_embedding.weight": (CONTEXT, 8)},
    "transformer_xl": {
        "att.positions.u": (3, 8),
        "att.positions.v": (3, 8),
        "att.positions.W_r.weight": (24, 24),
    },
}
"""What a kind adds to the keys of the kind that adds nothing; the tables of relative keys end at
rel_max_distance where there is one."""


@EVERY_KIND
def test_the_state_dict_holds_the_kinds_weights_and_no_more(pos, far):
    shapes = {key: tuple(value.shape) for key, value in built(pos, far).state_dict().items()}
    expected = {key: tuple(value.shape) for key, value in built("none").state_dict().items()}
    for key, shape in ADDED.get(pos, {}).items():
        prefixes = ["trf_blocks.0.", "trf_blocks.1."] if key.startswith("att.") else [""]
        size = (far, *shape[1:]) if far and "distance_embedding" in key else shape
        expected.update({prefix + key: size for prefix in prefixes})
    assert shapes == expected
    assert not list(built(pos, far).buffers())


@EVERY_KIND
@torch.no_grad()
def test_a_saved_model_says_the_same_when_loaded(pos, far):
    model, other = built(pos, far), build(pos, far, seed=1)
    assert not torch.equal(other(tokens(2, 9)), model(tokens(2, 9)))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(tokens(2, 9)), model(tokens(2, 9)))


@EVERY_KIND
def test_on_the_meta_device_a_model_runs_and_only_parameters_are_to_fill(pos, far):
    model = built(pos, far)
    with torch.device("meta"):
        empty = GPTModel(model.cfg).eval()
        assert empty(torch.zeros(2, 7, dtype=torch.int64)).shape == (2, 7, 61)
    empty.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(empty(tokens(2, 9)), model(tokens(2, 9)))


# --- Gradients ---


def gradients(model, run=None, seed=0):
    """Of one loss over 16 tokens, by parameter; `run` is the forward pass, if not the model's."""
    model.zero_grad()
    run = model if run is None else run
    logits = run(tokens(3, CONTEXT, seed=seed))
    cross_entropy(logits.flatten(0, 1), tokens(3 * CONTEXT, seed=seed + 1)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@EVERY_KIND
def test_every_parameter_gets_a_gradient(pos, far):
    for name, gradient in gradients(build(pos, far)).items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("pos", ["rope", "alibi", *DISTANT])
def test_gradients_are_those_of_finite_differences(pos):
    tiny = {"vocab_size": 5, "context_length": 4, "emb_dim": 4, "n_heads": 2, "n_layers": 1}
    model = build(pos, **tiny).double()
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if ".ff." not in name
    }
    idx = torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1]])

    def logits(*values):
        return functional_call(model, dict(zip(parameters, values, strict=True)), idx)

    assert torch.autograd.gradcheck(logits, tuple(parameters.values()), fast_mode=True)


# --- bfloat16 ---


@EVERY_KIND
@torch.no_grad()
def test_a_bfloat16_model_says_nearly_the_same(pos, far):
    model = built(pos, far)
    rounded = build(pos, far)
    rounded.load_state_dict(model.state_dict())
    rounded.bfloat16()
    idx = tokens(8, CONTEXT)
    logits, expected = rounded(idx), model(idx)
    assert logits.dtype == torch.bfloat16
    error = (logits.float() - expected).pow(2).mean() / expected.pow(2).mean()
    assert error.sqrt() < 0.05


@EVERY_KIND
def test_under_autocast_it_trains_with_nearly_the_same_gradients(pos, far):
    model = build(pos, far)
    expected = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        cosine = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.98, name


# --- torch.compile ---


@pytest.mark.parametrize("pos", [pos for pos, far in KINDS if far is None])
def test_it_compiles_as_one_graph_and_stays_compiled(pos):
    torch._dynamo.reset()
    model = build(pos, n_layers=1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(gradients(model, compiled), gradients(model), **CLOSE)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(gradients(model, compiled, seed=1), gradients(model, seed=1), **CLOSE)
        assert_close(compiled(tokens(3, CONTEXT)), model(tokens(3, CONTEXT)), **CLOSE)


@pytest.mark.parametrize(
    ("pos", "lengths"),
    [*((pos, [0, 0]) for pos, far in KINDS if far is None), ("learned", [3, 5]), ("t5", [3, 5])],
)
@torch.no_grad()
def test_compiled_it_goes_on_from_a_cache_token_by_token_in_two_graphs(pos, lengths):
    torch._dynamo.reset()
    # A slot stays free: a full cache is contiguous, which can take a graph of its own.
    model = build(pos, n_layers=1, context_length=26)
    graphs = CompileCounter()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    idx, cache = tokens(2, 25), model.new_cache(2)
    model(idx[:, :5], cache=cache)
    cache.lengths[:] = lengths  # forgets the rest
    rows = [idx[row, length : length + 20] for row, length in enumerate(lengths)]
    logits = [compiled(token, cache=cache) for token in torch.stack(rows).split(1, dim=1)]
    expected = [model(idx)[row, length : length + 20] for row, length in enumerate(lengths)]
    assert_close(torch.cat(logits, dim=1), torch.stack(expected), **CLOSE)
    assert graphs.frame_count <= 2  # Of the first token, and of every other.


# --- Why positions are there ---


@torch.no_grad()
def largest_change(model):
    """How far the last logits move when the earlier tokens are put into another order, 20 times."""
    changes = []
    for seed in SEEDS:
        *earlier, last = torch.randperm(61, generator=torch.Generator().manual_seed(seed))[:9]
        reordered = torch.stack([*earlier[3:], *earlier[:3], last])
        ordered = torch.stack([*earlier, last])
        logits = model(torch.stack([ordered, reordered]))[:, -1]
        changes.append((logits[0] - logits[1]).abs().max().item())
    return changes


def test_without_positions_one_block_cannot_tell_the_order_of_earlier_tokens():
    assert max(largest_change(build("none", n_layers=1))) < 1e-5


def test_without_positions_two_blocks_can():
    assert min(largest_change(build("none", n_layers=2))) > 1e-3


@pytest.mark.parametrize(("pos", "far"), [kind for kind in KINDS if kind[0] != "none"])
def test_with_positions_one_block_can_tell_the_order(pos, far):
    assert min(largest_change(build(pos, far, n_layers=1))) > 1e-4

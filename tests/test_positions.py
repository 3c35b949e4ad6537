"""Each kind of positions is its reference, number for number.

References: transformers 5's own modules, and, of those that it no longer has, the arrays that
`fixtures/make_positions.py` took from version 4.57.6.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import BloomConfig, LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.xlm.modeling_xlm import create_sinusoidal_embeddings

from gptrs.model.layers import Attend, MultiHeadAttention, masked
from gptrs.model.positions import (
    AlibiBias,
    RelativeKey,
    SinusoidalEmbedding,
    T5Bias,
    TransformerXLKey,
    alibi_slopes,
    rotate,
    rotation,
    t5_buckets,
)

FIXTURES = Path(__file__).parent / "fixtures"
BATCH = 2
# Heads, their width, tokens.
SHAPES = [(1, 2, 1), (1, 8, 5), (2, 4, 7), (3, 6, 12), (4, 16, 33), (5, 4, 64), (12, 8, 20)]


def seeds():
    """A shape and a seed for each of 21 comparisons."""
    return [(*shape, seed) for seed in range(3) for shape in SHAPES]


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def redraw(module, seed):
    """Weights under which every part of the scores is of the order of 1."""
    for index, parameter in enumerate(module.parameters()):
        drawn = draw(*parameter.shape, seed=1000 * seed + index)
        parameter.data = drawn / parameter.shape[-1] ** 0.5


def attention(linears, num_heads, **options):
    """Ours with the weights of four linear layers: query, key, value, output."""
    width = linears[0].weight.shape[0]
    ours = MultiHeadAttention(width, width, None, 0.0, num_heads, True, **options)
    mine = (ours.W_query, ours.W_key, ours.W_value, ours.out_proj)
    for layer, theirs in zip(mine, linears, strict=True):
        layer.weight = theirs.weight
        layer.bias = nn.Parameter(torch.zeros(width) if theirs.bias is None else theirs.bias.data)
    return ours.to(linears[0].weight.dtype).eval()


def linear(weight, bias=None):
    """A layer with these weights, float64 as the fixtures' outputs are."""
    layer = nn.Linear(*reversed(weight.shape), bias=bias is not None)
    layer.weight.data = torch.as_tensor(weight).double()
    if bias is not None:
        layer.bias.data = torch.as_tensor(bias).double()
    return layer


@torch.no_grad()
def check(ours, x, attend, output, weights=None, atol=2e-6):
    """Ours gives this output on both its ways, and these attention weights."""
    assert_close(ours(x, attend), output, atol=atol, rtol=1e-5)
    collected = []
    fields = {name: getattr(attend, name) for name in attend.__slots__}
    assert_close(ours(x, Attend(**{**fields, "weights": collected})), output, atol=atol, rtol=1e-5)
    if weights is not None:
        assert_close(collected[0], weights, atol=1e-6, rtol=1e-5)


def causal(num_queries, num_keys=None):
    """True where a query sees a key; the queries are the last ones."""
    num_keys = num_keys or num_queries
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)


def additive(mask):
    """As transformers takes masks: 0 or the lowest number [1, 1, T, S]."""
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]


# --- Sinusoids ---


@pytest.mark.parametrize("emb_dim", [2, 4, 6, 10, 24, 64, 100, 256, 768])
def test_sinusoids_are_xlms(emb_dim):
    expected = create_sinusoidal_embeddings(300, emb_dim, torch.empty(300, emb_dim))
    ours = SinusoidalEmbedding(emb_dim)
    assert_close(ours(torch.arange(300)), expected, atol=1e-6, rtol=1e-6)
    for seed in range(3):
        ids = torch.randint(0, 300, (3, 7), generator=torch.Generator().manual_seed(seed))
        assert_close(ours(ids), expected[ids], atol=1e-6, rtol=1e-6)


def test_sinusoids_are_as_exact_far_out():
    ids = np.array([4_000, 65_537, 1_000_003])
    angles = ids[:, None] / 10000.0 ** (np.arange(0, 64, 2) / 64)
    expected = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(ids), 64)
    assert_close(
        SinusoidalEmbedding(64)(torch.from_numpy(ids)).double(),
        torch.from_numpy(expected),
        atol=1e-6,
        rtol=0.0,
    )


# --- RoPE ---


def llama(num_heads, head_dim, seed=0):
    """Llama's attention and its angles."""
    config = LlamaConfig(
        hidden_size=num_heads * head_dim,
        num_attention_heads=num_heads,
        attention_bias=seed % 2 == 1,
        max_position_embeddings=8192,
        attn_implementation="eager",
    )
    module = LlamaAttention(config, layer_idx=0).eval()
    redraw(module, seed)
    return module, LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("head_dim", [2, 4, 6, 16, 64, 128])
def test_queries_and_keys_turn_as_llamas_do(head_dim):
    _, angles = llama(1, head_dim)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        position_ids = torch.randint(0, 4000, (BATCH, 9), generator=generator)
        position_ids[:, -1] = 4000
        q, k = draw(2, BATCH, 3, 9, head_dim, seed=seed)
        expected = apply_rotary_pos_emb(q, k, *angles(q, position_ids))
        turn = rotation(position_ids, head_dim)
        assert_close((rotate(q, turn), rotate(k, turn)), expected, atol=0.0, rtol=0.0)
        for row in range(BATCH):  # ids [T], for all rows alike
            one = rotate(q[row : row + 1], rotation(position_ids[row], head_dim))
            assert_close(one, expected[0][row : row + 1], atol=0.0, rtol=0.0)


@pytest.mark.parametrize(("num_heads", "head_dim", "num_tokens", "seed"), seeds())
def test_attention_with_rope_is_llamas(num_heads, head_dim, num_tokens, seed):
    theirs, angles = llama(num_heads, head_dim, seed)
    x = draw(BATCH, num_tokens, num_heads * head_dim, seed=seed)
    position_ids = torch.arange(num_tokens) + 1000 * seed
    with torch.no_grad():
        output, weights = theirs(x, angles(x, position_ids[None]), additive(causal(num_tokens)))
    ours = attention((theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj), num_heads)
    check(ours, x, Attend(rotation=rotation(position_ids, head_dim)), output, weights)


def test_what_is_turned_keeps_its_dtype():
    x = draw(1, 1, 5, 8, seed=0)
    turn = rotation(torch.arange(5), 8)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        turned = rotate(x.to(dtype), turn)
        assert turned.dtype == dtype
        assert_close(turned, rotate(x.to(dtype).float(), turn).to(dtype))


# --- ALiBi ---


@pytest.mark.parametrize("n_heads", range(1, 41))
def test_alibis_slopes_are_blooms(n_heads):
    expected = build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float32)[:, 0, 1]
    assert_close(alibi_slopes(n_heads), expected, atol=0.0, rtol=1e-6)


@pytest.mark.parametrize(("num_heads", "head_dim", "num_tokens", "seed"), seeds())
def test_attention_with_alibi_is_blooms(num_heads, head_dim, num_tokens, seed):
    width = num_heads * head_dim
    config = BloomConfig(
        hidden_size=width, n_head=num_heads, hidden_dropout=0.0, attention_dropout=0.0
    )
    theirs = BloomAttention(config, layer_idx=0).eval()
    redraw(theirs, seed)
    x = draw(BATCH, num_tokens, width, seed=seed)
    with torch.no_grad():
        output, weights = theirs(
            x,
            residual=torch.zeros_like(x),
            alibi=build_alibi_tensor(torch.ones(BATCH, num_tokens), num_heads, torch.float32),
            attention_mask=additive(causal(num_tokens)),
        )
    # Bloom's rows are q, k, v of the first head, of the second, ...
    fused = theirs.query_key_value
    weight = fused.weight.data.view(num_heads, 3, head_dim, width).transpose(0, 1)
    bias = fused.bias.data.view(num_heads, 3, head_dim).transpose(0, 1)
    qkv = [
        linear(w.reshape(width, width), b.flatten()).float()
        for w, b in zip(weight, bias, strict=True)
    ]
    ours = attention((*qkv, theirs.dense), num_heads)
    bias = AlibiBias(num_heads)(num_tokens, num_tokens, None, x)
    check(ours, x, Attend(masked(bias, Attend())), output, weights)


# --- T5 ---


@pytest.mark.parametrize("max_distance", [17, 18, 20, 32, 50, 64, 100, 128, 200, 256, 1000, 4096])
def test_buckets_of_distances_are_t5s(max_distance):
    distance = torch.arange(2001)
    expected = T5Attention._relative_position_bucket(
        -distance, bidirectional=False, num_buckets=32, max_distance=max_distance
    )
    assert torch.equal(t5_buckets(distance, max_distance), expected)


def t5(num_heads, head_dim, max_distance=128, seed=0):
    config = T5Config(
        d_model=num_heads * head_dim,
        d_kv=head_dim,
        num_heads=num_heads,
        relative_attention_max_distance=max_distance,
        dropout_rate=0.0,
        is_decoder=True,
        attn_implementation="eager",
    )
    module = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    redraw(module, seed)
    return module


def t5_bias(theirs, max_distance=128):
    ours = T5Bias(theirs.n_heads, max_distance)
    ours.weight = theirs.relative_attention_bias.weight
    return ours


@pytest.mark.parametrize(("num_heads", "head_dim", "num_tokens", "seed"), seeds())
def test_attention_with_t5s_bias_is_t5s(num_heads, head_dim, num_tokens, seed):
    max_distance = (20, 40, 128)[seed]
    theirs = t5(num_heads, head_dim, max_distance, seed)
    x = draw(BATCH, num_tokens, num_heads * head_dim, seed=seed)
    with torch.no_grad():
        output, weights = theirs(x, mask=additive(causal(num_tokens)))[::2]
    ours = attention((theirs.q, theirs.k, theirs.v, theirs.o), num_heads, scale=1.0)
    bias = t5_bias(theirs, max_distance)(num_tokens, num_tokens, None, x)
    check(ours, x, Attend(masked(bias, Attend())), output, weights)


@torch.no_grad()
@pytest.mark.parametrize("past", [0, 1, 2, 5, 16, 130])
@pytest.mark.parametrize("num_queries", [1, 2, 7, 20])
def test_biases_behind_a_cache_are_those_of_the_last_rows(num_queries, past):
    num_keys = past + num_queries
    seen = causal(num_queries, num_keys)
    theirs = t5(3, 4)
    expected = theirs.compute_bias(num_queries, num_keys, past_seen_tokens=past)[0]
    bias = t5_bias(theirs)(num_queries, num_keys, None, expected)
    assert torch.equal(bias[:, seen], expected[:, seen])
    # Rows of several lengths: each as if alone.
    starts = torch.tensor([past, past // 2, 0])
    biases = t5_bias(theirs)(num_queries, num_keys, starts, expected)
    alibis = AlibiBias(3)(num_queries, num_keys, starts, expected)
    for row, start in enumerate(starts.tolist()):
        end = start + num_queries
        seen = causal(num_queries, end)
        for some, alone in ((biases, t5_bias(theirs)), (alibis, AlibiBias(3))):
            expected_row = alone(num_queries, end, None, expected)
            assert torch.equal(some[row, :, :, :end][:, seen], expected_row[:, seen])


# --- BERT's relative keys ---


def cases(kind):
    """The arrays of each case, by name."""
    with np.load(FIXTURES / f"{kind}.npz") as arrays:
        found = {}
        for name in arrays.files:
            case, _, array = name.partition(".")
            if array:
                found.setdefault(case, {})[array] = arrays[name]
    assert len(found) >= 8
    return list(found.values())


BERT = [(kind, case) for kind in ("relative_key", "relative_key_query") for case in cases(kind)]


@pytest.mark.parametrize(("kind", "case"), BERT)
def test_attention_with_relative_keys_is_berts(kind, case):
    x = torch.from_numpy(case["hidden"]).double()
    _, num_tokens, width = x.shape
    table = torch.from_numpy(case["distance_embedding.weight"]).double()
    num_distances = (len(table) + 1) // 2
    positions = RelativeKey(table.shape[1], num_distances, with_query=kind.endswith("query"))
    positions.distance_embedding.weight.data = table[num_distances - 1 :]
    linears = [
        linear(case[f"{name}.weight"], case[f"{name}.bias"]) for name in ("query", "key", "value")
    ]
    heads = int(case["num_heads"])
    ours = attention((*linears, linear(np.eye(width))), heads, positions=positions)
    expected = [torch.from_numpy(case[name]) for name in ("context", "attention")]
    check(ours, x, Attend(), *expected)
    # The same by way of places, row by row, as where rows of a cache differ.
    starts = torch.zeros(len(x), dtype=torch.int64)
    check(ours, x, Attend(causal(num_tokens), starts=starts), *expected)


@pytest.mark.parametrize("with_query", [False, True])
@pytest.mark.parametrize("num_distances", [1, 2, 5, 9, 10, 30])
def test_distances_beyond_the_table_share_its_last_row(with_query, num_distances):
    cut = RelativeKey(4, num_distances, with_query=with_query)
    whole = RelativeKey(4, 30, with_query=with_query)
    last = num_distances - 1
    rows = torch.arange(30).clamp(max=last)
    whole.distance_embedding.weight.data = cut.distance_embedding.weight.data[rows]
    q, k = draw(2, 2, 3, 10, 4, seed=num_distances)
    assert_close(cut(q, k, None)[1], whole(q, k, None)[1], atol=0.0, rtol=0.0)


# --- Transformer-XL ---


def behind(memory, ours):
    """What puts the keys and values of `memory`, [B, M, D], before the new ones."""

    def extend(k, v):
        old = (ours._split_heads(layer(memory)) for layer in (ours.W_key, ours.W_value))
        return tuple(torch.cat(pair, dim=2) for pair in zip(old, (k, v), strict=True))

    return extend


@pytest.mark.parametrize("case", cases("transformer_xl"))
def test_attention_with_memory_is_transformer_xls(case):
    x, memory = (torch.from_numpy(case[name]).double() for name in ("hidden", "memory"))
    (_, num_tokens, width), num_heads = x.shape, int(case["num_heads"])
    past, clamp_len = memory.shape[1], int(case["clamp_len"])
    positions = TransformerXLKey(width, num_heads, clamp_len if clamp_len >= 0 else None)
    positions.W_r.weight.data = torch.from_numpy(case["r_net.weight"]).double()
    positions.u.data = torch.from_numpy(case["r_w_bias"]).double()
    positions.v.data = torch.from_numpy(case["r_r_bias"]).double()
    qkv = [linear(weight) for weight in np.split(case["qkv_net.weight"], 3)]
    linears = (*qkv, linear(case["o_net.weight"]))
    ours = attention(linears, num_heads, positions=positions)
    expected = [torch.from_numpy(case[name]) for name in ("output", "attention")]
    mask = causal(num_tokens, past + num_tokens)
    extend = behind(memory, ours) if past else None
    if not past:
        check(ours, x, Attend(), *expected)
    check(ours, x, Attend(mask, extend=extend), *expected)
    starts = torch.full((len(x),), past)
    check(ours, x, Attend(mask, extend=extend, starts=starts), *expected)

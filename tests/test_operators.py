"""`gptrs.model.operators` against torch's own, on every kind of processor that this one is."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gptrs import GPTModel, _core
from gptrs.engines.native_weights import why_not_native
from gptrs.errors import GenerationError
from gptrs.model import operators
from gptrs.model.dropout import SeededDropout, seeded_dropout
from gptrs.model.layers import GELU, MANY_NUMBERS, MultiHeadAttention, is_stock

KERNELS = _core.NativeModel.available_kernels()
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""Relative errors of whole tensors: sums in float32, and roundings to bfloat16 on the way."""
SHARES = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
"""A number's error beside the sum of all that is added up in it: five roundings in bfloat16."""
SHAPE = {"vocab_size": 61, "context_length": 24, "emb_dim": 32, "n_heads": 2, "n_layers": 2}


def tensors(shape, dtype, count, seed=0):
    """As a layer has them: [B, H, T, K] in memory that is [B, T, H, K]."""
    B, H, T, K = shape
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, H, K, generator=generator).to(dtype).transpose(1, 2)] + [
        torch.randn(B, T, H, K, generator=generator).to(dtype).transpose(1, 2)
        for _ in range(count - 1)
    ]


def attend(query, key, value, *, p=0.0, seed=7, kernels=None, threads=2, scale=0.3):
    B, H, T, K = query.shape
    out, log_sums = query.new_empty(B, T, H, K), torch.empty(B, H, T)
    how = {"scale": scale, "dropout": p, "seed": seed, "threads": threads, "kernels": kernels}
    _core.attention(query, key, value, out, log_sums, **how)
    return out.transpose(1, 2), log_sums


def gradients(query, key, value, grad, *, p=0.0, seed=7, kernels=None, threads=2, scale=0.3):
    out, log_sums = attend(
        query, key, value, p=p, seed=seed, kernels=kernels, threads=threads, scale=scale
    )
    B, H, T, K = query.shape
    to = [query.new_empty(B, T, H, K) for _ in range(3)]
    how = {"scale": scale, "dropout": p, "seed": seed, "threads": threads, "kernels": kernels}
    _core.attention_backward(query, key, value, out, grad, log_sums, *to, **how)
    return [out, *(tensor.transpose(1, 2) for tensor in to)]


def exact(query, key, value, grad, mask=None, scale=0.3):
    """In float64; `mask` is what dropout multiplies the weights by."""
    inputs = [x.double().requires_grad_() for x in (query, key, value)]
    scores = inputs[0] @ inputs[1].transpose(2, 3) * scale
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~causal, -torch.inf).softmax(dim=-1)
    out = (weights if mask is None else weights * mask) @ inputs[2]
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.double())]


def added_up(query, key, value, grad, scale):
    """What `exact` gives if nothing could cancel: the sums of absolute values."""
    causal = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
    scores = query.double() @ key.double().transpose(2, 3) * scale
    weights = scores.masked_fill(~causal, -torch.inf).softmax(dim=-1)
    query, key, value, grad = (x.double().abs() for x in (query, key, value, grad))
    out = weights @ value
    slopes = weights * (grad @ value.transpose(2, 3) + (grad * out).sum(dim=-1, keepdim=True))
    to_key = slopes.transpose(2, 3) @ query * scale
    return [out, slopes @ key * scale, to_key, weights.transpose(2, 3) @ grad]


def errors(found, wanted):
    return [
        ((mine.double() - theirs).norm() / (theirs.norm() + 1e-9)).item()
        for mine, theirs in zip(found, wanted, strict=True)
    ]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 300, 520])),
    head_dim=st.one_of(st.integers(1, 40), st.sampled_from([64, 80])),
    dtype=st.sampled_from(DTYPES),
    kernels=st.sampled_from(KERNELS),
    seed=st.integers(0, 99),
)
def test_attention_and_its_gradient_are_exact_to_rounding(
    batch, heads, tokens, head_dim, dtype, kernels, seed
):
    *inputs, grad = tensors((batch, heads, tokens, head_dim), dtype, 4, seed)
    scale = 1 / math.sqrt(head_dim)
    found = gradients(*inputs, grad, kernels=kernels, scale=scale)
    wanted = exact(*inputs, grad, scale=scale)
    for mine, theirs, size in zip(found, wanted, added_up(*inputs, grad, scale), strict=True):
        assert ((mine.double() - theirs).abs() <= SHARES[dtype] * size + 1e-9).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("tokens", [20, 150, 300])
def test_dropped_weights_are_zero_or_larger_and_gradients_follow_them(tokens, kernels, dtype):
    p, heads = 0.3, 2
    query, key, _, _ = tensors((1, heads, tokens, tokens), dtype, 4)
    eye = torch.eye(tokens, dtype=dtype).expand(1, heads, tokens, tokens)
    whole, _ = attend(query, key, eye, kernels=kernels, scale=0.05)
    dropped, _ = attend(query, key, eye, p=p, kernels=kernels, scale=0.05)
    seen = torch.ones(tokens, tokens).tril().bool().expand_as(whole)
    kept = dropped != 0
    share = 1 - kept[seen].double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / seen.sum().item())
    expected = whole.double() / (1 - p)
    assert ((dropped.double() - expected) * kept).abs().max() < 0.01 * expected.abs().max()
    *inputs, grad = tensors((1, heads, tokens, 16), dtype, 4, seed=1)
    wanted = exact(*inputs, grad, mask=kept / (1 - p))
    assert max(errors(gradients(*inputs, grad, p=p, kernels=kernels), wanted)) < max(
        TOLERANCES[dtype],
        1e-4,  # p is rounded to a multiple of 2^-16.
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_attention_is_the_same_to_the_bit_on_any_number_of_threads(kernels, dtype):
    *inputs, grad = tensors((2, 3, 70, 24), dtype, 4)
    one, three = (
        gradients(*inputs, grad, p=0.2, kernels=kernels, threads=threads) for threads in (1, 3)
    )
    for mine, others in zip(one, three, strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=0)


def test_other_strides_and_other_seeds():
    query, key, value, grad = tensors((2, 2, 40, 16), torch.float32, 4)
    dense = [x.contiguous() for x in (query, key, value, grad)]
    for mine, theirs in zip(
        gradients(query, key, value, grad, p=0.2), gradients(*dense, p=0.2), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    first, again, other = (attend(query, key, value, p=0.2, seed=seed)[0] for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().max() > 0.01
    # Heads and rows of the batch are dropped each by itself.
    same = [x[:1, :1].expand(2, 2, -1, -1) for x in (query, key, value)]
    parts = attend(*same, p=0.2)[0].flatten(0, 1)
    assert len({tuple(part.flatten().tolist()) for part in parts}) == 4


@pytest.mark.parametrize("shape", [(0, 2, 4, 8), (2, 0, 4, 8), (1, 2, 0, 8), (1, 2, 4, 0)])
def test_attention_over_nothing_is_nothing(shape):
    inputs = [torch.empty(shape) for _ in range(4)]
    assert [x.shape for x in gradients(*inputs)] == [torch.Size(shape)] * 4


def test_what_attention_cannot_read_is_refused_with_what_was_found():
    query, key, value = tensors((1, 2, 5, 8), torch.float32, 3)
    with pytest.raises(GenerationError, match="one shape, float32 or bfloat16"):
        attend(query, key[:, :, :4], value)
    with pytest.raises(GenerationError, match="one shape, float32 or bfloat16"):
        attend(query, key.bfloat16(), value)
    with pytest.raises(GenerationError, match=r"\[batch, heads, tokens, head_dim\], found \[2, 5"):
        _core.attention(query[0], key, value, query, query, scale=1, dropout=0, seed=0, threads=1)
    with pytest.raises(GenerationError, match=r"an output is \[1, 5, 2, 8\]"):
        _core.attention(
            query, key, value, torch.empty(1, 2, 5, 8), torch.empty(1, 2, 5),
            scale=1, dropout=0, seed=0, threads=1,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_dropout_drops_the_share_asked_for_anywhere(kernels, dtype):
    x = torch.ones(300_001, dtype=dtype)
    for p in (0.1, 0.5):
        out = torch.empty_like(x)
        _core.dropout(x, out, p=p, seed=3, threads=2, kernels=kernels)
        kept = out != 0
        torch.testing.assert_close(out[kept], (x / (1 - p))[kept], rtol=1e-4, atol=0)
        spread = math.sqrt(p * (1 - p))
        counts = kept[:300_000].view(300, 1000).double()
        assert (counts.mean(dim=1) - (1 - p)).abs().max() < 5 * spread / math.sqrt(1000)
        assert (counts.mean(dim=0) - (1 - p)).abs().max() < 5 * spread / math.sqrt(300)
        for distance in (1, 16, 128, 16_384):
            both = (kept[distance:] & kept[:-distance]).double().mean()
            assert abs(both - (1 - p) ** 2) < 5 * spread / math.sqrt(300_000)


def test_all_kernels_and_threads_drop_the_same_numbers():
    x = torch.randn(70_003)
    outs = []
    for kernels in KERNELS:
        for threads in (1, 3):
            out = torch.empty_like(x)
            _core.dropout(x, out, p=0.4, seed=2**63 - 2, threads=threads, kernels=kernels)
            outs.append(out)
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=0)


def test_dropout_of_all_or_nothing():
    x = torch.randn(50)
    assert not operators.dropout(x, 1.0).any()
    torch.testing.assert_close(operators.dropout(x, 0.0), x, rtol=0, atol=0)


def test_the_gradient_of_dropout_is_dropped_alike_and_torchs_seed_repeats_it():
    x = torch.randn(4, 1000, requires_grad=True)
    outs = []
    for _ in range(2):
        torch.manual_seed(5)
        y = operators.dropout(x, 0.25)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert ((grad != 0) == (y != 0)).all()
        torch.testing.assert_close(grad[grad != 0], torch.full_like(grad[grad != 0], 1 / 0.75))
        outs.append(y)
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)
    assert (operators.dropout(x, 0.25) - outs[0]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_gelu_and_its_gradient_are_torchs_to_rounding(kernels, dtype):
    x = torch.cat([torch.linspace(-12, 12, 50_001), torch.tensor([-80.0, 80.0, -0.0])]).to(dtype)
    exact_x = x.double().requires_grad_()
    exact_y = F.gelu(exact_x, approximate="tanh")
    grad = torch.randn(len(x)).to(dtype)
    (wanted,) = torch.autograd.grad(exact_y, exact_x, grad.double())
    y, to = torch.empty_like(x), torch.empty_like(x)
    _core.gelu(x, y, threads=2, kernels=kernels)
    _core.gelu_backward(x, grad, to, threads=2, kernels=kernels)
    tolerance = {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {}
    torch.testing.assert_close(y, exact_y.detach().to(dtype), **tolerance)
    torch.testing.assert_close(to, wanted.to(dtype), **tolerance)


def test_not_a_number_stays_what_it_is():
    x = torch.tensor([math.nan, 1.0, math.inf])
    y, sums = torch.empty_like(x), torch.zeros(1)
    _core.gelu(x, y, threads=1)
    assert y.isnan().tolist() == [True, False, False]
    assert operators.total_norm([x]).isnan()
    _core.exp_and_sum(x[None].clone(), sums, threads=1)
    assert sums.isnan().all()
    query, key, value = tensors((1, 1, 40, 8), torch.bfloat16, 3)
    query[0, 0, 20, 0] = math.nan
    out, _ = attend(query, key, value)
    assert out.isnan().any(dim=-1)[0, 0].nonzero().flatten().tolist() == [20]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (33, 100), (50, 16), (40, 1029)])
def test_exponentials_and_their_sums(shape, dtype, kernels):
    x = torch.randn(shape).mul(4).to(dtype)
    rows, sums = x.clone(), torch.ones(len(x))
    _core.exp_and_sum(rows, sums, threads=2, kernels=kernels)
    torch.testing.assert_close(rows, x.double().exp().to(dtype), rtol=None, atol=None)
    torch.testing.assert_close(sums.double(), 1 + rows.double().sum(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (33, 100), (100, 7)])
def test_a_matrix_is_turned_and_its_numbers_converted(shape, kernels):
    for source in DTYPES:
        for target in DTYPES:
            x = torch.randn(shape).to(source)
            out = torch.empty(shape[::-1], dtype=target)
            _core.turn(x, out, threads=2, kernels=kernels)
            torch.testing.assert_close(out, x.T.to(target), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_length_of_gradients_is_torchs(dtype):
    gradients = [torch.randn(n).to(dtype) for n in (1, 17, 40_000)]
    found = operators.total_norm(gradients)
    wanted = torch.nn.utils.get_total_norm([x.double() for x in gradients])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    turned = torch.randn(9, 30).T
    torch.testing.assert_close(operators.total_norm([turned]), turned.norm())


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operators_keep_what_they_promise_to_torch(dtype, p):
    inputs = [x.requires_grad_() for x in tensors((2, 3, 33, 8), dtype, 3)]
    seed = operators.draw_seed() if p else None
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    args = (*inputs, seed, p, 0.2)
    torch.library.opcheck(torch.ops.gptrs.attention.default, args, test_utils=checks)
    x = torch.randn(3, 40, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.gptrs.gelu.default, (x,), test_utils=checks)
    dropout_args = (x, operators.draw_seed(), 0.3)
    torch.library.opcheck(torch.ops.gptrs.dropout.default, dropout_args, test_utils=checks)


def test_gelus_gradient_has_a_gradient():
    x = torch.randn(MANY_NUMBERS, requires_grad=True)
    seconds = []
    for function in (GELU(), nn.GELU(approximate="tanh")):
        (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_that_trains_in_bfloat16_attends_in_the_core_as_exactly_as_torch(compiled):
    layer = MultiHeadAttention(32, 32, 64, 0.0, num_heads=2)
    x = torch.randn(2, 40, 32, requires_grad=True)
    parameters = [x, *layer.parameters()]
    calls = []
    wanted = torch.autograd.grad(layer(x).square().sum(), parameters)
    run = torch.compile(layer, fullgraph=True) if compiled else layer
    with torch.autocast("cpu", torch.bfloat16), torch.profiler.profile() as profile:
        loss = run(x).float().square().sum()
    calls = [event.name for event in profile.events() if event.name == "gptrs::attention"]
    assert len(calls) >= 1
    for mine, exact_one in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        assert (mine - exact_one).norm() < 0.02 * exact_one.norm()


def test_dropout_layers_are_seeded_for_a_while_and_stay_what_they_are():
    class Own(nn.Dropout):
        pass

    model = GPTModel({**SHAPE, "drop_rate": 0.1})
    model.trf_blocks[0].drop_resid = Own(0.1)
    before = {name: type(module) for name, module in model.named_modules()}
    layer = model.trf_blocks[1].att.dropout
    with pytest.raises(KeyError), seeded_dropout(model):  # noqa: PT012 - what it undoes
        assert type(layer) is SeededDropout
        assert layer is model.trf_blocks[1].att.dropout
        assert is_stock(layer, nn.Dropout)
        assert type(model.trf_blocks[0].drop_resid) is Own
        raise KeyError
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_seeded_model_drops_its_own_numbers_in_training_and_none_in_evaluation():
    model = GPTModel({**SHAPE, "drop_rate": 0.4})
    ids = torch.arange(24)[None] % 61
    with torch.no_grad():
        wanted = model.eval()(ids)
    with seeded_dropout(model):
        with torch.no_grad():
            torch.testing.assert_close(model(ids), wanted, rtol=0, atol=0)
        model.train()
        outs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outs.append(model(ids))
        torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)
        assert (outs[0] - outs[2]).abs().max() > 0.01
        # On average nothing changes, much.
        with torch.no_grad():
            mean = torch.stack([model(ids) for _ in range(200)]).mean(dim=0)
        assert (mean - wanted).norm() < 0.5 * wanted.norm()
        assert why_not_native(model.eval()) is None


def test_a_seeded_layer_with_a_mask_or_of_float64_drops_as_torch_does():
    layer = SeededDropout(0.5)
    x = torch.ones(10_000, dtype=torch.float64)
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    torch.testing.assert_close(found, F.dropout(x, 0.5), rtol=0, atol=0)

"""`gptrs.model.linear` against torch's products in float64, on every kind of processor."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from gptrs import GPTModel, _core
from gptrs.errors import GenerationError, GptrsError
from gptrs.model import linear, loss_by_rows, operators
from gptrs.model.layers import is_stock
from gptrs.model.linear import Linear, matmul
from gptrs.model.loss import next_token_loss

KERNELS = _core.NativeModel.available_kernels()
SHAPE = {"vocab_size": 61, "context_length": 24, "emb_dim": 32, "n_heads": 2, "n_layers": 2}
LAYOUTS = ("rows", "columns", "part of wider rows", "part of higher columns")


@pytest.fixture
def everything_to_the_core(monkeypatch):
    monkeypatch.setattr(operators, "MULTIPLIES_FLOAT32", True)
    monkeypatch.setattr(linear, "MANY_PRODUCTS", 1)
    monkeypatch.setattr(linear, "FEWEST_ROWS", 1)


def matrix(rows, columns, layout="rows", seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide, high = columns + 3 * (layout == LAYOUTS[2]), rows + 5 * (layout == LAYOUTS[3])
    if layout in LAYOUTS[1::2]:
        return torch.randn(wide, high, generator=generator).t()[:rows, :columns]
    return torch.randn(high, wide, generator=generator)[:rows, :columns]


def assert_product(found, left, right, start=0.0):
    """To rounding, beside the sum of all that is added up."""
    wanted = start + left.double() @ right.double()
    added_up = abs(start) + left.double().abs() @ right.double().abs()
    assert ((found.double() - wanted).abs() <= 4e-6 * added_up).all()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(0, 70)] * 3) | st.just((9, 800, 50)) | st.just((3, 5, 1700)),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    kernels=st.sampled_from(KERNELS),
    threads=st.integers(1, 3),
    start=st.sampled_from(["nothing", "out", "row"]),
)
def test_products_are_those_of_float64(shape, layouts, kernels, threads, start):
    rows, depth, columns = shape
    left, right = matrix(rows, depth, layouts[0]), matrix(depth, columns, layouts[1], seed=1)
    out, row = matrix(rows, columns, seed=2), torch.randn(columns)
    starts = {"nothing": torch.zeros(()), "out": out.clone(), "row": row}
    how = {"row": row if start == "row" else None, "adds": start == "out"}
    _core.matmul(left, right, out, **how, threads=threads, kernels=kernels)
    assert_product(out, left, right, starts[start].double())


def test_bits_do_not_depend_on_the_number_of_threads():
    left, right = matrix(500, 900), matrix(900, 300, seed=1)
    outs = [torch.empty(500, 300) for _ in range(3)]
    for threads, out in enumerate(outs, start=1):
        _core.matmul(left, right, out, threads=threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_what_is_no_number_stays_so():
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    left[1, 2], right[0, 3] = math.nan, math.inf
    out = torch.empty(3, 5)
    _core.matmul(left, right, out, threads=1)
    torch.testing.assert_close(out, left @ right, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": torch.ones(5, 2)}, r"\[2, 3\] @ \[5, 2\]"),
        ({"out": torch.ones(3, 2)}, r"out \[3, 2\]"),
        ({"row": torch.ones(3)}, r"row \[3\]"),
        ({"left": torch.ones(2, 3).double()}, "float64"),
        ({"left": torch.ones(2, 3).bfloat16()}, "float32"),
        ({"out": torch.ones(2, 2).bfloat16()}, "float32"),
        ({"row": torch.ones(2).half()}, "float32"),
        ({"left": torch.ones(2, 3, 1)}, r"takes matrices, found \[2, 3, 1\]"),
        ({"left": torch.ones(4, 6)[::2, ::2]}, "contiguous"),
        ({"out": torch.ones(2, 2, requires_grad=True)}, "requires grad"),
        ({"row": torch.ones(2), "adds": True}, "not to both"),
        ({"kernels": "abacus"}, "abacus"),
    ],
)
def test_a_product_that_cannot_be_is_refused_and_says_why(change, message):
    how = {"left": torch.ones(2, 3), "right": torch.ones(3, 2), "out": torch.ones(2, 2)} | change
    with pytest.raises(GptrsError, match=message):
        _core.matmul(how.pop("left"), how.pop("right"), how.pop("out"), threads=1, **how)


@pytest.mark.usefixtures("everything_to_the_core")
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    has_bias=st.booleans(),
)
def test_a_layer_and_its_gradients_are_torchs(shape, sides, has_bias):
    layer = Linear(*sides, bias=has_bias)
    x = torch.randn(*shape, sides[0])
    slope = torch.randn(*shape, sides[1])

    def passes(module, change):
        """The outputs, then the gradients, of what is made of layer, x and slope."""
        with torch.no_grad():
            for ours, mine in zip(layer.parameters(), module.parameters(), strict=True):
                mine.copy_(change(ours))
        inputs = change(x).requires_grad_()
        found = module(inputs)
        found.backward(change(slope))
        return found, [found, inputs.grad, *(parameter.grad for parameter in module.parameters())]

    exact = nn.Linear(*sides, bias=has_bias, dtype=torch.float64)
    added_up = nn.Linear(*sides, bias=has_bias, dtype=torch.float64)
    found, ours = passes(layer, torch.clone)
    assert "gptrs_linear" in type(found.grad_fn).__name__
    _, wanted = passes(exact, torch.Tensor.double)
    _, sizes = passes(added_up, lambda tensor: tensor.double().abs())
    for mine, torchs, size in zip(ours, wanted, sizes, strict=True):
        assert ((mine - torchs).abs() <= 4e-6 * size).all()


@pytest.mark.usefixtures("everything_to_the_core")
def test_a_layer_takes_inputs_and_weights_that_lie_anyhow():
    layer = Linear(12, 9)
    layer.weight = nn.Parameter(torch.randn(18, 24)[::2, ::2])
    layer.bias = nn.Parameter(torch.randn(18)[::2])
    wide = torch.randn(3, 7, 24)
    for x in (
        wide[..., ::2],
        wide[:, ::2, 5:17],
        wide[:, :12].transpose(1, 2)[..., :1].expand(-1, -1, 12),
    ):
        found = layer(x)
        assert "gptrs_linear" in type(found.grad_fn).__name__
        torch.testing.assert_close(found, nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.usefixtures("everything_to_the_core")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # The check's own.
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_operators_keep_what_they_promise_to_torch(has_bias):
    x = torch.randn(3, 5, 16, requires_grad=True)
    weight = torch.randn(24, 16, requires_grad=True)
    bias = torch.randn(24, requires_grad=True) if has_bias else None
    torch.library.opcheck(torch.ops.gptrs.linear, (x, weight, bias))
    torch.library.opcheck(torch.ops.gptrs.matmul, (x[0].detach(), weight.detach().t()))


@pytest.mark.usefixtures("everything_to_the_core")
def test_gradients_of_gradients_and_of_each_example():
    layer, x = Linear(6, 4), torch.randn(5, 6, requires_grad=True)
    plain = nn.Linear(6, 4)
    plain.load_state_dict(layer.state_dict())

    def curvature(module):
        (slope,) = torch.autograd.grad((module(x) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), module.weight)[0]

    torch.testing.assert_close(curvature(layer), curvature(plain), rtol=1e-4, atol=1e-4)

    def loss(parameters, row):
        return functional_call(layer, parameters, (row[None],)).square().sum()

    parameters = dict(layer.named_parameters())
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x.detach())
    alone = torch.stack([grad(loss)(parameters, row)["weight"] for row in x.detach()])
    torch.testing.assert_close(each["weight"], alone)


@pytest.mark.usefixtures("everything_to_the_core")
def test_a_compiled_layer_gives_the_same_bits():
    layer, x = Linear(20, 30), torch.randn(7, 20)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.usefixtures("everything_to_the_core")
def test_an_exported_layer_needs_no_operator_of_ours():
    layer, x = Linear(20, 30), torch.randn(7, 20)
    exported = torch.export.export(layer, (x,))
    assert "gptrs" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.usefixtures("everything_to_the_core")
def test_torchs_counter_counts_a_layers_products():
    layer, x = Linear(20, 30), torch.randn(7, 20)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 7 * 20 * 30


@pytest.mark.usefixtures("everything_to_the_core")
def test_what_is_not_the_cores_goes_to_torch():
    layer, x = Linear(8, 8), torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert "gptrs" not in type(Linear(8, 8).double()(x.double()).grad_fn).__name__
    assert "gptrs" in type(layer(x).grad_fn).__name__
    assert is_stock(layer, nn.Linear)
    layer.register_forward_hook(lambda *_: None)
    assert not is_stock(layer, nn.Linear)


def test_small_products_and_other_processors_go_to_torch(monkeypatch):
    layer = Linear(8, 8)
    monkeypatch.setattr(operators, "MULTIPLIES_FLOAT32", True)
    assert "gptrs" not in type(layer(torch.randn(3, 8)).grad_fn).__name__
    many = torch.randn(linear.MANY_PRODUCTS // 512**2, 512)
    wide = Linear(512, 512)
    assert "gptrs" in type(wide(many).grad_fn).__name__
    few = Linear(512, 1 << 16)
    assert "gptrs" not in type(few(torch.randn(linear.FEWEST_ROWS - 1, 512)).grad_fn).__name__
    monkeypatch.setattr(operators, "MULTIPLIES_FLOAT32", False)
    assert "gptrs" not in type(wide(many).grad_fn).__name__


@pytest.mark.parametrize("multiplies", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_a_product_into_a_tensor_is_the_same_either_way(monkeypatch, multiplies, adds):
    monkeypatch.setattr(operators, "MULTIPLIES_FLOAT32", multiplies)
    monkeypatch.setattr(linear, "MANY_PRODUCTS", 1)
    monkeypatch.setattr(linear, "FEWEST_ROWS", 1)
    left, right, out = matrix(9, 20).expand(9, 20), matrix(20, 7), matrix(9, 7, seed=3)
    start = out.double() if adds else torch.zeros(())
    matmul(left, right, out, adds=adds)
    assert_product(out, left, right, start)
    once = torch.randn(1, 7).expand(20, 7)
    matmul(left, once, out)
    assert_product(out, left, once)


@pytest.mark.usefixtures("everything_to_the_core")
def test_a_model_learns_the_same_with_either(monkeypatch):
    torch.manual_seed(0)
    model = GPTModel(SHAPE | {"drop_rate": 0.0, "qkv_bias": True})
    ids = torch.randint(SHAPE["vocab_size"], (3, 25))

    def slopes():
        model.zero_grad()
        next_token_loss(model, ids[:, :-1], ids[:, 1:]).backward()
        return [parameter.grad for parameter in model.parameters()]

    found = slopes()
    monkeypatch.setattr(operators, "MULTIPLIES_FLOAT32", False)
    torch.testing.assert_close(found, slopes(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shape", [(1, 1), (33, 100), (5, 16), (9, 1029)])
def test_probabilities_and_losses_are_torchs(shape, kernels):
    logits = torch.randn(shape).mul(20)
    targets = torch.randint(shape[1], shape[:1])
    rows, losses = logits.clone(), torch.empty(shape[0])
    _core.softmax_and_losses(rows, targets, losses, threads=2, kernels=kernels)
    torch.testing.assert_close(rows.double(), logits.double().softmax(dim=1), rtol=2e-5, atol=1e-9)
    wanted = nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-5, atol=1e-6)


def test_logits_that_are_no_numbers_give_no_probabilities_and_targets_are_checked():
    rows, losses = torch.zeros(2, 40), torch.empty(2)
    rows[1, 3] = math.nan
    _core.softmax_and_losses(rows, torch.tensor([1, 39]), losses, threads=1)
    assert losses.isnan().tolist() == [False, True]
    assert rows.isnan().all(dim=1).tolist() == [False, True]
    for targets, message in [([1, 40], "found 40"), ([-1, 0], "found -1"), ([1], "are \\[2\\]")]:
        with pytest.raises(GenerationError, match=message):
            _core.softmax_and_losses(rows, torch.tensor(targets), losses, threads=1)


def test_a_loss_by_rows_gives_its_gradients_as_often_as_it_is_asked(monkeypatch):
    monkeypatch.setattr(loss_by_rows, "BLOCK_ROWS", 8)
    hidden, weight = torch.randn(20, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    targets = torch.randint(50, (20,))
    inputs = hidden, weight, targets, -100, torch.float32, True
    loss = loss_by_rows.loss_by_rows(*inputs)[0]
    wanted = torch.autograd.grad(
        nn.functional.cross_entropy(hidden @ weight.T, targets), (hidden, weight)
    )
    for factor in (1.0, 3.0, 0.5):
        (factor * loss).backward(retain_graph=True)
        found = [parameter.grad / factor for parameter in (hidden, weight)]
        torch.testing.assert_close(found, list(wanted), rtol=1e-4, atol=1e-6)
        hidden.grad = weight.grad = None
    for _ in range(3):
        loss.backward(retain_graph=True)
    torch.testing.assert_close(weight.grad, 3 * wanted[1], rtol=1e-4, atol=1e-6)

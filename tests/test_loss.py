"""`gptrs.model.loss` against torch's own cross-entropy."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, DataError, TokenIdError
from gptrs.model import loss as loss_module
from gptrs.model import loss_by_columns as columns_module
from gptrs.model import loss_by_rows as rows_module
from gptrs.model.gpt import GPTModel
from gptrs.model.loss import _by_torch, linear_cross_entropy, next_token_loss


@pytest.fixture(params=["columns", "rows"], autouse=True)
def cut(request, monkeypatch):
    """Each test runs with either way to cut the logits, rows four at a time."""
    from_width = 0 if request.param == "rows" else 10**9
    monkeypatch.setattr(loss_module, "ROWS_FROM_WIDTH", from_width)
    monkeypatch.setattr(rows_module, "BLOCK_ROWS", 4)
    return request.param


def example(num_rows=7, width=5, vocab_size=23, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab_size, width, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    return hidden, weight, targets


def value_and_gradients(loss: Tensor, *inputs: Tensor):
    return loss.detach(), *torch.autograd.grad(loss, inputs)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    num_rows=st.integers(1, 9),
    width=st.integers(1, 6),
    vocab_size=st.integers(1, 40),
    block_columns=st.integers(1, 50),
    num_ignored=st.integers(0, 8),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_value_and_gradients_are_torchs_for_any_block_size(
    num_rows, width, vocab_size, block_columns, num_ignored, scale
):
    hidden, weight, targets = example(num_rows, width, vocab_size)
    targets[: min(num_ignored, num_rows - 1)] = -100
    ours = linear_cross_entropy(hidden * scale, weight, targets, block_columns=block_columns)
    torchs = F.cross_entropy(hidden * scale @ weight.T, targets)
    torch.testing.assert_close(
        value_and_gradients(ours, hidden, weight), value_and_gradients(torchs, hidden, weight)
    )


def test_the_gradients_are_those_of_finite_differences():
    hidden, weight, targets = example()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, block_columns=6), (hidden, weight)
    )


def test_float32_agrees_with_torch_to_rounding():
    hidden, weight, targets = example(64, 32, 5000, dtype=torch.float32)
    torch.testing.assert_close(
        value_and_gradients(linear_cross_entropy(hidden, weight, targets), hidden, weight),
        value_and_gradients(F.cross_entropy(hidden @ weight.T, targets), hidden, weight),
    )


@pytest.mark.parametrize("targets_are", ["drawn", "the least probable"])
@pytest.mark.parametrize("scale", [3.0, 100.0, 10_000.0])
def test_logits_beyond_the_range_of_exp_agree_with_torch_to_rounding(scale, targets_are):
    hidden, weight, targets = example(40, 8, 500, dtype=torch.float32)
    weight = (scale * weight).detach().requires_grad_()
    logits = hidden @ weight.T
    if targets_are == "the least probable":
        targets = logits.argmin(dim=1)
    torch.testing.assert_close(
        value_and_gradients(linear_cross_entropy(hidden, weight, targets), hidden, weight),
        value_and_gradients(F.cross_entropy(logits, targets), hidden, weight),
        rtol=1e-4,
        atol=1e-5 * scale,
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 3.0])
def test_bfloat16_matmuls_stay_nearer_to_float32_than_torchs_own_do(scale, seed):
    hidden, weight, _ = example(128, 32, 3000, dtype=torch.float32, seed=seed)
    weight = (scale * weight).detach().requires_grad_()
    logits = hidden @ weight.T
    generator = torch.Generator().manual_seed(seed)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()
    exact = value_and_gradients(F.cross_entropy(logits, targets), hidden, weight)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets)
        torchs = F.cross_entropy(F.linear(hidden, weight), targets)
    assert ours.dtype == torch.float32
    ours = value_and_gradients(ours, hidden, weight)
    torchs = value_and_gradients(torchs, hidden, weight)
    assert (ours[0] - exact[0]).abs() <= (torchs[0] - exact[0]).abs() + 1e-2 * exact[0]
    for mine, theirs, true in zip(ours[1:], torchs[1:], exact[1:], strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() <= (theirs - true).norm()


def test_the_gradient_of_a_scaled_loss_is_scaled():
    hidden, weight, targets = example()
    once = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)[0]
    thrice = torch.autograd.grad(3 * linear_cross_entropy(hidden, weight, targets), hidden)[0]
    torch.testing.assert_close(thrice, 3 * once)


def test_a_certain_prediction_in_bfloat16_has_no_loss_below_zero():
    hidden = torch.randn(50, 16) * 20
    loss = linear_cross_entropy(hidden, hidden[:40].clone(), torch.arange(40).repeat(2)[:50],
                                dtype=torch.bfloat16)  # fmt: skip
    assert loss >= 0


def test_the_loss_of_no_counted_row_is_nan_as_torchs_is():
    hidden, weight, targets = example()
    targets[:] = -100
    assert linear_cross_entropy(hidden, weight, targets).isnan()
    assert F.cross_entropy(hidden @ weight.T, targets).isnan()


def test_no_tensor_of_rows_by_vocabulary_is_made(cut):
    hidden, weight, targets = example(300, 4, 5000, dtype=torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, targets, block_columns=100).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    block = 300 * 100 if cut == "columns" else 4 * 5000
    assert largest == 4 * max(block, 5000 * 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_exponentials_that_are_kept_give_the_gradients_that_computing_them_again_does(
    monkeypatch, dtype
):
    monkeypatch.setattr(loss_module, "ROWS_FROM_WIDTH", 10**9)
    hidden, weight, targets = example(dtype=dtype)
    again = value_and_gradients(
        linear_cross_entropy(hidden, weight, targets, block_columns=6), hidden, weight
    )
    monkeypatch.setattr(columns_module, "KEPT_LOGITS_WIDTH", 1)
    loss = linear_cross_entropy(hidden, weight, targets, block_columns=6)
    loss.backward(retain_graph=True)
    hidden.grad = weight.grad = None
    kept = value_and_gradients(loss, hidden, weight)
    torch.testing.assert_close(kept, again, rtol=0, atol=0)


def test_a_bounded_number_of_exponentials_is_kept_and_of_wide_rows_alone(monkeypatch):
    hidden, weight, _ = example(30, 4, 500)
    keeps = columns_module.keeps_exponentials
    assert not keeps(hidden, weight, torch.bfloat16)
    monkeypatch.setattr(columns_module, "KEPT_LOGITS_WIDTH", 4)
    monkeypatch.setattr(columns_module, "KEPT_LOGITS_BYTES", 2 * 30 * 500)
    assert keeps(hidden, weight, torch.bfloat16)
    assert not keeps(hidden, weight, torch.float32)
    assert not keeps(torch.zeros(31, 4), weight, torch.bfloat16)


def test_wide_float32_is_cut_by_rows_only_where_gradients_are_wanted(monkeypatch):
    monkeypatch.setattr(loss_module, "ROWS_FROM_WIDTH", 5)
    calls = []
    monkeypatch.setattr(loss_module, "loss_by_rows", lambda *args: calls.append(args) or [0])
    hidden, weight, targets = example(dtype=torch.float32)
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets)
    linear_cross_entropy(hidden, weight, targets, dtype=torch.bfloat16)
    linear_cross_entropy(hidden[:, :4], weight[:, :4], targets)
    assert not calls
    linear_cross_entropy(hidden, weight, targets)
    assert len(calls) == 1


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_needs_no_gradient_gets_none_and_the_other_is_the_same(frozen):
    hidden, weight, targets = example()
    both = dict(zip(("hidden", "weight"), (hidden, weight), strict=True))
    linear_cross_entropy(hidden, weight, targets).backward()
    expected = {name: tensor.grad for name, tensor in both.items()}
    hidden.grad = weight.grad = None
    both[frozen].requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets).backward()
    for name, tensor in both.items():
        if name == frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, expected[name], rtol=0, atol=0)


LENGTHS = (5, 6, 7, 8, 9, 20, 33)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_compile_takes_the_loss_as_one_operator_for_any_number_of_rows(
    monkeypatch, dtype, keeps
):
    monkeypatch.setattr(columns_module, "KEPT_LOGITS_WIDTH", 1 if keeps else 10**9)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend=graphs)
    for num_rows in LENGTHS:
        hidden, weight, targets = example(num_rows, dtype=dtype)
        torch.testing.assert_close(
            value_and_gradients(compiled(hidden, weight, targets), hidden, weight),
            value_and_gradients(linear_cross_entropy(hidden, weight, targets), hidden, weight),
            rtol=0,
            atol=0,
        )
    assert graphs.frame_count <= 2  # Of the first number, and of every other.


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_operators_keep_what_they_promise_to_torch(dtype, keeps):
    hidden, weight, targets = example(dtype=dtype)
    args = (hidden, weight, targets, -100, dtype, 6, keeps)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gptrs.linear_cross_entropy.default, args, test_utils=checks)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch before 2.15")
def test_the_way_for_gpus_gives_the_same_loss():
    hidden, weight, targets = example(dtype=torch.float32)
    targets[2] = -100
    torch.testing.assert_close(
        value_and_gradients(_by_torch(hidden, weight, targets, -100), hidden, weight),
        value_and_gradients(linear_cross_entropy(hidden, weight, targets), hidden, weight),
    )


@pytest.mark.parametrize("target", [23, -1])
def test_a_target_outside_the_vocabulary_is_named(target):
    hidden, weight, targets = example()
    targets[3] = target
    with pytest.raises(TokenIdError, match=rf"target {target} at row 3 is outside 0\.\.22"):
        linear_cross_entropy(hidden, weight, targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, t: (h, w[:, :3], t), r"found \[7, 5\] and \[23, 3\]"),
        (lambda h, w, t: (h, w, t[:4]), r"7 rows, targets \[4\]"),
        (lambda h, w, t: (h.half(), w.half(), t), r"not torch\.float16"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        linear_cross_entropy(*change(*example()))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPTModel(
        GPTConfig(vocab_size=50, context_length=8, emb_dim=12, n_heads=2, n_layers=2, drop_rate=0.0)
    )


def loss_of_logits(model, in_idx, targets):
    return F.cross_entropy(model(in_idx).flatten(0, 1), targets.flatten())


def test_next_token_loss_is_the_cross_entropy_of_the_models_logits(model):
    in_idx, targets = torch.randint(0, 50, (2, 3, 8))
    parameters = tuple(model.parameters())
    torch.testing.assert_close(
        value_and_gradients(next_token_loss(model, in_idx, targets), *parameters),
        value_and_gradients(loss_of_logits(model, in_idx, targets), *parameters),
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("trains", [True, False])
def test_next_token_loss_compiles_to_one_graph_for_any_length(monkeypatch, trains, autocast):
    monkeypatch.setattr("gptrs.model.layers.MANY_NUMBERS", 3000)  # Only the last length has more.
    torch._dynamo.reset()
    model = GPTModel(
        GPTConfig(
            vocab_size=50, context_length=33, emb_dim=12, n_heads=2, n_layers=1, drop_rate=0.0
        )
    )
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(next_token_loss, fullgraph=True, backend=graphs)
    parameters = tuple(model.parameters())
    for length in LENGTHS:
        in_idx, targets = torch.randint(0, 50, (2, 3, length))
        with (
            torch.set_grad_enabled(trains),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            found = compiled(model, in_idx, targets)
            expected = next_token_loss(model, in_idx, targets)
        if trains:
            found = value_and_gradients(found, *parameters)
            expected = value_and_gradients(expected, *parameters)
        tolerance = {"rtol": 2e-2, "atol": 2e-3} if autocast else {}
        torch.testing.assert_close(found, expected, **tolerance)
    assert graphs.frame_count <= 2  # Of the first length, and of every other.


@pytest.mark.parametrize("head", ["plain", "called"])
def test_positions_that_do_not_count_get_no_logits_and_change_nothing(model, head, monkeypatch):
    in_idx, targets = torch.randint(0, 50, (2, 3, 8))
    targets[torch.rand(3, 8) < 0.7] = -100
    targets[0, :2] = torch.tensor([-100, 7])
    seen = []
    if head == "called":
        model.out_head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    else:
        real = loss_module.linear_cross_entropy

        def watched(hidden, *args, **options):
            seen.append(hidden)
            return real(hidden, *args, **options)

        monkeypatch.setattr(loss_module, "linear_cross_entropy", watched)
    parameters = tuple(model.parameters())
    ours = value_and_gradients(next_token_loss(model, in_idx, targets), *parameters)
    assert [len(hidden) for hidden in seen] == [(targets != -100).sum()]
    torchs = value_and_gradients(loss_of_logits(model, in_idx, targets), *parameters)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("length", [1, 5, 8])
def test_a_classifiers_labels_are_no_targets_whatever_the_length(model, is_ours, length):
    in_idx, labels = torch.randint(0, 50, (3, length)), torch.randint(0, 2, (3,))
    model = model if is_ours else nn.Sequential(model)
    with pytest.raises(
        DataError, match=rf"targets are \[3\], inputs \[3, {length}\]: a classifier"
    ):
        next_token_loss(model, in_idx, labels)


def test_too_few_targets_are_told_with_both_shapes(model):
    in_idx, targets = torch.randint(0, 50, (2, 3, 8))
    with pytest.raises(DataError, match=r"targets are \[3, 7\], inputs \[3, 8\]$"):
        next_token_loss(model, in_idx, targets[:, 1:])


def test_a_model_of_somebodys_own_may_read_what_are_no_ids(model):
    pixels_BCHW, targets = torch.randn(3, 2, 4, 8), torch.randint(0, 50, (3, 8))
    rows = nn.Sequential(nn.Flatten(1, 2), nn.Unflatten(1, (8, 1)), nn.Flatten(2), nn.Linear(8, 50))
    torch.testing.assert_close(
        next_token_loss(rows, pixels_BCHW, targets), loss_of_logits(rows, pixels_BCHW, targets)
    )


def test_a_wrong_target_is_told_by_its_own_row(model):
    in_idx, targets = torch.randint(0, 50, (2, 3, 8))
    targets[0, :5] = -100
    targets[1, 1] = 50
    with pytest.raises(TokenIdError, match=r"target 50 at row 9 is outside 0\.\.49"):
        next_token_loss(model, in_idx, targets)


@pytest.mark.parametrize("change", ["hook", "bias", "parametrization", "another module"])
def test_an_output_layer_that_does_more_than_multiply_is_called(model, change):
    in_idx, targets = torch.randint(0, 50, (2, 3, 8))
    plain = next_token_loss(model, in_idx, targets)
    if change == "hook":
        model.out_head.register_forward_hook(lambda module, args, output: 2 * output)
    elif change == "bias":
        model.out_head = nn.Linear(12, 50, bias=True)
    elif change == "parametrization":
        nn.utils.parametrizations.weight_norm(model.out_head)
        with torch.no_grad():
            model.out_head.parametrizations.weight.original0.mul_(2)
    else:
        model.out_head = nn.Sequential(nn.Linear(12, 50, bias=False), nn.Tanh())
    changed = next_token_loss(model, in_idx, targets)
    torch.testing.assert_close(changed, loss_of_logits(model, in_idx, targets))
    assert not torch.isclose(changed, plain)

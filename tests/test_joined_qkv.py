"""Queries, keys and values in one product: the same numbers, and only of stock layers."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from gptrs import GPTModel, MultiHeadAttention
from gptrs.model import layers
from gptrs.model.loss import next_token_loss

CONFIG = {
    "vocab_size": 61,
    "context_length": 12,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
}


@pytest.fixture(autouse=True)
def _joined_everywhere(monkeypatch):
    monkeypatch.setattr(layers, "JOINED_QKV_DEVICES", frozenset({"cpu"}))


@pytest.fixture
def products(monkeypatch):
    """The shapes of the weights that `F.linear` is called with in `layers`, in order."""
    shapes = []
    linear = torch.nn.functional.linear

    def watched(x, weight, bias=None):
        shapes.append(tuple(weight.shape))
        return linear(x, weight, bias)

    monkeypatch.setattr(layers.F, "linear", watched)
    return shapes


def separately(monkeypatch, function):
    with monkeypatch.context() as patch:
        patch.setattr(layers, "JOINED_QKV_DEVICES", frozenset())
        return function()


def gradients(model, ids):
    model.zero_grad()
    next_token_loss(model, ids, ids.roll(-1, 1)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_logits_and_gradients_equal_those_of_three_products(monkeypatch, products, seed, qkv_bias):
    torch.manual_seed(seed)
    model = GPTModel({**CONFIG, "qkv_bias": qkv_bias}).double()
    ids = torch.randint(61, (2, 9))
    logits, grads = model(ids), gradients(model, ids)
    assert (72, 24) in products
    expected = separately(monkeypatch, lambda: model(ids))
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    for name, grad in separately(monkeypatch, lambda: gradients(model, ids)).items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-12, atol=1e-12)


def test_the_state_dict_has_the_books_names_alone():
    model = GPTModel(CONFIG)
    model(torch.zeros(1, 3, dtype=torch.long))
    assert [key for key in model.state_dict() if ".0.att." in key] == [
        "trf_blocks.0.att.W_query.weight",
        "trf_blocks.0.att.W_key.weight",
        "trf_blocks.0.att.W_value.weight",
        "trf_blocks.0.att.out_proj.weight",
        "trf_blocks.0.att.out_proj.bias",
    ]


class LoRA(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.A = nn.Parameter(torch.randn(24, 2))
        self.B = nn.Parameter(torch.randn(2, 24))

    def forward(self, x):
        return self.linear(x) + x @ self.A @ self.B


def with_lora(att):
    att.W_query = LoRA(att.W_query)


def with_a_hook(att):
    att.W_query.register_forward_hook(lambda module, args, output: output * 2)


def with_a_pre_hook(att):
    att.W_key.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def with_a_parametrization(att):
    torch.nn.utils.parametrizations.weight_norm(att.W_value)
    att.W_value.parametrizations.weight.original0.data *= 2


def with_a_forward_of_its_own(att):
    weight = att.W_query.weight
    att.W_query.forward = lambda x: x @ weight.T * 2


def with_one_bias(att):
    att.W_key = nn.Linear(24, 24)


@pytest.mark.parametrize(
    "change",
    [
        with_lora,
        with_a_hook,
        with_a_pre_hook,
        with_a_parametrization,
        with_a_forward_of_its_own,
        with_one_bias,
    ],
)
def test_a_layer_that_is_not_the_stock_one_is_called(monkeypatch, change):
    torch.manual_seed(0)
    att = MultiHeadAttention(24, 24, 12, 0.0, 3)
    x = torch.randn(2, 5, 24)
    change(att)
    expected = separately(monkeypatch, lambda: att(x))
    torch.testing.assert_close(att(x), expected, rtol=0, atol=0)


def test_a_backward_hook_on_a_projection_is_called():
    att, seen = MultiHeadAttention(24, 24, 12, 0.0, 3), []
    att.W_value.register_full_backward_hook(lambda *args: seen.append(1))
    att(torch.randn(1, 4, 24, requires_grad=True)).sum().backward()
    assert seen == [1]


def test_a_new_output_layer_changes_nothing_before_it():
    torch.manual_seed(0)
    model = GPTModel(CONFIG)
    classifier = copy.deepcopy(model)
    classifier.out_head = nn.Linear(24, 2)
    ids = torch.randint(61, (2, 7))
    assert classifier(ids).shape == (2, 7, 2)
    assert torch.equal(classifier.hidden_states(ids), model.hidden_states(ids))


@pytest.fixture
def mesh(tmp_path):
    """One process that shards among itself."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def shard_blocks(model, mesh):
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def shard_projections(model, mesh):
    for block in model.trf_blocks:
        fully_shard(block.att.W_key, mesh=mesh)
    fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("shard", [shard_blocks, shard_projections])
def test_a_model_in_shards_has_the_same_losses_and_gradients(mesh, shard):
    torch.manual_seed(0)
    model = GPTModel(CONFIG)
    sharded = copy.deepcopy(model)
    shard(sharded, mesh)
    ids = torch.randint(61, (2, 7))
    torch.testing.assert_close(next_token_loss(sharded, ids, ids), next_token_loss(model, ids, ids))
    expected = gradients(model, ids)
    for name, grad in gradients(sharded, ids).items():
        torch.testing.assert_close(grad.full_tensor(), expected[name], msg=name)


def test_it_compiles_in_one_graph():
    torch.manual_seed(0)
    model = GPTModel(CONFIG)
    ids = torch.randint(61, (2, 7))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model(ids))

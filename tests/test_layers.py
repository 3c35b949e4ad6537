"""Each part alone: the book's values, the book's classes, and what replaced layers may expect."""

import copy

import pytest
import torch
from llms_from_scratch import ch03, ch04
from torch import nn

from gptrs.config import GPT_CONFIG_124M
from gptrs.errors import ConfigError, DataError
from gptrs.model import layers
from gptrs.model.gpt import GPTModel
from gptrs.model.layers import (
    GELU,
    Attend,
    FeedForward,
    LayerNorm,
    MultiHeadAttention,
    TransformerBlock,
)

SMALL = {**GPT_CONFIG_124M, "vocab_size": 97, "context_length": 16, "emb_dim": 24, "n_heads": 3}


def both(make_ours, make_theirs, seed=123):
    """The two modules, each built after the same seed."""
    torch.manual_seed(seed)
    ours = make_ours()
    torch.manual_seed(seed)
    return ours, make_theirs()


def test_layer_norm_gives_mean_0_and_biased_variance_1():
    torch.manual_seed(123)
    x = torch.randn(2, 5, 64) * 7 + 3
    out = LayerNorm(64)(x)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, unbiased=False), torch.ones(2, 5), atol=1e-4, rtol=0)
    assert LayerNorm(64).eps == 1e-5


def test_layer_norm_is_the_books_with_any_scale_and_shift():
    torch.manual_seed(0)
    ours, theirs = LayerNorm(8), ch04.LayerNorm(8)
    state = {"scale": torch.randn(8), "shift": torch.randn(8)}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(4, 8) * 10
    torch.testing.assert_close(ours(x), theirs(x))


def test_gelu_is_the_books_and_of_minus_1_it_is_minus_0_1588():
    assert round(GELU()(torch.tensor(-1.0)).item(), 4) == -0.1588
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(GELU()(x), ch04.GELU()(x), atol=1e-6, rtol=1e-5)


def test_feed_forward_takes_the_books_dictionary_and_draws_its_weights():
    ours, theirs = both(lambda: FeedForward(SMALL), lambda: ch04.FeedForward(SMALL))
    x = torch.randn(2, 3, 24)
    torch.testing.assert_close(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_feed_forward_needs_a_width_alone_as_the_books_does():
    ours, theirs = both(
        lambda: FeedForward({"emb_dim": 100}), lambda: ch04.FeedForward({"emb_dim": 100})
    )
    x = torch.randn(2, 3, 100)
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.raises(ConfigError, match="unknown config key 'emb_dims': did you mean 'emb_dim'"):
        FeedForward({"emb_dims": 100})
    with pytest.raises(ConfigError, match="emb_dim 100 is not a multiple of n_heads 12"):
        FeedForward({"emb_dim": 100, "n_heads": 12})


def test_the_books_own_shapes_come_out_of_124m_parts():
    x = torch.rand(2, 4, 768)
    assert FeedForward(GPT_CONFIG_124M)(x).shape == (2, 4, 768)
    assert TransformerBlock(GPT_CONFIG_124M)(x).shape == (2, 4, 768)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("training", [False, True])
def test_attention_is_the_books_draw_for_draw(qkv_bias, dropout, training):
    args = (6, 8, 10, dropout, 2, qkv_bias)
    ours, theirs = both(lambda: MultiHeadAttention(*args), lambda: ch03.MultiHeadAttention(*args))
    ours.train(training)
    theirs.train(training)
    x = torch.randn(3, 7, 6)
    torch.manual_seed(1)
    expected = theirs(x)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_drops_the_very_weights_the_book_drops():
    ours, theirs = both(
        lambda: MultiHeadAttention(8, 8, 6, 0.5, 2),
        lambda: ch03.MultiHeadAttention(8, 8, 6, 0.5, 2),
    )
    x = torch.randn(2, 6, 8)
    dropped = []
    theirs.dropout.register_forward_hook(lambda module, args, output: dropped.append(output == 0))
    weights = []
    torch.manual_seed(2)
    theirs(x)
    torch.manual_seed(2)
    ours(x, Attend(weights=weights))
    assert torch.equal(weights[0] == 0, dropped[0])


def test_fused_and_step_by_step_attention_agree_in_training_too():
    torch.manual_seed(0)
    att = MultiHeadAttention(8, 8, 6, 0.3, 2)
    x = torch.randn(2, 6, 8)
    torch.manual_seed(3)
    fused = att(x)
    torch.manual_seed(3)
    torch.testing.assert_close(att(x, Attend(weights=[])), fused)


def test_attention_weights_are_causal_and_sum_to_1():
    att = MultiHeadAttention(8, 8, 6, 0.0, 2)
    weights = []
    att(torch.randn(2, 5, 8), Attend(weights=weights))
    (w,) = weights
    assert w.shape == (2, 2, 5, 5)
    assert torch.equal(w, w.tril())
    torch.testing.assert_close(w.sum(-1), torch.ones(2, 2, 5))


def test_a_dropout_of_somebodys_own_is_called():
    class HalfOff(nn.Module):
        def forward(self, weights):
            return weights * 0.5

    att = MultiHeadAttention(8, 8, 6, 0.0, 2)
    x = torch.randn(1, 4, 8)
    whole = att(x) - att.out_proj.bias
    att.dropout = HalfOff()
    torch.testing.assert_close(att(x) - att.out_proj.bias, whole / 2)


def test_a_hook_on_the_attentions_dropout_is_called():
    att = MultiHeadAttention(8, 8, 6, 0.1, 2)
    seen = []
    att.dropout.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    att(torch.randn(1, 4, 8))
    assert seen == [(1, 2, 4, 4)]


def test_dropout_kept_on_in_eval_mode_stays_on():
    att = MultiHeadAttention(8, 8, 6, 0.5, 2).eval()
    x = torch.randn(1, 6, 8)
    assert torch.equal(att(x), att(x))
    att.dropout.train()
    assert not torch.equal(att(x), att(x))


def test_every_linear_layer_can_be_replaced_or_hooked():
    block = TransformerBlock(SMALL)
    called = set()
    for name, module in block.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    block(torch.randn(1, 4, 24))
    assert called == {name for name, _ in block.named_modules()}

    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    block.att.W_query = Counting(24, 24, bias=False)
    block.ff.layers[0] = Counting(24, 96)
    block(torch.randn(1, 4, 24))
    assert Counting.calls == 2


def test_an_attention_of_somebodys_own_needs_no_second_argument():
    class Identity(nn.Module):
        def forward(self, x):
            return x

    block = TransformerBlock(SMALL)
    block.att = Identity()
    assert block(torch.randn(1, 4, 24)).shape == (1, 4, 24)


def test_norm1_runs_before_attention_and_dropout_after_it():
    block = TransformerBlock(SMALL)
    order = []
    for name in ("norm1", "att", "drop_resid", "norm2", "ff"):
        getattr(block, name).register_forward_hook(lambda *_, name=name: order.append(name))
    block(torch.randn(1, 4, 24))
    assert order == ["norm1", "att", "drop_resid", "norm2", "ff", "drop_resid"]


def test_a_block_is_the_books_in_training_too():
    ours, theirs = both(lambda: TransformerBlock(SMALL), lambda: ch04.TransformerBlock(SMALL))
    x = torch.randn(2, 9, 24)
    torch.manual_seed(7)
    expected = theirs(x)
    torch.manual_seed(7)
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_an_attention_of_the_books_loads_and_ours_has_no_mask():
    theirs = ch03.MultiHeadAttention(8, 8, 6, 0.0, 2)
    ours = MultiHeadAttention(8, 8, 6, 0.0, 2)
    assert "mask" in theirs.state_dict()
    assert "mask" not in ours.state_dict()
    checkpoint = theirs.state_dict()
    for module in (ours, copy.deepcopy(ours)):
        module.load_state_dict(checkpoint)
        x = torch.randn(1, 6, 8)
        torch.testing.assert_close(module(x), theirs(x))
    assert "mask" in checkpoint


def test_a_foreign_key_is_still_refused():
    att = MultiHeadAttention(8, 8, 6, 0.0, 2)
    with pytest.raises(RuntimeError, match="masks"):
        att.load_state_dict({**att.state_dict(), "masks": torch.ones(6, 6)})


def test_more_tokens_than_context_length_say_both_numbers():
    with pytest.raises(DataError, match="the input has 7 tokens, more than context_length 6"):
        MultiHeadAttention(8, 8, 6, 0.0, 2)(torch.randn(1, 7, 8))


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="d_out 8 is not a multiple of num_heads 3"):
        MultiHeadAttention(8, 8, 6, 0.0, 3)


class BlockWithoutShortcuts(TransformerBlock):
    def forward(self, x):
        return self.ff(self.norm2(self.att(self.norm1(x))))


@pytest.mark.parametrize("seed", range(3))
def test_shortcuts_keep_the_first_layers_gradient_large(seed):
    gradients = []
    for block_class in (TransformerBlock, BlockWithoutShortcuts):
        torch.manual_seed(seed)
        model = GPTModel({**SMALL, "n_layers": 12, "drop_rate": 0.0})
        for index, block in enumerate(model.trf_blocks):
            model.trf_blocks[index] = block_class(SMALL)
            model.trf_blocks[index].load_state_dict(block.state_dict())
        idx = torch.arange(16).reshape(1, 16)
        nn.functional.cross_entropy(model.eval()(idx)[0, :-1], idx[0, 1:]).backward()
        first = model.trf_blocks[0].att.W_query.weight.grad
        gradients.append([first.abs().mean(), model.tok_emb.weight.grad.abs().mean()])
    (first, embedding), (first_without, embedding_without) = gradients
    assert first > 3 * first_without
    assert embedding > 2 * embedding_without


def test_an_input_without_its_batch_is_refused_and_says_how_it_is_added():
    attention = MultiHeadAttention(8, 8, 4, 0.0, 2)
    with pytest.raises(DataError, match=r"x has shape \[4, 8\]; it must be .*; add the batch"):
        attention(torch.zeros(4, 8))
    with pytest.raises(DataError, match=r"must be \[batch, tokens, d_in\]$"):
        attention(torch.zeros(1, 2, 4, 8))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("mask", [None, "boolean", "added"])
@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("is_quick", [True, False])
def test_gradients_of_attention_in_bfloat16_are_as_near_as_torchs_own(
    monkeypatch, autocast, mask, tokens, is_quick
):
    """Over few tokens the core computes them, or always where it has tiles; else torch."""
    monkeypatch.setattr(layers, "FEW_TOKENS", 8)
    monkeypatch.setattr(layers.operators, "MULTIPLIES_BFLOAT16", is_quick)
    torch.manual_seed(0)
    attention = MultiHeadAttention(32, 32, 64, 0.0, num_heads=2)
    x = torch.randn(3, tokens, 32)
    sees = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    masks = {
        "boolean": Attend(mask=sees),
        "added": Attend(mask=torch.randn(2, tokens, tokens).masked_fill(~sees, -torch.inf)),
    }

    def gradients(of, dtype, cast=False):
        of = copy.deepcopy(of).to(dtype)
        given = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = of(given, masks.get(mask))
        assert out.dtype == (torch.bfloat16 if cast else dtype)
        out.float().square().sum().backward()
        return [given.grad, *(each.grad for each in of.parameters())]

    exact = gradients(attention, torch.float64)
    found = gradients(attention, torch.float32 if autocast else torch.bfloat16, cast=autocast)
    for wanted, got in zip(exact, found, strict=True):
        error = (got.double() - wanted).norm() / wanted.norm()
        assert error < 0.02

"""Models with random weights: whether two compute the same, and what is refused."""

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from gptrs.errors import CheckpointError
from gptrs.model.gpt import GPTModel

transformers.utils.logging.disable_progress_bar()

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


def refused(path, error=CheckpointError, **options):
    """The lines of what `from_pretrained` says to these weights."""
    with pytest.raises(error) as info:
        GPTModel.from_pretrained(path, **options)
    return str(info.value).splitlines()

import signal

import pytest
import torch

import gptrs

# The models here are tiny: threads would spend their time waiting for each other, above all where
# the machine is shared.
torch.set_num_threads(1)

# A process started in the background ignores Ctrl-C; the tests send it as a terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def model():
    """A small random GPT with GPT-2's vocabulary and a context of 16 tokens."""
    torch.manual_seed(2)
    return gptrs.GPTModel(
        {
            "vocab_size": 50257,
            "context_length": 16,
            "emb_dim": 16,
            "n_heads": 2,
            "n_layers": 2,
            "drop_rate": 0.1,
            "qkv_bias": False,
        }
    ).eval()


@pytest.fixture(scope="module")
def gen(model):
    """A Generator of that model."""
    gen = gptrs.Generator(model)
    yield gen
    gen.close()

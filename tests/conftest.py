import gc
import os
import signal

import hypothesis
import pytest
import torch

import gptrs
from gptrs import cli

# The models here are tiny: threads would spend their time waiting for each other, above all where
# the machine is shared. So would those of processes that the tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A process started in the background ignores Ctrl-C; the tests send it as a terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time: what passes here passes elsewhere. `make test-explore` takes others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish():
    """What is imported and collected by now stays; to look through it takes half a second."""
    gc.collect()
    gc.freeze()


class TorchsNumbers:
    """Every example of a property draws the same ones, so that one that fails does so again."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


hypothesis.register_random(TorchsNumbers)


@pytest.fixture(autouse=True)
def _the_same_numbers_for_every_test():
    torch.manual_seed(0)


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


@pytest.fixture
def run(capsys):
    """Runs `gptrs` with these arguments: exit code, stdout, stderr."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def eot_logits():
    """A model that always expects end-of-text: ids [B, T] to logits [B, T, V]."""
    tokenizer = gptrs.get_tokenizer("gpt2")

    def call(ids):
        logits = torch.zeros(*ids.shape, tokenizer.n_vocab)
        logits[..., tokenizer.eot_token] = 1e6
        return logits

    return call

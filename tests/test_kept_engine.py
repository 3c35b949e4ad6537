"""A Generator keeps its last native engine for the next call, while a new one would be the same."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gptrs import Generator, GPTModel
from gptrs.engines.native_engine import CACHE_UNIT, NativeEngine

CONFIG = {
    "vocab_size": 97,
    "context_length": 40,
    "emb_dim": 64,
    "n_heads": 4,
    "n_layers": 2,
    "qkv_bias": True,
    "init": "gpt2",
}


class Letters:
    """A tokenizer, since a Generator has one; the prompts here are ids."""

    n_vocab = 97

    def encode(self, text):
        return [ord(letter) - 65 for letter in text]

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


def make_model(seed=0):
    torch.manual_seed(seed)
    model = GPTModel(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def make_prompts(count, longest=20):
    rng = random.Random(count)
    return [[rng.randrange(97) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def tokens(gen, prompts, num_new=12):
    return [completion.token_ids for completion in gen(prompts, num_new, temperature=0.0)]


def fresh(model, dtype):
    """A generator that has kept nothing; PyTorch's, where it has this dtype."""
    return Generator(model, Letters(), engine="native" if dtype else "torch", dtype=dtype)


@pytest.fixture
def made(monkeypatch):
    """The engines that are made."""
    engines = []
    init = NativeEngine.__init__

    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        engines.append(self)

    monkeypatch.setattr(NativeEngine, "__init__", noted)
    return engines


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_cache_that_is_long_enough_is_used_again(made, dtype):
    model = make_model()
    gen = Generator(model, Letters(), dtype=dtype)
    prompts = sorted(make_prompts(8), key=len)
    found = [tokens(gen, [prompt]) for prompt in reversed(prompts)]
    assert len(made) == 1
    found += [tokens(gen, [prompt]) for prompt in prompts]
    assert len(made) == 1
    expected = [tokens(fresh(model, dtype), [prompt]) for prompt in prompts]
    assert found == [*reversed(expected), *expected]


def test_longer_texts_and_more_of_them_get_another(made):
    gen = Generator(make_model(), Letters())
    for prompts, num_made in (([[1]], 1), ([[1] * 9], 2), ([[1]], 2), ([[1], [2]], 3)):
        tokens(gen, prompts)
        assert len(made) == num_made


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.final_norm, "eps", 10.0),
        lambda model: setattr(model.trf_blocks[0].norm2, "eps", 10.0),
        lambda model: setattr(model.trf_blocks[1].att, "scale", 3.0),
        lambda model: model.out_head.weight.data.neg_(),
        lambda model: model.load_state_dict(make_model(1).state_dict()),
        lambda model: setattr(model.trf_blocks[0].ff.layers[2], "bias", None),
        lambda model: setattr(model, "out_head", make_model(2).out_head),
    ],
    ids=["final eps", "eps", "scale", "data", "state_dict", "bias", "head"],
)
def test_what_changes_between_calls_is_seen(dtype, change):
    model = make_model()
    prompts = make_prompts(6)
    gen = Generator(model, Letters(), dtype=dtype)
    before = tokens(gen, prompts)
    change(model)
    after = tokens(gen, prompts)
    assert after == tokens(fresh(model, dtype), prompts)
    assert after != before


def test_other_weights_have_another_engine():
    model = make_model()
    gen = Generator(model, Letters())
    (first,) = gen([[1]], 4)
    model.to(torch.bfloat16)
    (second,) = gen([[1]], 4)
    assert "float32" in first.engine
    assert "bfloat16" in second.engine


def test_a_stream_that_is_not_over_keeps_its_engine():
    gen = Generator(make_model(), Letters())
    expected = gen("ABC", 20, temperature=0.0)[0].text
    stream = gen.stream("ABC", 20, temperature=0.0)
    pieces = [next(stream)]
    assert gen("ABC", 20, temperature=0.0)[0].text == expected
    assert "".join([*pieces, *stream]) == expected


def test_threads_do_not_share_an_engine():
    gen = Generator(make_model(), Letters())
    prompts = make_prompts(48)
    expected = [tokens(gen, [prompt]) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: tokens(gen, [prompt]), prompts)) == expected


def test_a_large_cache_is_not_kept(made, monkeypatch):
    # Keys and values, layers, padded heads, bytes, tokens.
    width = CONFIG["n_heads"] * CACHE_UNIT
    most = 2 * CONFIG["n_layers"] * width * 4 * 20
    monkeypatch.setattr("gptrs.generation.runs.MOST_KEPT_BYTES", most)
    gen = Generator(make_model(), Letters())
    for num_tokens, num_made in ((10, 1), (10, 1), (30, 2), (30, 3)):
        gen([[1]], num_tokens, temperature=0.0)
        assert len(made) == num_made

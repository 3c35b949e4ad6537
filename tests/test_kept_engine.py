"""A Generator keeps its last native engine for the next call, while a new one would be the same."""

import copy
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gptrs import Generator, GPTModel, _core
from gptrs.engines.native_engine import CACHE_UNIT, NativeEngine
from gptrs.errors import GenerationError

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


def twice(module, inputs, output):
    """A hook."""
    return 2 * output


CHANGES = {
    "final eps": lambda model: setattr(model.final_norm, "eps", 10.0),
    "eps": lambda model: setattr(model.trf_blocks[0].norm2, "eps", 10.0),
    "scale": lambda model: setattr(model.trf_blocks[1].att, "scale", 3.0),
    "data": lambda model: model.out_head.weight.data.neg_(),
    "a view": lambda model: setattr(
        (query := model.trf_blocks[0].att.W_query).weight, "data", query.weight.data.t()
    ),
    "state_dict": lambda model: model.load_state_dict(make_model(1).state_dict()),
    "bias": lambda model: setattr(model.trf_blocks[0].ff.layers[2], "bias", None),
    "head": lambda model: setattr(model, "out_head", make_model(2).out_head),
    "hook": lambda model: model.trf_blocks[1].norm1.register_forward_hook(twice),
    "forward": lambda model: setattr(model.final_norm, "forward", torch.sin),
    "class": lambda model: setattr(model.trf_blocks[0].ff.layers[1], "__class__", torch.nn.Tanh),
}
NOT_NATIVE = {"a view", "hook", "forward", "class"}
"""What leaves a model that Rust does not run."""


@pytest.mark.parametrize("way", ["call", "submit", "session"])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *((None, name) for name in CHANGES),
        *(("int8", name) for name in CHANGES if name not in NOT_NATIVE),
    ],
)
def test_what_changes_between_calls_is_seen(way, dtype, name):
    model = make_model()
    gen = Generator(model, Letters(), dtype=dtype)
    prompts = make_prompts(12, longest=5)
    sessions = [gen.session(temperature=0.0) for _ in prompts]

    def answers():
        if way == "session":
            turns = zip(sessions, prompts, strict=True)
            return [session.send(prompt, 12).token_ids for session, prompt in turns]
        if way == "submit":
            handles = [gen.submit(prompt, 12, temperature=0.0) for prompt in prompts]
            return [handle.result(30).token_ids for handle in handles]
        return tokens(gen, prompts)

    answers()
    said = zip(sessions, prompts, strict=True)
    whole = [session.token_ids + prompt for session, prompt in said]
    before = tokens(fresh(model, dtype), whole)
    CHANGES[name](model)
    expected = tokens(fresh(model, dtype), whole)
    assert answers() == expected
    assert before != expected
    gen.close()


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.trf_blocks.append(make_model(1).trf_blocks[0]),
        lambda model: (
            setattr(model.trf_blocks[0].ff.layers, "0", torch.nn.Linear(64, 320)),
            setattr(model.trf_blocks[0].ff.layers, "2", torch.nn.Linear(320, 64)),
        ),
        lambda model: (
            setattr(model, "tok_emb", torch.nn.Embedding(101, 64)),
            setattr(model, "out_head", torch.nn.Linear(64, 101, bias=False)),
        ),
    ],
    ids=["a block", "wider", "vocabulary"],
)
def test_a_model_of_another_shape_ends_what_runs_and_the_next_call_has_it(dtype, change):
    model = make_model()
    gen = Generator(model, Letters(), dtype=dtype)
    stream = gen.stream([1, 2, 3], 8, temperature=0.0)
    next(stream)
    change(model)
    with pytest.raises(GenerationError, match="its parameters have other shapes than before"):
        list(stream)
    prompts = make_prompts(4)
    assert tokens(gen, prompts) == tokens(fresh(model, dtype), prompts)


def test_a_row_that_was_written_through_data_is_packed_for_the_next_generator():
    model = make_model()
    for row in (0, 50, 96):
        tokens(Generator(model, Letters(), dtype="int8"), [[1]])
        model.out_head.weight.data[row] += 9.0
        same = make_model()
        same.load_state_dict(model.state_dict())
        found, expected = (
            tokens(Generator(each, Letters(), dtype="int8"), make_prompts(4))
            for each in (model, same)
        )
        assert found == expected


def test_a_copy_of_a_generator_has_its_settings_and_a_model_of_its_own():
    gen = Generator(make_model(), Letters(), dtype="int8", context_length=30, max_batch=2)
    expected = tokens(gen, make_prompts(5))
    gen.submit([1], 3).result(30)
    for copied in (pickle.loads(pickle.dumps(gen)), copy.deepcopy(gen)):
        gen.model.out_head.weight.data.neg_()
        assert tokens(copied, make_prompts(5)) == expected
        assert (copied.context_length, copied.model.training) == (30, False)
        assert copied([[1]], 2)[0].engine.startswith("native int8")
        gen.model.out_head.weight.data.neg_()
    gen.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_more_threads_compute_than_can_run_at_once(made):
    model, before = make_model(), torch.get_num_threads()
    gen = Generator(model, Letters())
    try:
        torch.set_num_threads(64)
        before_it = native_threads()
        tokens(gen, [[1, 2, 3]])
        # The caller's thread is one more.
        assert native_threads() - before_it == _core.NativeModel.available_threads() - 1
    finally:
        torch.set_num_threads(before)


def native_threads():
    """How many threads of Rust's this process has."""
    names = (task / "comm" for task in Path("/proc/self/task").iterdir())
    return sum("gptrs" in name.read_text() for name in names)


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

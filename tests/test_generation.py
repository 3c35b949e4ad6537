"""The book's `generate` functions, against the book's own loop."""

import signal
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch import ch04, ch05
from torch import nn

import gptrs
from gptrs import GPTModel, generate, generate_text_simple, text_to_token_ids, token_ids_to_text
from gptrs.engines.choice import can_cache, make_engine
from gptrs.errors import ConfigError, GenerationError, TokenIdError

CONFIG = {
    "vocab_size": 97,
    "context_length": 12,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}
TOKENIZER = gptrs.get_tokenizer("gpt2")
# The random models below are the same in every run: where two logits nearly tie, rounding decides,
# and it differs between a cached and an uncached pass.


def make_model(seed=1, **changes):
    torch.manual_seed(seed)
    return GPTModel({**CONFIG, **changes}).eval()


def prompt(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG["vocab_size"], (batch, length), generator=generator)


def test_the_books_124m_model_writes_the_books_tokens():
    torch.manual_seed(123)
    model = GPTModel(gptrs.GPT_CONFIG_124M).eval()
    idx = text_to_token_ids("Hello, I am", TOKENIZER)
    out = generate_text_simple(model, idx, 10, gptrs.GPT_CONFIG_124M["context_length"])
    assert out.tolist() == [
        [15496, 11, 314, 716, 27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657]
    ]


@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 4),
    length=st.integers(1, 20),
    num_new=st.integers(0, 20),
    context_size=st.integers(1, CONFIG["context_length"]),
)
@settings(deadline=None, max_examples=60)
def test_greedy_tokens_equal_the_books_loop(seed, batch, length, num_new, context_size):
    model = make_model(seed % 7)
    idx = prompt(batch, length, seed)
    book = ch04.generate_text_simple(model, idx, num_new, context_size)
    assert torch.equal(generate_text_simple(model, idx, num_new, context_size), book)


@given(
    seed=st.integers(0, 2**31),
    n_heads=st.integers(1, 4),
    head_dim=st.integers(1, 8),
    n_layers=st.integers(1, 3),
    context_length=st.integers(1, 20),
    qkv_bias=st.booleans(),
    length=st.integers(1, 24),
)
@settings(deadline=None, max_examples=40)
def test_model_and_loop_together_write_what_the_books_write(
    seed, n_heads, head_dim, n_layers, context_length, qkv_bias, length
):
    config = {
        "vocab_size": 61,
        "context_length": context_length,
        "emb_dim": n_heads * head_dim,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "drop_rate": 0.1,
        "qkv_bias": qkv_bias,
    }
    idx = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    book = ch04.generate_text_simple(ch04.GPTModel(config).eval(), idx, 12, context_length)
    torch.manual_seed(seed)
    assert torch.equal(generate_text_simple(GPTModel(config).eval(), idx, 12, context_length), book)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 5, 12, 20])
def test_cached_and_uncached_greedy_tokens_agree(batch, length):
    # Past the context length too: 12 tokens, then the window slides.
    for seed in range(20):
        model = make_model(seed)
        idx = prompt(batch, length, seed)
        assert can_cache(model)
        uncached = generate_text_simple(model.forward, idx, 16, 12)
        assert torch.equal(generate_text_simple(model, idx, 16, 12), uncached)


@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 5, 97]),
)
@settings(deadline=None, max_examples=60)
def test_torch_draws_what_it_draws_in_the_books_loop(seed, batch, temperature, top_k):
    if batch > 1 and top_k is not None:
        batch = 1  # The book compares [B, V] with [B] there.
    model = make_model(seed % 5)
    idx = prompt(batch, 4, seed)
    torch.manual_seed(seed)
    book = ch05.generate(model, idx, 9, 12, temperature, top_k)
    book_state = torch.get_rng_state()
    torch.manual_seed(seed)
    assert torch.equal(generate(model, idx, 9, 12, temperature, top_k), book)
    assert torch.equal(torch.get_rng_state(), book_state)


def test_dropout_in_training_mode_draws_as_in_the_books_loop():
    model = make_model().train()
    idx = prompt(2, 3)
    torch.manual_seed(5)
    book = ch04.generate_text_simple(model, idx, 6, 12)
    torch.manual_seed(5)
    assert torch.equal(generate_text_simple(model, idx, 6, 12), book)
    assert model.training


def test_the_end_of_text_stops_a_row_and_fills_the_shorter_ones():
    model = make_model()
    idx = prompt(3, 4)
    free = generate_text_simple(model, idx, 14, 12)
    # Stop the second row at its third token.
    eos_id = int(free[1, 4 + 2])
    out = generate(model, idx, 14, 12, eos_id=eos_id)
    longest = 0
    for row in range(3):
        new = free[row, 4:].tolist()
        expected = new[: new.index(eos_id)] if eos_id in new else new
        longest = max(longest, len(expected))
        found = out[row, 4:].tolist()
        assert found == expected + [eos_id] * (len(found) - len(expected))
        [alone] = ch05.generate(model, idx[row : row + 1], 14, 12, eos_id=eos_id).tolist()
        assert alone[4:] == expected
    assert out.shape[1] == 4 + longest


def test_foreign_models_are_called_as_the_book_calls_them():
    torch.manual_seed(3)
    foreign = ch04.GPTModel(CONFIG).eval()
    idx = prompt(2, 7)
    book = ch04.generate_text_simple(foreign, idx, 10, 12)
    assert torch.equal(generate_text_simple(foreign, idx, 10, 12), book)


def test_a_batch_draws_within_the_top_k_where_the_books_breaks():
    model = make_model()
    idx = prompt(3, 4)
    one = generate(model, idx, 8, 12, temperature=1.0, top_k=1)
    assert torch.equal(one, generate_text_simple(model, idx, 8, 12))
    assert generate(model, idx, 8, 12, temperature=1.0, top_k=10_000).shape == (3, 12)


class CountingEngine:
    """Passes on what an engine does, and counts the callbacks."""

    def __init__(self, engine):
        self._engine = engine
        self.num_callbacks = 0

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def step(self, num_slots):
        self.num_callbacks += 1
        return self._engine.step(num_slots)

    def extend(self, slots, counts, wanted):
        self.num_callbacks += 1
        return self._engine.extend(slots, counts, wanted)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("length", [3, 15])
def test_n_tokens_are_one_call_into_rust_and_n_callbacks_out_of_it(monkeypatch, batch, length):
    engines = []

    def counting(*arguments, **options):
        options |= {"engine": "torch"}  # Rust calls nobody back.
        engines.append(CountingEngine(make_engine(*arguments, **options)))
        return engines[-1]

    monkeypatch.setattr(gptrs.generation.book, "make_engine", counting)
    core_calls = []

    def profile(frame, event, arg):
        if event == "c_call" and type(getattr(arg, "__self__", None)).__module__ == "gptrs._core":
            core_calls.append(arg.__name__)

    model, idx = make_model(), prompt(batch, length)
    sys.setprofile(profile)
    try:
        generate_text_simple(model, idx, 10, 12)
    finally:
        sys.setprofile(None)
    assert core_calls == ["submit"] * batch + ["run"]
    assert [engine.num_callbacks for engine in engines] == [10]


def test_what_a_hook_or_a_subclass_changes_is_in_the_tokens():
    class Negated(GPTModel):
        def forward(self, in_idx, **options):
            return super().forward(in_idx, **options).neg()

    hooked = make_model()
    hooked.register_forward_hook(lambda module, args, out: out.neg())
    torch.manual_seed(1)
    subclass = Negated(CONFIG).eval()
    idx = prompt(2, 4)
    book = ch04.generate_text_simple(hooked, idx, 5, 12)
    for model in (hooked, subclass):
        assert not can_cache(model)
        assert torch.equal(generate_text_simple(model, idx, 5, 12), book)


def test_a_replaced_layer_is_called_in_the_cached_run_too():
    class Doubled(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return 2 * self.linear(x)

    model = make_model()
    att = model.trf_blocks[1].att
    att.W_query = Doubled(att.W_query)
    assert can_cache(model)
    idx = prompt(2, 4)
    book = ch04.generate_text_simple(model, idx, 6, 12)
    assert torch.equal(generate_text_simple(model, idx, 6, 12), book)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_float_type_of_logits_reaches_the_sampler(dtype):
    model = make_model().to(dtype)
    idx = prompt(1, 4)
    book = ch04.generate_text_simple(model, idx, 1, 12)
    assert torch.equal(generate_text_simple(lambda ids: model(ids), idx, 1, 12), book)


def test_the_dtype_and_device_of_idx_are_kept():
    out = generate_text_simple(make_model(), prompt(1, 3).int(), 2, 12)
    assert out.dtype is torch.int32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"idx": torch.zeros(1, 0, dtype=torch.int64)}, GenerationError, "prompt 0 has no tokens"),
        ({"idx": torch.zeros(3, dtype=torch.int64)}, GenerationError, r"shape \[3\], expected"),
        ({"idx": torch.tensor([[0, 97]])}, TokenIdError, r"id 97 at \[0, 1\] is outside 0..96"),
        ({"idx": torch.tensor([[0], [-1]])}, TokenIdError, r"id -1 at \[1, 0\] is outside 0..96"),
        ({"top_k": 0}, ConfigError, "top_k .* found 0"),
        ({"temperature": -1.0}, ConfigError, "temperature .* found -1"),
        ({"context_size": 0}, ConfigError, "context_size is at least 1, found 0"),
        ({"max_new_tokens": -2}, ConfigError, "max_new_tokens is at least 0, found -2"),
        ({"max_new_tokens": "3"}, ConfigError, "max_new_tokens is at least 0, found '3'"),
        ({"context_size": 12.0}, ConfigError, "context_size is at least 1, found 12.0"),
        ({"eos_id": [1]}, ConfigError, r"eos_id is a token id or None, found \[1\]"),
        ({"idx": [[1, 2]]}, TypeError, r"idx is a tensor of ids \[batch, tokens\], found list"),
        ({"idx": np.array([[1, 2]])}, TypeError, "found ndarray"),
        ({"idx": torch.tensor([[1.0]])}, TypeError, "whole numbers, found torch.float32"),
    ],
)
def test_bad_input_says_what_was_asked_and_what_was_found(arguments, error, message):
    arguments = {"idx": prompt(1, 3), "max_new_tokens": 3, "context_size": 12, **arguments}
    with pytest.raises(error, match=message):
        generate(make_model(), **arguments)


def with_more_tokens(model, num_ids, num_logits=None):
    """The model with larger layers in the place of its own, as one who adds tokens makes them."""
    cfg = model.cfg
    model.tok_emb = nn.Embedding(num_ids, cfg.emb_dim)
    model.out_head = nn.Linear(cfg.emb_dim, num_logits or num_ids, bias=False)
    return model


@pytest.mark.parametrize("has_hook", [False, True])
def test_a_model_that_was_given_more_tokens_reads_and_writes_them(has_hook):
    model, idx = with_more_tokens(make_model(), 400), torch.tensor([[5, 399, 97]])
    if has_hook:  # Without a cache.
        model.register_forward_hook(lambda *args: None)
    expected = ch04.generate_text_simple(model, idx, 20, 12)
    assert expected[:, 3:].max() >= CONFIG["vocab_size"]
    assert torch.equal(generate_text_simple(model, idx, 20, 12), expected)
    torch.manual_seed(5)
    expected = ch05.generate(model, idx, 20, 12, temperature=1.0, top_k=30)
    torch.manual_seed(5)
    assert torch.equal(generate(model, idx, 20, 12, temperature=1.0, top_k=30), expected)
    with pytest.raises(TokenIdError, match=r"id 400 at \[0, 0\] is outside 0..399"):
        generate(model, torch.tensor([[400]]), 1, 12)


@pytest.mark.parametrize(("num_ids", "num_logits"), [(97, 400), (400, 97)])
def test_more_tokens_in_one_layer_alone_are_refused(num_ids, num_logits):
    model = with_more_tokens(make_model(), num_ids, num_logits)
    told = f"tok_emb reads {num_ids} token ids and out_head gives {num_logits} logits"
    with pytest.raises(ConfigError, match=told):
        generate(model, prompt(1, 3), 3, 12)
    with pytest.raises(ConfigError, match=told):
        gptrs.Generator(model, TOKENIZER)


@pytest.mark.parametrize("eos_id", [-1, 97, 2**70])
def test_an_eos_id_that_no_token_has_ends_nothing(eos_id):
    model = make_model()
    asked = (prompt(2, 3), 5, 12)
    assert torch.equal(generate(model, *asked, eos_id=eos_id), generate(model, *asked))


@pytest.mark.parametrize("number", [np.int64, torch.tensor])
def test_numbers_may_be_numpys_or_of_a_tensor(number):
    model = make_model()
    asked = generate(model, prompt(1, 3), number(4), number(12), eos_id=number(5))
    assert torch.equal(asked, generate(model, prompt(1, 3), 4, 12, eos_id=5))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_refused(temperature):
    model = make_model()
    with torch.no_grad():
        model.final_norm.scale.fill_(float("nan"))
    with pytest.raises(GenerationError, match="NaN"):
        generate(model, prompt(1, 3), 3, 12, temperature=temperature)


def test_an_exception_in_the_model_arrives_unchanged():
    class Broken(Exception):
        pass

    error = Broken("the model broke")
    steps = []

    def model(ids):
        steps.append(ids.shape)
        if len(steps) == 3:
            raise error
        return torch.zeros(*ids.shape, 97)

    with pytest.raises(Broken) as caught:
        generate_text_simple(model, prompt(1, 3), 10, 12)
    assert caught.value is error


def test_an_interrupt_ends_the_loop_and_the_model_is_usable_afterwards():
    model = make_model()
    idx = prompt(1, 3)
    expected = generate_text_simple(model, idx, 4, 12)

    def interrupted(ids):
        raise KeyboardInterrupt

    handle = model.out_head.register_forward_pre_hook(lambda module, args: interrupted(args))
    with pytest.raises(KeyboardInterrupt):
        generate_text_simple(model, idx, 4, 12)
    handle.remove()
    assert torch.equal(generate_text_simple(model, idx, 4, 12), expected)


def test_ctrl_c_is_heard_in_the_middle_of_a_long_run():
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        generate_text_simple(make_model(), prompt(1, 3), 100_000, 12)
    timer.join()


def test_logits_of_the_wrong_shape_are_refused():
    with pytest.raises(GenerationError, match=r"shape \[2, 97\]"):
        generate_text_simple(lambda ids: torch.zeros(2, 1, 97), prompt(1, 3), 1, 12)


def test_a_tokenizers_name_is_no_tokenizer():
    told = r"found 'gpt2': .* gptrs.get_tokenizer\('gpt2'\) or tiktoken.get_encoding\('gpt2'\)"
    with pytest.raises(ConfigError, match=told):
        text_to_token_ids("Hello", "gpt2")
    with pytest.raises(ConfigError, match=told):
        token_ids_to_text(prompt(1, 3), "gpt2")


def test_text_to_ids_and_back_are_the_books():
    text = "Every effort moves you<|endoftext|>Hello"
    encoding = TOKENIZER.as_tiktoken()
    ids = text_to_token_ids(text, TOKENIZER)
    assert torch.equal(ids, ch05.text_to_token_ids(text, encoding))
    assert torch.equal(ids, text_to_token_ids(text, encoding))
    assert token_ids_to_text(ids, TOKENIZER) == text == ch05.token_ids_to_text(ids, encoding)
    assert text_to_token_ids("", TOKENIZER).shape == (1, 0)
    assert token_ids_to_text(ids[0], TOKENIZER) == text
    assert token_ids_to_text(ids[0, :1], TOKENIZER) == "Every"
    with pytest.raises(GenerationError, match=r"shape \[2, \d+\], expected \[1, tokens\]"):
        token_ids_to_text(ids.expand(2, -1), TOKENIZER)

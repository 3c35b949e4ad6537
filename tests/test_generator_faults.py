"""What a `Generator` refuses, and how it goes on after what went wrong."""

import signal
import threading
from functools import partial

import pytest
import torch

import gptrs
from gptrs import Generator, GPTModel, SamplingConfig
from gptrs.errors import ConfigError, GenerationError, TokenIdError

CONTEXT = 16


PROMPTS = [
    "Hello",
    "The cat sat on the mat and",
    "a",
    "one two three four five six seven eight " * 3,
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": ""}, GenerationError, "prompt 0 has no tokens"),
        ({"prompts": ["Hi", []]}, GenerationError, "prompt 1 has no tokens"),
        ({"prompts": [[0, 50257]]}, TokenIdError, r"id 50257 at \[0, 1\] is outside 0..50256"),
        ({"prompts": [[0.5]]}, GenerationError, "found \\[0.5\\]"),
        ({"top_p": 0}, ConfigError, "top_p"),
        ({"num_samples": 0}, ConfigError, "num_samples is at least 1, found 0"),
        ({"seed": [1, 2]}, ConfigError, "2 seeds for 1 prompts"),
        ({"seed": -1}, ConfigError, "found -1"),
        ({"prompts": 5}, GenerationError, "found 5"),
        ({"prompts": [None]}, GenerationError, "found None as prompt 0"),
        ({"prompts": ["a", {}]}, GenerationError, "prompt 1"),
        ({"prompts": [[-1]]}, TokenIdError, r"id -1 at \[0, 0\]"),
        ({"max_new_tokens": -1}, ConfigError, "max_new_tokens is at least 0, found -1"),
        ({"max_new_tokens": 2.5}, ConfigError, "max_new_tokens .* found 2.5"),
        ({"temperature": float("nan")}, ConfigError, "temperature"),
        ({"top_k": 0}, ConfigError, "top_k .* found 0"),
        ({"min_p": 2.0}, ConfigError, "min_p"),
        ({"typical_p": 0.0}, ConfigError, "typical_p"),
        ({"repetition_penalty": 0.0}, ConfigError, "repetition_penalty"),
        ({"no_repeat_ngram_size": 0}, ConfigError, "no_repeat_ngram_size"),
        ({"stop": 1.5}, ConfigError, "stop is a text or a token id .* found 1.5"),
        ({"stop": ["a", None]}, ConfigError, "found None"),
        ({"stop": 50257}, ConfigError, "found 50257"),
        ({"stop": ""}, ConfigError, "stop"),
        ({"eos_id": "never"}, ConfigError, "eos_id .* found 'never'"),
        ({"overflow": "wrap"}, ConfigError, 'overflow .* found "wrap"'),
        ({"overflow": "stop", "prompts": ["a", [1] * 17]}, GenerationError, "prompt 1 .*17.*16"),
        ({"logprobs": -1}, ConfigError, "logprobs is at least 0, found -1"),
        ({"choices": "ab"}, ConfigError, "choices is a list"),
        ({"choices": ["a"], "regex": "a"}, ConfigError, "exclude each other"),
        ({"sampling": SamplingConfig(), "top_k": 3}, ConfigError, "sampling and top_k exclude"),
        ({"sampling": [SamplingConfig()] * 2}, ConfigError, "2 sampling for 1 prompts"),
        ({"sampling": [{}]}, ConfigError, "found {}"),
        ({"sequences": [0, 1]}, ConfigError, "2 sequences for 1 prompts"),
        ({"best_of": 2, "num_samples": 3}, ConfigError, "best_of is at least num_samples, 3"),
        ({"num_beams": 0}, ConfigError, "num_beams is at least 1, found 0"),
        ({"num_beams": 2, "logprobs": 1}, ConfigError, "logprobs does not go with num_beams"),
        ({"num_beams": 2, "num_samples": 3}, ConfigError, "num_samples is at most num_beams"),
        ({"num_beams": 2, "early_stopping": 3}, ConfigError, "early_stopping .* found 3"),
        ({"tempreature": 1.0}, TypeError, "no option 'tempreature'"),
    ],
)
def test_bad_input_says_what_was_asked_and_what_was_found(gen, arguments, error, message):
    arguments = {"prompts": "Hello", "max_new_tokens": 3, **arguments}
    with pytest.raises(error, match=message):
        gen(**arguments)
    if not arguments.keys() & {"num_samples", "best_of", "num_beams"}:
        for method in (gen.stream, gen.astream):
            with pytest.raises(error, match=message):
                method(**arguments)
        prompt = arguments.pop("prompts")
        if isinstance(prompt, str):
            with pytest.raises(error, match=message):
                gen.submit(prompt, **arguments)
    assert len(gen("Hello", 2)) == 1


def test_a_callable_must_say_how_much_it_sees():
    with pytest.raises(ConfigError, match="context_length is needed for a function"):
        Generator(lambda ids: torch.zeros(*ids.shape, 50257))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 5}, "found 5"),
        ({"engine": "jax"}, "engine is .* found 'jax'"),
        ({"max_batch": 0}, "max_batch is at least 1, found 0"),
        ({"max_queue": 0}, "max_queue is at least 1, found 0"),
        ({"context_length": 0}, "context_length is at least 1, found 0"),
        ({"tokenizer": 7}, "a tokenizer has encode and decode; found 7"),
    ],
)
def test_a_generator_that_cannot_be_made_says_why(model, arguments, message):
    with pytest.raises(ConfigError, match=message):
        Generator(**{"model": model, **arguments})


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    model = GPTModel({"vocab_size": 97, "context_length": 8, "emb_dim": 8, "n_heads": 1,
                      "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False})  # fmt: skip
    with pytest.raises(ConfigError, match="vocab_size 97, and the tokenizer has 50257 ids"):
        Generator(model)


class Counted(GPTModel):
    """Raises in the forward pass number `fails_at`."""

    fails_at = -1
    calls = 0

    def forward(self, in_idx, **options):
        self.calls += 1
        if self.calls == self.fails_at:
            raise Broken("the model broke")
        return super().forward(in_idx, **options)


class Broken(Exception):
    pass


def test_a_models_exception_arrives_and_the_generator_goes_on(model):
    broken = Counted(model.cfg).eval()
    broken.load_state_dict(model.state_dict())
    gen = Generator(broken)
    expected = gen("Hello", 6, seed=1)
    broken.fails_at = broken.calls + 3
    with pytest.raises(Broken):
        gen("Hello", 6, seed=1)
    assert gen("Hello", 6, seed=1) == expected
    broken.fails_at = broken.calls + 3
    stream = gen.stream("Hello", 6, seed=1)
    with pytest.raises(Broken):
        list(stream)
    assert list(stream) == []
    broken.fails_at = broken.calls + 3
    handle = gen.submit("Hello", 6, seed=1)
    with pytest.raises(Broken):
        handle.result(10)
    assert gen.submit("Hello", 6, seed=1).result(10) == expected[0]


def test_nan_logits_are_refused_and_the_generator_goes_on(model, gen):
    expected = gen("Hello", 3, seed=1)
    kept = model.final_norm.scale.detach().clone()
    with torch.no_grad():
        model.final_norm.scale.fill_(float("nan"))
    try:
        with pytest.raises(GenerationError, match="NaN"):
            gen("Hello", 3, seed=1)
    finally:
        with torch.no_grad():
            model.final_norm.scale.copy_(kept)
    assert gen("Hello", 3, seed=1) == expected


def test_when_everything_is_banned_the_error_says_so():
    gen = Generator(lambda ids: torch.full((*ids.shape, 50257), -torch.inf), context_length=8)
    with pytest.raises(GenerationError, match="no token can be drawn"):
        gen("Hello", 3)


def test_ctrl_c_ends_a_call_and_the_generator_goes_on(gen):
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        gen(PROMPTS, 10_000_000, eos_id=None)
    timer.join()
    assert gen("Hello", 2)


def test_ctrl_c_while_gradients_are_off_leaves_them_on():
    def interrupted(ids):
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    gen = Generator(interrupted, context_length=8)
    for call in (gen, lambda *args: list(gen.stream(*args)), partial(gen, num_beams=2)):
        with pytest.raises(KeyboardInterrupt):
            call("Hello", 3)
        assert torch.is_grad_enabled()


def test_a_cache_without_memory_is_refused_before_anything_is_computed():
    config = {"vocab_size": 50257, "context_length": 2**40, "emb_dim": 8, "n_heads": 1,
              "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}  # fmt: skip
    small = GPTModel({**config, "context_length": 8}).eval()
    small.cfg = gptrs.GPTConfig.of(config)
    with pytest.raises(GenerationError, match=r"GB|GiB|TB|TiB|bytes"):
        Generator(small)("Hello", 2**40)

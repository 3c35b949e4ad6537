"""`Generator`: prompts of any length, samples, seeds and streams."""

import numpy as np
import pytest
import torch

import gptrs
from gptrs import Generator, GPTModel, generate_text_simple
from gptrs.errors import ConfigError, GenerationError, TokenIdError

TOKENIZER = gptrs.get_tokenizer("gpt2")
CONTEXT = 16


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    return GPTModel(
        {
            "vocab_size": 50257,
            "context_length": CONTEXT,
            "emb_dim": 16,
            "n_heads": 2,
            "n_layers": 2,
            "drop_rate": 0.1,
            "qkv_bias": False,
        }
    ).eval()


@pytest.fixture(scope="module")
def gen(model):
    return Generator(model)


PROMPTS = [
    "Hello",
    "The cat sat on the mat and",
    "a",
    "one two three four five six seven eight " * 3,
]


def test_prompts_of_different_lengths_give_what_each_gives_alone(model, gen):
    completions = gen(PROMPTS, 20, temperature=0, eos_id=None)
    for text, completion in zip(PROMPTS, completions, strict=True):
        idx = gptrs.text_to_token_ids(text, TOKENIZER)
        alone = generate_text_simple(model, idx, 20, CONTEXT)[0, idx.shape[1] :].tolist()
        assert completion.token_ids == alone
        assert completion.text == TOKENIZER.decode(alone)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("seed", range(20))
def test_a_sequence_draws_the_same_alone_and_in_a_batch(gen, seed):
    # The first of a batch is sequence 0, as a prompt alone is.
    together = gen(PROMPTS, 12, seed=seed, top_k=50)[0]
    assert gen(PROMPTS[0], 12, seed=seed, top_k=50) == [together]


def test_samples_are_prompt_major_and_differ(gen):
    completions = gen(["Hello", "Goodbye"], 8, num_samples=3, seed=[4, 5], eos_id=None)
    assert [c.seed for c in completions] == [4, 4, 4, 5, 5, 5]
    assert len({tuple(c.token_ids) for c in completions}) == 6
    assert gen("Hello", 8, num_samples=3, seed=4, eos_id=None) == completions[:3]


def test_a_kept_seed_draws_the_same_again(gen):
    [first] = gen("Hello", 8)
    assert gen("Hello", 8, seed=first.seed) == [first]
    assert gen("Hello", 8)[0].seed != first.seed


@pytest.mark.parametrize(
    "prompt",
    [
        [15496, 11],
        (15496, 11),
        [np.int64(15496), 11],
        np.array([15496, 11]),
        torch.tensor([15496, 11]),
        "Hello,",
    ],
    ids=["list", "tuple", "scalars", "array", "tensor", "text"],
)
def test_a_prompt_is_a_text_or_ids_in_any_container(gen, prompt):
    expected = gen([[15496, 11]], 5, seed=1)
    assert gen(prompt, 5, seed=1) == expected
    assert gen([prompt], 5, seed=1) == expected
    assert gen(torch.tensor([[15496, 11]]), 5, seed=1) == expected


def test_the_end_of_text_stops_a_sequence_and_is_not_part_of_it(model):
    [free] = Generator(model)("Hello", 10, temperature=0, eos_id=None)
    stop = free.token_ids[4]
    [stopped] = Generator(model)("Hello", 10, temperature=0, eos_id=stop)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop)]
    always = Generator(lambda ids: eot_logits(ids), context_length=8)
    assert always("Hello", 10)[0].token_ids == []
    assert always("Hello", 10, eos_id=None)[0].token_ids == [TOKENIZER.eot_token] * 10


def eot_logits(ids):
    logits = torch.zeros(*ids.shape, TOKENIZER.n_vocab)
    logits[..., TOKENIZER.eot_token] = 1e6
    return logits


def test_a_stream_gives_the_text_of_the_call(gen):
    [whole] = gen("Hello", 30, seed=7)
    pieces = list(gen.stream("Hello", 30, seed=7))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 15


def test_a_stream_of_many_tells_which_prompt_a_piece_belongs_to(gen):
    whole = gen(PROMPTS, 12, seed=9)
    texts = [""] * len(PROMPTS)
    for index, piece in gen.stream(PROMPTS, 12, seed=9):
        texts[index] += piece
    assert texts == [completion.text for completion in whole]


def test_a_stream_can_be_closed_and_the_generator_goes_on(gen):
    stream = gen.stream("Hello", 1000, seed=1)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert gen("Hello", 3, temperature=0)


def test_dropout_is_off_and_the_mode_comes_back(model, gen):
    expected = gen("Hello", 6, temperature=0, seed=0)
    model.train()
    model.trf_blocks[0].eval()
    try:
        assert gen("Hello", 6, temperature=0, seed=0) == expected
        next(gen.stream("Hello", 6, temperature=0))
        assert model.training
        assert not model.trf_blocks[0].drop_resid.training
    finally:
        model.eval()


def test_a_tokenizer_of_tiktokens_writes_the_same(model, gen):
    theirs = Generator(model, TOKENIZER.as_tiktoken())
    assert theirs("Hello", 8, seed=3) == gen("Hello", 8, seed=3)


def test_a_tokenizer_with_encode_and_decode_is_enough():
    class Letters:
        def encode(self, text, *, allowed_special=()):
            return [ord(c) - ord("a") for c in text]

        def decode(self, ids):
            return "".join(chr(i + ord("a")) for i in ids)

    def next_letter(ids):
        return torch.nn.functional.one_hot((ids + 1) % 26, 26).float()

    gen = Generator(next_letter, Letters(), context_length=4)
    assert gen("xy", 5, temperature=0)[0].text == "zabcd"
    assert "".join(gen.stream("xy", 5, temperature=0)) == "zabcd"


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
    ],
)
def test_bad_input_says_what_was_asked_and_what_was_found(gen, arguments, error, message):
    arguments = {"prompts": "Hello", "max_new_tokens": 3, **arguments}
    with pytest.raises(error, match=message):
        gen(**arguments)
    if "num_samples" not in arguments:
        with pytest.raises(error, match=message):
            gen.stream(**arguments)


def test_no_prompts_are_no_completions(gen):
    assert gen([], 5) == []
    assert list(gen.stream([], 5)) == []


def test_a_callable_must_say_how_much_it_sees():
    with pytest.raises(ConfigError, match="context_length is needed for a function"):
        Generator(eot_logits)

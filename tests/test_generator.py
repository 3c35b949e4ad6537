"""`Generator`: models, tokenizers, prompts of any length, samples, seeds and threads."""

import threading

import numpy as np
import pytest
import torch

import gptrs
from gptrs import Generator, GPTModel, generate_text_simple
from gptrs.errors import CheckpointError, ConfigError

TOKENIZER = gptrs.get_tokenizer("gpt2")
CONTEXT = 16


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


def test_the_end_of_text_stops_a_sequence_and_is_not_part_of_it(eot_logits, model):
    [free] = Generator(model)("Hello", 10, temperature=0, eos_id=None)
    stop = free.token_ids[4]
    [stopped] = Generator(model)("Hello", 10, temperature=0, eos_id=stop)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop)]
    always = Generator(lambda ids: eot_logits(ids), context_length=8)
    assert always("Hello", 10)[0].token_ids == []
    assert always("Hello", 10, eos_id=None)[0].token_ids == [TOKENIZER.eot_token] * 10


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
    with pytest.raises(ConfigError):
        gen("xy", 5, stop="c")  # Its tokens' bytes are not known.


def test_no_prompts_are_no_completions(gen):
    assert gen([], 5) == []
    assert gen([], 5, num_beams=2) == []
    assert list(gen.stream([], 5)) == []


def test_a_transformers_model_is_continued_with_its_own_context():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50257, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    theirs = GPT2LMHeadModel(config).eval()
    gen = Generator(theirs)
    assert gen.context_length == 12
    ids = torch.tensor([[5, 6, 7]])
    expected = theirs.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, 3:]
    [completion] = gen(ids[0], 6, temperature=0, eos_id=None)
    assert completion.token_ids == expected.tolist()
    assert "transformers" in completion.engine


def test_a_checkpoints_folder_brings_its_tokenizer(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 20)
    letters = gptrs.train_tokenizer(text, None, kind="char")
    torch.manual_seed(4)
    config = {"vocab_size": letters.n_vocab, "context_length": 8, "emb_dim": 8, "n_heads": 2,
              "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}  # fmt: skip
    own = GPTModel(config).eval()
    gptrs.save_checkpoint(own, tmp_path / "model", tokenizer=letters)
    expected = Generator(own, letters)("the cat", 10, seed=1)
    assert Generator(tmp_path / "model")("the cat", 10, seed=1) == expected
    assert Generator(str(tmp_path / "model"))("the cat", 10, seed=1) == expected
    with pytest.raises(CheckpointError):
        Generator(tmp_path)


def test_a_folder_of_transformers_is_continued_with_the_tokenizer_in_it(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 20)
    pairs = gptrs.train_tokenizer(text, 265)
    torch.manual_seed(4)
    own = GPTModel({"vocab_size": pairs.n_vocab, "context_length": 8, "emb_dim": 128, "n_heads": 2,
                    "n_layers": 1, "drop_rate": 0.0, "qkv_bias": True}).eval()  # fmt: skip
    own.save_pretrained(tmp_path / "hf", format="hf", tokenizer=pairs)
    expected = Generator(own, pairs)("the cat", 10, seed=1)
    for folder in (tmp_path / "hf", str(tmp_path / "hf")):
        loaded = Generator(folder)
        assert loaded("the cat", 10, seed=1) == expected
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    ids = torch.tensor([pairs.encode("the cat")])
    [greedy] = Generator(tmp_path / "hf")("the cat", 1, temperature=0)
    assert greedy.token_ids == [int(theirs(ids).logits[0, -1].argmax())]
    own.save_pretrained(tmp_path / "book", format="book")
    with pytest.raises(ConfigError, match="the tokenizer has 50257 ids"):
        Generator(tmp_path / "book")  # It has no tokenizer, and GPT-2's does not fit.
    assert Generator(tmp_path / "book", pairs)("the cat", 10, seed=1) == expected


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abcdef " * 9)
    letters = gptrs.train_tokenizer(text, None, kind="char")
    torch.manual_seed(4)
    padded = GPTModel({"vocab_size": 64, "context_length": 8, "emb_dim": 8, "n_heads": 1,
                       "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}).eval()  # fmt: skip
    completions = Generator(padded, letters)("ab", 30, num_samples=20, eos_id=None)
    ids = {token for completion in completions for token in completion.token_ids}
    assert max(ids) == letters.n_vocab - 1
    # A bias of the caller's own is not forgotten.
    [biased] = Generator(padded, letters)("ab", 9, logit_bias={0: 1e4}, eos_id=None)
    assert biased.token_ids == [0] * 9


def test_more_sequences_than_places_take_turns(model, gen):
    few = Generator(model, max_batch=3)
    assert few(PROMPTS, 9, num_samples=3, seed=1) == gen(PROMPTS, 9, num_samples=3, seed=1)


def test_another_thread_may_cancel_a_call(gen):
    timer = threading.Timer(0.2, gen.cancel)
    timer.start()
    completions = gen(PROMPTS, 1_000_000, num_samples=20, seed=1, eos_id=None)
    timer.join()
    assert {completion.finish_reason for completion in completions} == {"cancelled"}
    assert len(completions) == 80
    [first] = gen(PROMPTS[0], 5, seed=1, eos_id=None)
    assert completions[0].token_ids[:5] == first.token_ids


def test_threads_may_share_a_generator(model, gen):
    expected = [gen(prompt, 12, seed=1) for prompt in PROMPTS]
    model.train()
    results = {}

    def work(number):
        results[number] = gen(PROMPTS[number % 4], 12, seed=1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model.training
    finally:
        model.eval()
    assert [results[number] for number in range(8)] == expected * 2


def test_a_progress_bar_counts_sequences(gen, capsys):
    assert gen(PROMPTS, 9, seed=1, progress=True) == gen(PROMPTS, 9, seed=1)

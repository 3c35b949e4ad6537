"""`Generator`'s options: each does what it says, for each prompt by itself."""

import math

import numpy as np
import pytest
import torch

import gptrs
from gptrs import Generator, Sampler, SamplingConfig, generate_text_simple

TOKENIZER = gptrs.get_tokenizer("gpt2")
CONTEXT = 16


PROMPTS = [
    "Hello",
    "The cat sat on the mat and",
    "a",
    "one two three four five six seven eight " * 3,
]


def recorded(model):
    """A callable of `model`, and the logits of the last position that it gave, call after call."""
    rows = []

    def call(ids):
        logits = model(ids)
        rows.append(logits[0, -1].detach().clone())
        return logits

    return call, rows


@pytest.mark.parametrize("seed", range(20))
def test_a_sequence_draws_what_a_bare_sampler_draws_from_the_same_logits(model, seed):
    generator = np.random.default_rng(seed)
    settings = {
        "temperature": float(generator.uniform(0.3, 2)),
        "top_k": int(generator.integers(2, 60)) if generator.random() < 0.5 else None,
        "top_p": float(generator.uniform(0.3, 1)) if generator.random() < 0.5 else None,
        "min_p": float(generator.uniform(0, 0.2)) if generator.random() < 0.3 else None,
        "repetition_penalty": float(generator.uniform(1, 2)),
        "frequency_penalty": float(generator.uniform(0, 1)),
        "no_repeat_ngram_size": 2 if generator.random() < 0.5 else None,
    }
    prompt = generator.integers(0, 50257, int(generator.integers(1, 9))).tolist()
    call, rows = recorded(model)
    gen = Generator(call, context_length=CONTEXT)
    [completion] = gen([prompt], 9, seed=seed, sequences=[seed + 3], eos_id=None, **settings)
    sampler = Sampler(SamplingConfig(seed=seed, **settings))
    for index, token in enumerate(completion.token_ids):
        history = [(prompt, completion.token_ids[:index])]
        drawn = sampler(
            rows[index][None],
            sequences=[seed + 3],
            positions=[len(prompt) + index],
            history=history,
        )
        assert int(drawn[0]) == token


def test_every_prompt_may_have_settings_of_its_own(gen):
    settings = [
        SamplingConfig(temperature=0.0),
        SamplingConfig(top_k=5, seed=3),
        SamplingConfig(temperature=1.7, seed=4, logit_bias={7: 5.0}),
        SamplingConfig(top_p=0.5, seed=5, repetition_penalty=1.3),
    ]
    together = gen(PROMPTS, 10, sampling=settings)
    for number, (prompt, config) in enumerate(zip(PROMPTS, settings, strict=True)):
        [alone] = gen(prompt, 10, sampling=config, sequences=[number])
        assert alone.token_ids == together[number].token_ids
    assert [completion.seed for completion in together[1:]] == [3, 4, 5]
    assert [completion.prompt for completion in together] == [0, 1, 2, 3]


def test_a_completion_can_be_drawn_again_from_what_it_says(gen):
    for completion in gen(PROMPTS, 8, num_samples=2):
        [again] = gen(
            PROMPTS[completion.prompt], 8, seed=completion.seed, sequences=[completion.sequence]
        )
        assert again.token_ids == completion.token_ids


def test_logprobs_are_those_of_the_model(model, gen):
    [completion] = gen("The cat", 6, logprobs=3, seed=2, temperature=1.3, top_k=40, eos_id=None)
    ids = TOKENIZER.encode("The cat")
    logits = model(torch.tensor([ids + completion.token_ids]))[0]
    expected = torch.log_softmax(logits.double(), -1)
    for index, (token, logprob) in enumerate(
        zip(completion.token_ids, completion.logprobs, strict=True)
    ):
        row = expected[len(ids) - 1 + index]
        assert logprob.chosen == pytest.approx(row[token].item(), abs=1e-4)
        best = torch.topk(row, 3)
        assert [token for token, _ in logprob.top] == best.indices.tolist()
        assert [value for _, value in logprob.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert gen("The cat", 2)[0].logprobs is None
    assert gen("The cat", 2, logprobs=0, eos_id=None)[0].logprobs[0].top == []


def test_best_of_keeps_the_sequences_with_the_largest_mean_logprob(gen):
    drawn = gen(PROMPTS[:2], 6, num_samples=8, seed=3, logprobs=0, eos_id=None)
    best = gen(PROMPTS[:2], 6, num_samples=2, best_of=8, seed=3, eos_id=None)
    for prompt in range(2):
        means = {
            tuple(c.token_ids): math.fsum(p.chosen for p in c.logprobs) / len(c.logprobs)
            for c in drawn
            if c.prompt == prompt
        }
        expected = sorted(means, key=means.get, reverse=True)[:2]
        found = best[prompt * 2 : prompt * 2 + 2]
        assert [tuple(completion.token_ids) for completion in found] == expected
        assert [c.score for c in found] == pytest.approx([means[ids] for ids in expected])
    assert best[0].logprobs is None


def test_stop_ids_end_a_sequence_wherever_they_come(gen):
    [free] = gen("Hello", 20, seed=1, eos_id=None)
    for stop in ([free.token_ids[7]], free.token_ids[7], [free.token_ids[9], free.token_ids[7]]):
        [stopped] = gen("Hello", 20, seed=1, eos_id=None, stop=stop)
        ids = {stop} if isinstance(stop, int) else set(stop)
        first = next(i for i, token in enumerate(free.token_ids) if token in ids)
        assert stopped.token_ids == free.token_ids[:first]
        assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_text_ends_a_sequence_where_the_whole_text_has_it(gen, seed):
    [free] = gen("Hello", 25, seed=seed, eos_id=None)
    generator = np.random.default_rng(seed)
    begin = int(generator.integers(0, len(free.text) - 8))
    stop = free.text[begin : begin + int(generator.integers(1, 8))]
    if "\ufffd" in stop:
        stop = free.text[0]
    for stops in (stop, [stop], ["\x00never", stop]):
        [stopped] = gen("Hello", 25, seed=seed, eos_id=None, stop=stops)
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.finish_reason == "stop"
        kept = stopped.token_ids
        assert kept == free.token_ids[: len(kept)]
        assert len(TOKENIZER.decode_bytes(kept[:-1])) <= len(stopped.text.encode())


def test_logprobs_belong_to_the_tokens_that_a_stop_text_leaves(gen):
    [free] = gen("Hello", 25, seed=3, eos_id=None, logprobs=1)
    stop = TOKENIZER.decode(free.token_ids[10:12])
    [stopped] = gen("Hello", 25, seed=3, eos_id=None, logprobs=1, stop=stop)
    assert stopped.logprobs == free.logprobs[: len(stopped.token_ids)]
    assert 0 < len(stopped.token_ids) <= 10


def test_no_end_of_text_before_the_least_number_of_tokens(eot_logits):
    gen = Generator(eot_logits, context_length=8)
    assert len(gen("Hello", 10, min_new_tokens=4)[0].token_ids) == 4
    # Stop tokens of any kind.
    assert (
        len(
            gen("Hello", 10, eos_id=None, stop=[TOKENIZER.eot_token], min_new_tokens=3)[0].token_ids
        )
        == 3
    )
    # Those that eos_token_id names, and no others.
    assert gen("Hello", 10, min_new_tokens=4, eos_token_id=5)[0].token_ids == []


def test_choices_and_patterns_hold_for_a_model_that_knows_neither(gen):
    colours = ["red", "green", "blue", "blueish"]
    completions = gen(PROMPTS, 12, num_samples=5, choices=colours, seed=1)
    assert {completion.text for completion in completions} <= set(colours)
    assert len({completion.text for completion in completions}) > 1
    assert {completion.finish_reason for completion in completions} == {"stop"}
    for completion in gen(PROMPTS, 12, num_samples=5, regex=r"[0-9]{4}-[0-9]{2}", seed=1):
        year, month = completion.text.split("-")
        assert (len(year), len(month)) == (4, 2)
        assert (year + month).isdigit()


def test_past_the_context_a_sequence_slides_rebases_or_stops(model, gen):
    ids = TOKENIZER.encode("The cat sat on")
    slid, rebased, stopped = (
        gen([ids], 30, temperature=0, eos_id=None, overflow=overflow)[0]
        for overflow in ("slide", "rebase", "stop")
    )
    book = generate_text_simple(model, torch.tensor([ids]), 30, CONTEXT)[0, len(ids) :].tolist()
    assert slid.token_ids == book
    room = CONTEXT - len(ids)
    assert stopped.finish_reason == "context"
    assert stopped.token_ids == book[: len(stopped.token_ids)]
    assert room <= len(stopped.token_ids) <= room + 1
    assert len(rebased.token_ids) == 30
    assert rebased.token_ids[:room] == book[:room]
    # After a rebase the model has seen the newest half, and grows again from there.
    tokens, held = list(ids), len(ids)
    expected = []
    for _ in range(30):
        if held > CONTEXT:
            held = CONTEXT // 2
        logits = model(torch.tensor([tokens[-held:]]))[0, -1]
        tokens.append(int(logits.argmax()))
        expected.append(tokens[-1])
        held += 1
    assert rebased.token_ids == expected

"""Beam search and greedy decoding, against transformers' `generate` on the same weights."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptrs import Generator, GPTModel
from gptrs.weights.book import load_weights_into_gpt

VOCAB, CONTEXT = 61, 32


class Numbers:
    """Ids as numbers: a tokenizer for models that know no text."""

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


def make_theirs(seed):
    """A small GPT-2 of transformers', its weights so large that no two logits nearly tie."""
    config = GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=24, n_layer=2, n_head=3)
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return model


def make_ours(theirs):
    """The same weights in a GPTModel."""
    state = {name: value.numpy() for name, value in theirs.transformer.state_dict().items()}

    def layer(index, part, name):
        prefix = f"h.{index}.{part}.{name}."
        return {"w": state[prefix + "weight"], "b": state[prefix + "bias"]}

    def norm(name):
        return {"g": state[f"{name}.weight"], "b": state[f"{name}.bias"]}

    blocks = [
        {
            "ln_1": norm(f"h.{index}.ln_1"),
            "ln_2": norm(f"h.{index}.ln_2"),
            "attn": {name: layer(index, "attn", name) for name in ("c_attn", "c_proj")},
            "mlp": {name: layer(index, "mlp", name) for name in ("c_fc", "c_proj")},
        }
        for index in range(2)
    ]
    final = norm("ln_f")
    params = {"wte": state["wte.weight"], "wpe": state["wpe.weight"], "blocks": blocks, **final}
    model = GPTModel(
        {
            "vocab_size": VOCAB,
            "context_length": CONTEXT,
            "emb_dim": 24,
            "n_heads": 3,
            "n_layers": 2,
            "drop_rate": 0.0,
            "qkv_bias": True,
        }
    ).eval()
    load_weights_into_gpt(model, params)
    return model


@pytest.fixture(scope="module")
def pairs():
    """(theirs, ours) of four seeds."""
    return [(theirs, make_ours(theirs)) for theirs in map(make_theirs, range(4))]


def make_prompt(generator):
    return generator.integers(0, VOCAB, int(generator.integers(1, 10))).tolist()


def whole(prompt):
    """A prompt for transformers, which would take its zeros for padding."""
    ids = torch.tensor([prompt])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def new_tokens(output, prompt, stop_ids):
    """What transformers added, without the stop token and the padding behind it."""
    new = output[len(prompt) :].tolist()
    ends = [index for index, token in enumerate(new) if token in stop_ids]
    return new[: ends[0]] if ends else new


@pytest.mark.parametrize("seed", range(24))
def test_greedy_tokens_equal_those_of_transformers(pairs, seed):
    generator = np.random.default_rng(seed)
    theirs, ours = pairs[seed % 4]
    prompts = [make_prompt(generator) for _ in range(3)]
    settings = {}
    if seed % 3 == 1:
        settings["repetition_penalty"] = float(generator.uniform(1.05, 2))
    if seed % 4 == 2:
        settings["no_repeat_ngram_size"] = int(generator.integers(1, 4))
    if seed % 5 == 3:
        settings["bad_words_ids"] = [[5], [int(generator.integers(0, VOCAB)), 7]]
    stop = int(generator.integers(0, VOCAB)) if seed % 2 else None
    if stop is not None and seed % 3 == 0:
        settings["min_new_tokens"] = 4
    both = [Generator(model, Numbers()) for model in (ours, theirs)]
    ours_found, theirs_found = (
        gen(prompts, 12, temperature=0, eos_id=stop, **settings) for gen in both
    )
    for prompt, found, on_theirs in zip(prompts, ours_found, theirs_found, strict=True):
        output = theirs.generate(
            **whole(prompt),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
            **settings,
        )[0]
        stop_ids = () if stop is None else (stop,)
        assert found.token_ids == new_tokens(output, prompt, stop_ids)
        assert on_theirs.token_ids == found.token_ids


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("seed", range(12))
def test_beams_and_their_scores_equal_those_of_transformers(pairs, seed, early_stopping):
    generator = np.random.default_rng(100 + seed)
    theirs, ours = pairs[seed % 4]
    prompts = [make_prompt(generator) for _ in range(2)]
    num_beams = int(generator.integers(1, 6))
    num_samples = int(generator.integers(1, num_beams + 1))
    length_penalty = float(generator.choice([0.0, 0.5, 1.0, 2.0, -1.0]))
    # Half of the vocabulary ends a sequence: searches end early, and at every length.
    stop = sorted(generator.choice(VOCAB, int(generator.integers(0, 31)), replace=False).tolist())
    found = Generator(ours, Numbers())(
        prompts,
        10,
        num_beams=num_beams,
        num_samples=num_samples,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_id=None,
        stop=stop,
    )
    for number, prompt in enumerate(prompts):
        output = theirs.generate(
            **whole(prompt),
            max_new_tokens=10,
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=num_samples,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            eos_token_id=stop or None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        mine = found[number * num_samples : (number + 1) * num_samples]
        assert [c.token_ids for c in mine] == [
            new_tokens(sequence, prompt, stop) for sequence in output.sequences
        ]
        if num_beams > 1:  # transformers scores nothing where it does not search.
            scores = output.sequences_scores.tolist()
            assert [c.score for c in mine] == pytest.approx(scores, abs=1e-4)
        assert {c.prompt for c in mine} == {number}


def test_beams_of_many_prompts_equal_those_of_each(pairs):
    _, ours = pairs[0]
    generator = np.random.default_rng(7)
    prompts = [make_prompt(generator) for _ in range(9)]
    options = {"num_beams": 3, "num_samples": 2, "eos_id": None, "stop": [4, 9]}
    together = Generator(ours, Numbers(), max_batch=7)(prompts, 8, **options)
    for number, prompt in enumerate(prompts):
        alone = Generator(ours, Numbers())([prompt], 8, **options)
        mine = together[2 * number : 2 * number + 2]
        assert [c.token_ids for c in mine] == [c.token_ids for c in alone]
        assert [c.score for c in mine] == pytest.approx([c.score for c in alone], abs=1e-4)


def test_a_search_is_one_callback_a_token(pairs, monkeypatch):
    _, ours = pairs[0]
    gen = Generator(ours, Numbers(), engine="torch")
    calls = []
    backend = type(gen._backend)
    make = backend.engine

    def counted(self, *arguments, **options):
        engine = make(self, *arguments, **options)
        for name in ("step", "extend"):
            method = getattr(engine, name)
            monkeypatch.setattr(
                engine,
                name,
                lambda *a, _method=method: calls.append(1) or _method(*a),
                raising=True,
            )
        return engine

    monkeypatch.setattr(backend, "engine", counted)
    gen([[1, 2], [3, 4, 5]], 10, num_beams=3, eos_id=None)
    assert len(calls) == 10

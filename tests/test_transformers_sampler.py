"""`transformers_sampler` inside transformers' own `generate`, on a tiny model."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor

from gptrs import Sampler, SamplingConfig
from gptrs.errors import ConfigError, GenerationError
from gptrs.generation.transformers_sampler import transformers_sampler

VOCAB_SIZE, PAD = 61, 60


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return GPT2LMHeadModel(config).eval()


class Recorder(LogitsProcessor):
    """Keeps what it sees."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append((input_ids.clone(), scores.clone()))
        return scores


def generate(model, prompts, processors, **settings):
    """New tokens, int64 [B, 12]."""
    mask = settings.pop("attention_mask", torch.ones_like(prompts))
    ids = model.generate(
        prompts,
        attention_mask=mask,
        max_new_tokens=12,
        logits_processor=processors,
        **{"do_sample": False, **settings},
    )
    return ids[:, -12:]


def random_prompts(seed, batch_size=4):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.integers(PAD, size=(batch_size, int(rng.integers(1, 9)))))


CONFIGS = [
    {"temperature": 0.8},
    {"top_k": 10},
    {"top_p": 0.9},
    {"min_p": 0.05, "temperature": 1.5},
    {"typical_p": 0.7},
    {"repetition_penalty": 1.4, "top_k": 20, "top_p": 0.95},
    {"frequency_penalty": 0.8, "presence_penalty": 0.4},
    {"no_repeat_ngram_size": 2, "top_k": 2},
    {"bad_words_ids": [[3], [4, 5]], "logit_bias": {7: 2.5, 8: -np.inf}},
    {"min_new_tokens": 4, "eos_token_id": [1, 2], "temperature": 0.0},
]


@pytest.mark.parametrize("settings", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_its_tokens_are_the_samplers_on_the_same_logits(model, seed, settings):
    config, recorder = SamplingConfig(seed=seed, **settings), Recorder()
    prompts = random_prompts(seed)
    new = generate(
        model, prompts, [recorder, transformers_sampler(config)], do_sample=seed % 2 == 1
    )
    sampler, prompt_length = Sampler(config), prompts.shape[1]
    for step, (input_ids, scores) in enumerate(recorder.calls):
        drawn = sampler(
            scores,
            positions=[prompt_length + step] * 4,
            history=[(row[:prompt_length], row[prompt_length:]) for row in input_ids],
        )
        assert torch.equal(drawn, new[:, step])


@pytest.mark.parametrize("seed", range(20))
def test_temperature_0_is_transformers_greedy_search(model, seed):
    prompts = random_prompts(seed)
    penalties = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3} if seed % 2 else {}
    ours = generate(model, prompts, [transformers_sampler(temperature=0.0, **penalties)])
    assert torch.equal(ours, generate(model, prompts, [], **penalties))


def test_a_seed_gives_the_same_text_whatever_transformers_does_besides(model):
    prompts = random_prompts(1)
    expected = generate(model, prompts, [transformers_sampler(seed=3)])
    assert torch.equal(expected, generate(model, prompts, [transformers_sampler(seed=3)]))
    for others in ({"top_k": 2, "temperature": 0.1}, {"top_p": 0.01}, {"min_p": 0.9}):
        new = generate(model, prompts, [transformers_sampler(seed=3)], do_sample=True, **others)
        assert torch.equal(new, expected)
    assert not torch.equal(expected, generate(model, prompts, [transformers_sampler(seed=4)]))


def test_rows_draw_the_same_in_any_batch(model):
    prompts = random_prompts(2, batch_size=6)
    together = generate(model, prompts, [transformers_sampler(seed=3)])
    for size in (1, 2, 5):
        some = generate(model, prompts[:size], [transformers_sampler(seed=3)])
        assert torch.equal(some, together[:size])


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}, {"frequency_penalty": 0.9}])
def test_left_padding_changes_nothing(model, settings):
    prompts = [torch.tensor([5, 9, 2]), torch.tensor([7]), torch.tensor([1, 2, 3, 4, 5, 6])]
    rows = [torch.nn.functional.pad(p, (6 - len(p), 0), value=PAD) for p in prompts]
    padded = torch.stack(rows)
    sampler = transformers_sampler(seed=8, pad_token_id=PAD, **settings)
    together = generate(model, padded, [sampler], attention_mask=(padded != PAD).long())
    # Alone it would be sequence 0: rows of the same prompt stand before it.
    for row, prompt in enumerate(prompts):
        alone = generate(
            model, prompt.repeat(row + 1, 1), [transformers_sampler(seed=8, **settings)]
        )
        assert torch.equal(alone[row], together[row])


def test_return_sequences_differ_and_are_numbered(model):
    prompt = random_prompts(4, batch_size=1)
    several = generate(
        model, prompt, [transformers_sampler(seed=1)], do_sample=True, num_return_sequences=5
    )
    assert len(several.unique(dim=0)) == 5
    assert torch.equal(several[:1], generate(model, prompt, [transformers_sampler(seed=1)]))


def test_one_processor_serves_one_generate_after_the_other(model):
    sampler = transformers_sampler(seed=1, frequency_penalty=1.0)
    first, second = random_prompts(5), random_prompts(6, batch_size=2)
    expected = [
        generate(model, p, [transformers_sampler(seed=1, frequency_penalty=1.0)])
        for p in (first, second)
    ]
    for prompts, new in ((first, expected[0]), (second, expected[1]), (first, expected[0])):
        assert torch.equal(generate(model, prompts, [sampler]), new)


def test_after_reset_a_result_is_a_new_prompt():
    input_ids, scores = torch.tensor([[1, 2]]), torch.zeros(1, 9)
    settings = {"frequency_penalty": 50.0, "temperature": 0.0}
    sampler = transformers_sampler(**settings)
    sampler(input_ids, scores)
    longer = torch.tensor([[1, 2, 0]])
    assert sampler(longer, scores).argmax() == 1  # 0 is in the output.
    sampler.reset()
    assert sampler(longer, scores).argmax() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_logit_a_row_is_left_and_the_input_is_not_touched(dtype):
    scores = torch.randn(3, 40).to(dtype)
    before = scores.clone()
    left = transformers_sampler(seed=1)(torch.zeros(3, 2, dtype=torch.int64), scores)
    assert left.dtype == dtype
    assert torch.equal(scores, before)
    assert left.isfinite().sum(-1).tolist() == [1, 1, 1]
    assert (left.softmax(-1).max(-1).values == 1).all()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"top_p .* found 2"):
        transformers_sampler(top_p=2)
    with pytest.raises(ConfigError, match="config has all settings, found top_p besides"):
        transformers_sampler(SamplingConfig(), top_p=0.5)
    with pytest.raises(GenerationError, match="row 1: the logit of token id 0 is NaN"):
        transformers_sampler()(
            torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[0.0], [torch.nan]])
        )

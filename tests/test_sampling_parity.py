"""The sampler against transformers' own processors, on the same logits, in the design's order."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gptrs import Sampler, SamplingConfig
from gptrs.errors import GenerationError

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class CountPenalties(LogitsProcessor):
    """OpenAI's frequency and presence penalty, which transformers does not have."""

    def __init__(self, frequency, presence, prompt_length):
        self.frequency, self.presence, self.prompt_length = frequency, presence, prompt_length

    def __call__(self, input_ids, scores):
        output = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(
            1, output, torch.ones_like(output, dtype=scores.dtype)
        )
        return scores - self.frequency * counts - self.presence * (counts > 0)


def oracle_processors(config, prompt_length):
    c, chain, ends = config, LogitsProcessorList(), list(config.eos_token_id or ())
    if c.logit_bias:
        chain.append(
            SequenceBiasLogitsProcessor({(token,): bias for token, bias in c.logit_bias.items()})
        )
    if c.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(c.repetition_penalty))
    chain.append(CountPenalties(c.frequency_penalty, c.presence_penalty, prompt_length))
    if c.no_repeat_ngram_size:
        chain.append(NoRepeatNGramLogitsProcessor(c.no_repeat_ngram_size))
    if c.bad_words_ids:
        words = [list(word) for word in c.bad_words_ids]
        chain.append(NoBadWordsLogitsProcessor(words, ends))
    if c.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, c.min_new_tokens, ends))
    chain.append(TemperatureLogitsWarper(c.temperature))
    if c.top_k is not None:
        chain.append(TopKLogitsWarper(c.top_k))
    if c.top_p is not None:
        chain.append(TopPLogitsWarper(c.top_p))
    if c.min_p is not None:
        chain.append(MinPLogitsWarper(c.min_p))
    if c.typical_p is not None and c.typical_p < 1:
        chain.append(TypicalLogitsWarper(c.typical_p))
    return chain


def oracle_probabilities(config, logits, input_ids, prompt_length):
    """float64 [B, V]; a row without a token left is nan."""
    scores = oracle_processors(config, prompt_length)(input_ids, logits.double())
    return torch.softmax(scores, dim=-1)


def random_config(rng, vocab_size):
    """Each setting is on in half of all configs."""
    ids = lambda count: rng.integers(vocab_size, size=count).tolist()  # noqa: E731
    settings = {
        "temperature": float(rng.uniform(0.3, 2.5)),
        "logit_bias": dict(zip(ids(5), rng.normal(size=5).tolist(), strict=True)),
        "repetition_penalty": float(rng.uniform(0.7, 1.8)),
        "frequency_penalty": float(rng.uniform(-1, 1.5)),
        "presence_penalty": float(rng.uniform(-1, 1.5)),
        "no_repeat_ngram_size": int(rng.integers(1, 4)),
        "bad_words_ids": [ids(1), ids(2), ids(3), ids(1)],
        "min_new_tokens": int(rng.integers(1, 12)),
        "top_k": int(rng.integers(1, vocab_size + 3)),
        "top_p": float(rng.uniform(0.05, 1)),
        "min_p": float(rng.uniform(0, 0.4)),
        "typical_p": float(rng.uniform(0.05, 1)),
    }
    chosen = {name: value for name, value in settings.items() if rng.random() < 0.5}
    return SamplingConfig(**chosen, eos_token_id=ids(2), seed=int(rng.integers(2**32)))


def random_case(seed, dtype=torch.float32):
    """A config, logits [B, V], and what was generated for them: int64 [B, T] and the prompt's T."""
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.choice([5, 17, 64, 300, 1000]))
    # All different, since transformers leaves open which of two equal ones top-p keeps.
    values = torch.tensor(rng.normal(size=30_000) * rng.choice([0.5, 2, 6]), dtype=dtype).unique()
    logits = torch.stack(
        [values[rng.choice(len(values), size=vocab_size, replace=False)] for _ in range(6)]
    )
    # Few different ids, so that runs of them come again.
    input_ids = torch.tensor(rng.integers(min(vocab_size, 12), size=(6, int(rng.integers(1, 20)))))
    return (
        random_config(rng, vocab_size),
        logits,
        input_ids,
        int(rng.integers(input_ids.shape[1] + 1)),
    )


def split(input_ids, prompt_length):
    return [(row[:prompt_length], row[prompt_length:]) for row in input_ids.tolist()]


@pytest.mark.parametrize("seed", range(120))
def test_probabilities_are_those_of_transformers_processors(seed):
    config, logits, input_ids, prompt_length = random_case(seed, DTYPES[seed % 3])
    expected = oracle_probabilities(config, logits, input_ids, prompt_length)
    history = split(input_ids, prompt_length)
    for row in range(len(logits)):
        one = {"history": history[row : row + 1], "sequences": [row]}
        if expected[row].isnan().any():
            with pytest.raises(GenerationError, match="row 0: no token can be drawn: the settings"):
                Sampler(config).probabilities(logits[row : row + 1], **one)
            continue
        found = Sampler(config).probabilities(logits[row : row + 1], **one)
        torch.testing.assert_close(found[0].double(), expected[row], rtol=0, atol=1e-6)
        assert torch.equal(found[0] > 0, expected[row] > 0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7, "top_k": 50},
        {"top_p": 0.95},
        {"min_p": 0.02},
        {"typical_p": 0.9},
        {"repetition_penalty": 1.2, "top_k": 50, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("scale", [1, 4])
def test_probabilities_are_those_of_transformers_over_gpt2s_vocabulary(settings, scale):
    rng = np.random.default_rng(10 + scale)
    logits = torch.tensor(rng.normal(size=(2, 50_257)) * scale, dtype=torch.float32)
    input_ids = torch.tensor(rng.integers(50_257, size=(2, 30)))
    config = SamplingConfig(**settings)
    found = Sampler(config).probabilities(logits, history=split(input_ids, 10)).double()
    expected = oracle_probabilities(config, logits, input_ids, 10)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(24))
def test_draws_follow_transformers_distribution(seed):
    config, logits, input_ids, prompt_length = random_case(1000 + seed)
    expected = oracle_probabilities(config, logits, input_ids, prompt_length)[0].numpy()
    if np.isnan(expected).any():
        pytest.skip("the settings ban every token")
    num_draws = 8_000
    drawn = Sampler(config)(
        logits[:1].expand(num_draws, -1),
        sequences=[0] * num_draws,
        positions=range(num_draws),
        history=split(input_ids, prompt_length)[:1] * num_draws,
    )
    counts = np.bincount(drawn, minlength=len(expected))
    assert not counts[expected == 0].any()
    likely = expected * num_draws >= 5
    chi_squared = (counts - expected * num_draws)[likely] ** 2 / (expected * num_draws)[likely]
    # Mean `freedom`, deviation sqrt(2 * freedom): six deviations do not happen by chance.
    freedom = likely.sum() - 1
    assert chi_squared.sum() < freedom + 6 * np.sqrt(2 * freedom) + 6


ADJUSTING = (
    "logit_bias",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_new_tokens",
    "eos_token_id",
)


@pytest.mark.parametrize("seed", range(20))
def test_temperature_0_takes_the_largest_of_what_transformers_leaves(seed):
    config, logits, input_ids, prompt_length = random_case(2000 + seed)
    adjusting = {name: getattr(config, name) for name in ADJUSTING}
    expected = oracle_probabilities(SamplingConfig(**adjusting), logits, input_ids, prompt_length)
    rows = ~expected.isnan().any(-1)
    history = [pair for pair, ok in zip(split(input_ids, prompt_length), rows, strict=True) if ok]
    greedy = Sampler(SamplingConfig(**adjusting, temperature=0.0))
    found = greedy(logits[rows], history=history)
    assert torch.equal(found, expected[rows].argmax(-1))
    one_hot = torch.nn.functional.one_hot(found, logits.shape[1]).float()
    assert torch.equal(greedy.probabilities(logits[rows], history=history), one_hot)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(7))
def test_log_probabilities_are_torchs(seed, dtype):
    torch.manual_seed(seed)
    logits = (torch.randn(5, 400) * 4).to(dtype)
    ids = torch.randint(400, (5,))
    expected = torch.log_softmax(logits.double(), dim=-1)
    chosen, top_ids, top = Sampler().log_probs(logits, ids, top=9)
    torch.testing.assert_close(chosen.double(), expected[range(5), ids], rtol=0, atol=1e-5)
    torch.testing.assert_close(top.double(), expected.topk(9).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(expected.gather(1, top_ids), expected.topk(9).values)

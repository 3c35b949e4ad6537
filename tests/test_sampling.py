import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gptrs import Sampler, SamplingConfig
from gptrs.errors import ConfigError, GenerationError


def oracle_probabilities(logits, temperature, top_k, top_p):
    """transformers' own processors, in its order."""
    scores = torch.tensor(logits)[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return torch.softmax(scores.double(), dim=-1)[0].numpy()


def draw_many(logits, num_draws, **settings):
    """One draw for each position."""
    sampler = Sampler(SamplingConfig(**settings))
    rows = np.tile(np.asarray(logits, dtype=np.float32), (num_draws, 1))
    return sampler(rows, sequences=[0] * num_draws, positions=range(num_draws))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.7, 8, None), (1.5, None, 0.8), (0.9, 12, 0.7), (2.0, 500, 1.0)],
)
@pytest.mark.parametrize("seed", range(4))
def test_draws_follow_transformers_distribution(seed, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).normal(size=40).astype(np.float32) * 2
    expected = oracle_probabilities(logits, temperature, top_k, top_p)
    num_draws = 20_000
    drawn = draw_many(
        logits, num_draws, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    counts = np.bincount(drawn, minlength=len(logits))
    assert not counts[expected == 0].any()
    likely = expected * num_draws >= 5
    chi_squared = (counts - expected * num_draws)[likely] ** 2 / (expected * num_draws)[likely]
    # Mean `freedom`, deviation sqrt(2 * freedom): six deviations do not happen by chance.
    freedom = likely.sum() - 1
    assert chi_squared.sum() < freedom + 6 * np.sqrt(2 * freedom) + 6


def numpy_uniform(seed, sequence, position):
    """NumPy's Philox counts up before each block of four words."""
    counter = (position + (sequence << 64) - 1) % 2**256
    return np.random.Generator(np.random.Philox(key=seed, counter=counter)).random()


@given(
    seed=st.integers(0, 2**64 - 1),
    sequence=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_the_uniform_behind_a_draw_is_numpys_philox(seed, sequence, position):
    # With equal logits the drawn id is the uniform times the vocabulary, rounded down.
    size = 4096
    sampler = Sampler(SamplingConfig(seed=seed))
    [drawn] = sampler(np.zeros((1, size)), sequences=[sequence], positions=[position])
    assert drawn == int(numpy_uniform(seed, sequence, position) * size)


def test_every_token_can_be_drawn():
    size = 500
    drawn = draw_many(np.zeros(size), 20 * size, seed=3)
    assert len(set(drawn.tolist())) == size


@given(data=st.data(), size=st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_greedy_is_argmax_and_the_lowest_id_on_a_tie(data, size):
    row = data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    [drawn] = Sampler(SamplingConfig(temperature=0))(np.array([row]))
    assert drawn == np.argmax(row)


def test_a_row_draws_the_same_alone_and_in_any_batch():
    logits = np.random.default_rng(0).normal(size=(7, 300))
    config = SamplingConfig(seed=11, top_k=100)
    together = Sampler(config)(logits)
    alone = [Sampler(config)(logits[i : i + 1], sequences=[i])[0] for i in range(7)]
    assert together.tolist() == alone


def test_each_call_is_the_next_position():
    logits = np.zeros((2, 1000))
    sampler = Sampler(SamplingConfig(seed=5))
    calls = [sampler(logits).tolist() for _ in range(3)]
    fresh = Sampler(SamplingConfig(seed=5))
    assert calls == [fresh(logits, positions=[i, i]).tolist() for i in range(3)]
    assert len({tuple(call) for call in calls}) == 3


def test_torch_logits_and_lists_are_taken():
    row = [[0.1, 2.0, 0.3]]
    sampler = Sampler(SamplingConfig(temperature=0))
    assert sampler(torch.tensor(row)).tolist() == sampler(row).tolist() == [1]
    assert sampler(row).dtype == np.int64


def test_numpys_numbers_are_numbers():
    config = SamplingConfig(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(4))
    assert Sampler(config)([[0.0] * 9]) == Sampler(
        SamplingConfig(temperature=0.5, top_k=3, seed=4)
    )([[0.0] * 9])


def test_no_seed_takes_fresh_entropy_and_keeps_it():
    one, other = Sampler(), Sampler()
    assert one.seed != other.seed
    logits = np.zeros((1, 50_257))
    assert Sampler(SamplingConfig(seed=one.seed))(logits) == one(logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, "temperature .* found -0.5"),
        ({"temperature": float("nan")}, "temperature .* found NaN"),
        ({"temperature": "warm"}, "temperature is a number, found 'warm'"),
        ({"top_k": 0}, "top_k .* found 0"),
        ({"top_k": -3}, "top_k .* found -3"),
        ({"top_k": 2.5}, "top_k is a number without a fraction, found 2.5"),
        ({"top_p": 0.0}, "top_p .* found 0"),
        ({"top_p": 1.2}, "top_p .* found 1.2"),
        ({"seed": -1}, "a seed .* found -1"),
        ({"seed": 2**64}, "a seed"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, np.nan], "the logit of token id 1 is NaN"),
        ([np.inf, 0.0], "the logit of token id 0 is inf"),
        ([-np.inf, -np.inf], "every logit is -inf"),
    ],
)
def test_rows_that_nothing_can_be_drawn_from_are_refused(row, message):
    for temperature in (0.0, 1.0):
        with pytest.raises(GenerationError, match=message):
            Sampler(SamplingConfig(temperature=temperature))([row])


def test_logits_of_the_wrong_shape_are_refused():
    with pytest.raises(GenerationError, match=r"shape \[3\], expected \[B, V\]"):
        Sampler()([1.0, 2.0, 3.0])

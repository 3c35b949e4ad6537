import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptrs import Sampler, SamplingConfig
from gptrs.errors import ConfigError, GenerationError, TokenIdError


def draw_many(logits, num_draws, **settings):
    """One draw for each position."""
    sampler = Sampler(SamplingConfig(**settings))
    rows = np.broadcast_to(np.asarray(logits, dtype=np.float32), (num_draws, len(logits)))
    return sampler(rows, sequences=[0] * num_draws, positions=range(num_draws))


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


def numpy_uniforms(seed, num_positions):
    """Those of positions 0, 1, ... of sequence 0: the first word of each of Philox's blocks."""
    words = np.random.Philox(key=seed, counter=2**256 - 1).random_raw(4 * num_positions)
    return (words[::4] >> 11) / 2**53


def test_every_token_of_gpt2s_vocabulary_is_drawn_where_its_turn_comes():
    size, seed = 50_257, 3
    # Of a million positions, one for each token: where the uniform falls into its share.
    turns = (numpy_uniforms(seed, 1_000_000) * size).astype(np.int64)
    tokens, positions = np.unique(turns, return_index=True)
    assert len(tokens) == size
    rows = np.broadcast_to(np.zeros(size, dtype=np.float32), (size, size))
    drawn = Sampler(SamplingConfig(seed=seed))(rows, sequences=[0] * size, positions=positions)
    assert drawn.tolist() == tokens.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_is_where_the_uniform_falls_in_the_sum_of_probabilities(seed):
    # float64 sums over a vocabulary whose least probable tokens have less than 1e-12.
    logits = np.random.default_rng(seed).normal(size=50_257).astype(np.float32) * 3
    weights = np.exp(logits.astype(np.float64) - logits.max())
    bounds = np.cumsum(weights / weights.sum())
    num_draws = 3_000
    uniforms = numpy_uniforms(seed, num_draws)
    drawn = draw_many(logits, num_draws, seed=seed)
    # A float32 exponential may move a bound by a little, over one of so many uniforms.
    lowest = np.searchsorted(bounds, uniforms - 1e-7, side="right")
    highest = np.searchsorted(bounds, uniforms + 1e-7, side="right")
    assert ((lowest <= drawn) & (drawn <= highest)).all()
    assert (lowest == highest).mean() > 0.95


@given(data=st.data(), size=st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_greedy_is_argmax_and_the_lowest_id_on_a_tie(data, size):
    row = data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    [drawn] = Sampler(SamplingConfig(temperature=0))(np.array([row]))
    assert drawn == np.argmax(row)


MANY_CONFIGS = [
    {},
    {"temperature": 0.7, "top_k": 40},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"typical_p": 0.8},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "top_k": 100, "top_p": 0.95},
    {"no_repeat_ngram_size": 2, "temperature": 0.0},
]


@pytest.mark.parametrize("settings", MANY_CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_row_draws_the_same_alone_in_any_batch_and_on_any_number_of_threads(seed, settings):
    rng = np.random.default_rng(seed)
    # Wide enough that four threads share it.
    logits = (rng.normal(size=(24, 50_257)) * 3).astype(np.float32)
    history = rng.integers(50_257, size=(24, 9)).tolist()
    config = SamplingConfig(seed=seed, **settings)
    together = Sampler(config, threads=1)(logits, history=history).tolist()
    assert Sampler(config, threads=4)(logits, history=history).tolist() == together
    for rows in ([7], [3, 23, 0], rng.permutation(24)[:10].tolist()):
        some = Sampler(config)(logits[rows], sequences=rows, history=[history[row] for row in rows])
        assert some.tolist() == [together[row] for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", MANY_CONFIGS)
def test_tensors_arrays_and_every_dtype_draw_the_same(settings, dtype):
    logits = (torch.randn(20, 300, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    config = SamplingConfig(seed=5, **settings)
    drawn = Sampler(config)(logits)
    assert torch.is_tensor(drawn)
    assert drawn.dtype == torch.int64
    as_float32 = Sampler(config)(logits.float().numpy())
    assert isinstance(as_float32, np.ndarray)
    assert as_float32.tolist() == drawn.tolist()
    if dtype == torch.float16:
        assert Sampler(config)(logits.numpy()).tolist() == drawn.tolist()


def test_no_rows_give_no_tokens():
    sampler = Sampler(SamplingConfig(top_p=0.5))
    assert sampler(np.empty((0, 9), dtype=np.float32)).tolist() == []
    assert sampler(torch.empty(0, 9)).shape == (0,)
    assert sampler.probabilities(torch.empty(0, 9)).shape == (0, 9)


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


def test_each_row_may_have_its_own_settings_and_seed():
    logits = np.random.default_rng(3).normal(size=(4, 200)).astype(np.float32)
    configs = [
        SamplingConfig(seed=1),
        SamplingConfig(seed=2, top_k=3),
        SamplingConfig(temperature=0),
        SamplingConfig(seed=4, logit_bias={17: 1e9}),
    ]
    sampler = Sampler(configs)
    together = sampler(logits)
    for row, config in enumerate(configs):
        one = Sampler(config)(logits[row : row + 1], sequences=[row])
        assert together[row] == one[0]
    assert together[2:].tolist() == [logits[2].argmax(), 17]
    assert [sampler.seed[0], sampler.seed[1], sampler.seed[3]] == [1, 2, 4]
    with pytest.raises(GenerationError, match="config has 4 entries, expected one a row: 2"):
        sampler(logits[:2])


def test_without_a_history_a_sampler_remembers_what_it_drew_for_each_sequence():
    logits = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    config = SamplingConfig(seed=9, frequency_penalty=1.5, no_repeat_ngram_size=2)
    remembering, told = Sampler(config), Sampler(config)
    outputs = [[], [], []]
    for step in range(20):
        rows = [0, 1, 2] if step % 3 else [2, 0]  # Sequence 1 sits out now and then.
        drawn = remembering(logits[rows], sequences=rows).tolist()
        history = [outputs[row] for row in rows]
        assert told(logits[rows], sequences=rows, history=history).tolist() == drawn
        for row, token in zip(rows, drawn, strict=True):
            outputs[row].append(token)


def test_penalties_look_at_what_they_say():
    def probabilities(prompt, output, **settings):
        sampler = Sampler(SamplingConfig(**settings))
        return sampler.probabilities(torch.ones(1, 4), history=[(prompt, output)])[0]

    def equals(found, logits):
        return torch.allclose(found, torch.softmax(torch.tensor(logits), 0))

    assert equals(probabilities([0], [1], repetition_penalty=2), [0.5, 0.5, 1, 1])
    assert equals(probabilities([0], [1, 1], frequency_penalty=0.5), [1, 0.0, 1, 1])
    assert equals(probabilities([0, 1], [1, 1], presence_penalty=0.5), [1, 0.5, 1, 1])
    assert probabilities([0, 1, 2], [0], no_repeat_ngram_size=2)[1] == 0
    assert probabilities([3], [], bad_words_ids=[[3, 2], [1]]).tolist() == [0.5, 0, 0, 0.5]
    assert probabilities([3, 3], [3], min_new_tokens=2, eos_token_id=0)[0] == 0
    assert probabilities([3, 3], [3, 3], min_new_tokens=2, eos_token_id=0)[0] == 0.25


def test_a_history_is_an_output_or_a_prompt_and_an_output_of_any_kind():
    logits = np.random.default_rng(0).normal(size=(1, 9)).astype(np.float32)
    sampler = Sampler(SamplingConfig(frequency_penalty=1, repetition_penalty=1.5))
    output = sampler.probabilities(logits, history=[[4, 5]]).tolist()
    for same in ((4, 5), np.array([4, 5]), torch.tensor([4, 5]), ([], [4, 5]), ((), (4, 5))):
        assert sampler.probabilities(logits, history=[same]).tolist() == output
    assert sampler.probabilities(logits, history=torch.tensor([[4, 5]])).tolist() == output
    assert sampler.probabilities(logits, history=[([4], np.array([5]))]).tolist() != output


def test_looking_at_probabilities_changes_no_draw():
    logits = np.random.default_rng(0).normal(size=(2, 30)).astype(np.float32)
    config = SamplingConfig(seed=1, presence_penalty=2)
    looking, blind = Sampler(config), Sampler(config)
    for _ in range(5):
        looking.probabilities(logits)
        assert looking(logits).tolist() == blind(logits).tolist()


def test_a_call_that_fails_is_no_position():
    logits = np.zeros((1, 1000), dtype=np.float32)
    sampler, other = Sampler(SamplingConfig(seed=1)), Sampler(SamplingConfig(seed=1))
    with pytest.raises(GenerationError):
        sampler(logits * np.nan)
    assert sampler(logits) == other(logits)


def test_threads_may_share_a_sampler():
    logits = np.random.default_rng(0).normal(size=(8, 5000)).astype(np.float32)
    sampler = Sampler(SamplingConfig(seed=1, repetition_penalty=1.1))
    expected = Sampler(SamplingConfig(seed=1, repetition_penalty=1.1))
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: tuple(sampler(logits).tolist()), range(40)))
    # Calls take turns, so that the positions 0 to 39 come once each.
    assert sorted(drawn) == sorted(tuple(expected(logits).tolist()) for _ in range(40))


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
SETTINGS = pytest.mark.parametrize(
    "config",
    [
        None,
        SamplingConfig(seed=1, top_k=9, repetition_penalty=1.3, logit_bias={3: 1.5}),
        [SamplingConfig(seed=2), SamplingConfig(temperature=0.5, bad_words_ids=[[1, 2]])],
    ],
)


@COPIES
@SETTINGS
def test_a_copied_sampler_draws_the_same_tokens(config, copied):
    logits = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    sampler = Sampler(config, threads=1)
    twin = copied(sampler)
    assert (twin.config, twin.seed) == (sampler.config, sampler.seed)
    for _ in range(20):
        assert twin(logits).tolist() == sampler(logits).tolist()


@COPIES
@SETTINGS
def test_a_sampler_can_be_copied_after_calls_of_which_it_keeps_nothing(config, copied):
    logits = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    sampler = Sampler(config)
    for position in range(5):
        sampler(logits, positions=[position] * 2, history=[[1], [2]])
    sampler.probabilities(logits)
    sampler.log_probs(logits, [0, 1])
    twin = copied(sampler)
    assert twin(logits).tolist() == sampler(logits).tolist()


@COPIES
def test_a_sampler_that_keeps_what_it_drew_is_not_copied(copied):
    logits = np.zeros((2, 50), dtype=np.float32)
    at = {"positions": [0, 0]}
    penalty = SamplingConfig(presence_penalty=1.0)
    for config, counters, without in [(None, {}, "positions"), (penalty, at, "history")]:
        sampler = Sampler(config)
        sampler(logits, **counters)
        with pytest.raises(GenerationError, match=f"has drawn without {without}.* copy it before"):
            copied(sampler)
    sampler = Sampler(SamplingConfig(temperature=0.5))
    sampler(logits, **at)
    assert copied(sampler).seed == sampler.seed


def test_configs_are_equal_hashable_and_pickled_by_value():
    config = SamplingConfig(logit_bias={3: 1.5}, bad_words_ids=[[1, 2]], eos_token_id=[7], top_k=4)
    same = SamplingConfig(logit_bias={3: 1.5}, bad_words_ids=((1, 2),), eos_token_id=(7,), top_k=4)
    assert config == same == pickle.loads(pickle.dumps(config))
    assert hash(config) == hash(same)
    assert replace(config, top_k=5).top_k == 5


def test_a_config_keeps_its_own_copy_of_what_it_was_given():
    biases = {3: 1.5}
    config = SamplingConfig(logit_bias=biases)
    biases[3] = -np.inf
    assert config.logit_bias == {3: 1.5}


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
        ({"top_p": None, "temperature": None}, "temperature is a number, found None"),
        ({"min_p": -0.1}, "min_p is at least 0 and at most 1.* found -0.1"),
        ({"typical_p": 0}, "typical_p is above 0 and at most 1.* found 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is above 0.* found 0"),
        ({"repetition_penalty": -1.2}, "repetition_penalty is above 0.* found -1.2"),
        ({"frequency_penalty": np.inf}, "frequency_penalty is finite.* found inf"),
        ({"presence_penalty": np.nan}, "presence_penalty is finite.* found NaN"),
        ({"no_repeat_ngram_size": 0}, "no_repeat_ngram_size is at least 1.* found 0"),
        ({"no_repeat_ngram_size": True}, "no_repeat_ngram_size is a number .* found True"),
        ({"min_new_tokens": -1}, "min_new_tokens is at least 0, found -1"),
        ({"min_new_tokens": None}, "min_new_tokens is a number without a fraction, found None"),
        ({"logit_bias": [(1, 2.0)]}, "logit_bias is a dict"),
        ({"logit_bias": {"7": 1.0}}, "logit_bias has token ids, found '7'"),
        ({"logit_bias": {7: "high"}}, "a logit_bias is a number, found 'high'"),
        ({"logit_bias": {7: np.nan}}, r"logit_bias\[7\] is a finite number.* found NaN"),
        ({"logit_bias": {-7: 1.0}}, "logit_bias has token ids, found -7"),
        ({"bad_words_ids": 5}, "bad_words_ids is a list of lists of token ids, found 5"),
        ({"bad_words_ids": [5]}, "bad_words_ids is a sequence of token ids, found 5"),
        ({"bad_words_ids": [[1], []]}, "bad_words_ids is at least one id; found none at 1"),
        ({"bad_words_ids": ["no"]}, "bad_words_ids is a sequence of token ids, found 'no'"),
        ({"eos_token_id": "end"}, "eos_token_id is a sequence of token ids, found 'end'"),
        ({"eos_token_id": -2}, "eos_token_id has token ids, found -2"),
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_row_that_nothing_can_be_drawn_from_is_named(temperature):
    logits = np.zeros((300, 2000), dtype=np.float32)
    logits[290] = np.nan
    logits[217, 9] = np.nan
    for threads in (1, 4):
        sampler = Sampler(SamplingConfig(temperature=temperature), threads=threads)
        with pytest.raises(GenerationError, match="row 217: the logit of token id 9 is NaN"):
            sampler(logits)
        with pytest.raises(GenerationError, match="row 217: the logit of token id 9 is NaN"):
            sampler.probabilities(logits)


def test_settings_that_ban_every_token_are_refused():
    sampler = Sampler(SamplingConfig(bad_words_ids=[[0], [1]]))
    with pytest.raises(GenerationError, match="row 0: no token can be drawn: the settings"):
        sampler([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([1.0, 2.0, 3.0], r"shape \[3\], expected \[B, V\]"),
        (np.zeros((1, 2, 3)), r"shape \[1, 2, 3\], expected \[B, V\]"),
        (torch.tensor(1.0), r"shape \[\], expected \[B, V\]"),
        (np.zeros((1, 2), dtype=complex), "real numbers, found complex128"),
        ([["a", "b"]], "real numbers, found <U1"),
        (torch.zeros(1, 2, device="meta"), "meta"),
        (np.zeros((2, 0), dtype=np.float32), "row 0: no token can be drawn"),
    ],
)
def test_logits_that_are_none_are_refused(logits, message):
    with pytest.raises(GenerationError, match=message):
        Sampler()(logits)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sequences": [0]}, GenerationError, "sequences has 1 entries, expected one a row: 2"),
        ({"positions": [0, 1, 2]}, GenerationError, "positions has 3 entries"),
        ({"positions": [0, -1]}, GenerationError, "positions are ints .* found -1"),
        ({"sequences": [0, 2**64]}, GenerationError, "sequences are ints"),
        ({"sequences": [0, 0.5]}, GenerationError, "sequences are ints .* found 0.5"),
        ({"history": [[]]}, GenerationError, "history has 1 entries, expected one a row: 2"),
        ({"history": [[1], ["x"]]}, GenerationError, "history has token ids, found 'x'"),
        ({"history": [[1], 4]}, GenerationError, "history is a sequence of token ids, found 4"),
        ({"history": [[1], ([0], [1, 3])]}, TokenIdError, r"token id 3 at \[1, 2\] is outside"),
        ({"history": [[-1], []]}, TokenIdError, r"token id -1 at \[0, 0\] is outside 0..2"),
    ],
)
def test_arguments_that_do_not_fit_the_rows_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Sampler()(np.zeros((2, 3)), **arguments)


@pytest.mark.parametrize("settings", [{"logit_bias": {3: 1.0}}, {"bad_words_ids": [[0], [1, 3]]}])
def test_settings_that_name_a_token_outside_the_vocabulary_are_refused(settings):
    sampler = Sampler(SamplingConfig(**settings))
    with pytest.raises(ConfigError, match="names token id 3, but the vocabulary has 3 ids"):
        sampler(np.zeros((1, 3)))
    sampler(np.zeros((1, 4)))


def test_what_is_no_config_is_refused():
    for wrong in ("greedy", 3, [SamplingConfig(), None], {"top_k": 3}):
        with pytest.raises(ConfigError, match="config is a SamplingConfig or a list of them"):
            Sampler(wrong)
    with pytest.raises(ConfigError, match="threads is at least 1, found 0"):
        Sampler(threads=0)


def test_log_probabilities_are_asked_for_tokens_of_the_vocabulary():
    logits = np.zeros((2, 3), dtype=np.float32)
    assert Sampler().log_probs(logits, [0, 2], top=9).top_ids.tolist() == [[0, 1, 2]] * 2
    with pytest.raises(TokenIdError, match=r"token id 3 at \[1, 0\] is outside 0..2"):
        Sampler().log_probs(logits, [0, 3])
    with pytest.raises(GenerationError, match="ids has 1 entries, expected one a row: 2"):
        Sampler().log_probs(logits, [0])

"""`--dry-run` and `--model auto`: what a run will take, and which model fits its time."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gptrs.config import GPTConfig, get_config
from gptrs.costs.memory_budget import WORKING_PART
from gptrs.costs.params import count_parameters
from gptrs.devices import Precision
from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import add_lora
from gptrs.training.config import TrainingConfig
from gptrs.training.estimate import estimate, format_estimate, memory_parts
from gptrs.training.model_choice import (
    SHAPES,
    block_weights,
    choose_model,
    choose_model_here,
    choose_vocab_size,
    tokens_that_count,
)
from gptrs.training.optimization import MasterWeights, Optimizers
from gptrs.training.reports.speed import training_flops
from gptrs.training.trial import measured_flops_per_s

TINY = GPTConfig(vocab_size=96, context_length=16, emb_dim=32, n_heads=2, n_layers=2, drop_rate=0.0)
CPU = torch.device("cpu")


def settings(**values):
    return TrainingConfig(**{"device": "cpu", "dtype": "float32", "batch_tokens": 64} | values)


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# --- Memory ---


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("is_pure", [False, True])
def test_weights_gradients_and_moments_take_what_torch_holds_after_a_step(optimizer, is_pure):
    config = settings(optimizer=optimizer)
    model = GPTModel(TINY)
    masters = MasterWeights(model) if is_pure else None
    optimizers = Optimizers(model, config, 0.1, masters and masters.masters)
    model(torch.zeros(1, 16, dtype=torch.int64)).float().sum().backward()
    gradients = size_of(optimizers.gradients())
    optimizers.step(0.1)
    state = [t for name, t in optimizers.state().items() if not name.startswith("step.")]
    dtype = torch.bfloat16 if is_pure else torch.float32
    parts = dict(memory_parts(TINY, config, Precision(dtype, "", is_pure), 1))
    assert parts["weights"] == size_of(model.parameters())
    assert parts["gradients"] == gradients
    assert parts["optimizer"] == size_of(state)
    assert parts.get("float32 masters", 0) == (size_of(masters.masters.values()) if masters else 0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("is_pure", [False, True])
def test_beside_adapters_what_is_frozen_has_no_gradients_and_no_moments(optimizer, is_pure):
    config, model, num_adapters = settings(optimizer=optimizer), *adapted(TINY)
    masters = MasterWeights(model) if is_pure else None
    optimizers = Optimizers(model, config, 0.1, masters and masters.masters)
    model(torch.zeros(1, 16, dtype=torch.int64)).float().sum().backward()
    gradients = size_of(optimizers.gradients())
    optimizers.step(0.1)
    state = [t for name, t in optimizers.state().items() if not name.startswith("step.")]
    dtype = torch.bfloat16 if is_pure else torch.float32
    precision = Precision(dtype, "", is_pure)
    parts = dict(memory_parts(TINY, config, precision, 1, num_adapters=num_adapters))
    assert parts["weights"] == size_of(model.parameters())
    assert parts["gradients"] == gradients
    assert parts["optimizer"] == size_of(state)
    assert parts.get("float32 masters", 0) == (size_of(masters.masters.values()) if masters else 0)


@pytest.mark.parametrize("pos", ["learned", "relative_key_query", "transformer_xl"])
def test_adapters_alone_take_the_flops_that_torch_counts(pos):
    cfg = replace(TINY, pos=pos, n_layers=8, context_length=64)
    model, num_adapters = adapted(cfg)
    ids = torch.zeros(1, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    counted = counter.get_total_flops() / 64
    # torch has no gradient for the first block's inputs, and computes fused attention twice.
    assert training_flops(cfg, num_adapters) == pytest.approx(counted, rel=0.06)
    assert training_flops(cfg) > 1.25 * counted


def adapted(cfg):
    """A model with adapters, and how many weights these have."""
    model = GPTModel(cfg)
    add_lora(model, 2, 4)
    return model, sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_activations_grow_with_the_micro_batch_and_shrink_with_checkpointing():
    cfg = get_config("gpt2-124m")

    def activations(micro_batch, **values):
        parts = memory_parts(cfg, settings(**values), Precision(torch.float32, ""), micro_batch)
        return dict(parts)["activations"]

    assert activations(4) == 4 * activations(1)
    assert activations(4, activation_checkpointing=True) < activations(4) / 5


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.5), (torch.bfloat16, 0.25)])
def test_what_a_step_takes_beside_its_parts_is_in_the_total(dtype, share):
    *parts, (name, working) = memory_parts(TINY, settings(), Precision(dtype, ""), 2)
    assert name == WORKING_PART
    assert working == int(share * sum(num_bytes for _, num_bytes in parts))


def test_shards_are_shared_out_and_activations_are_not():
    precision = Precision(torch.float32, "")
    whole = dict(memory_parts(TINY, settings(), precision, 2, 4))
    shared = dict(memory_parts(TINY, settings(parallel="fsdp"), precision, 2, 4))
    for part in ("weights", "gradients", "optimizer"):
        assert shared[part] == whole[part] // 4
    assert shared["activations"] == whole["activations"]


# --- The estimate ---


def test_steps_follow_from_the_minutes_and_time_from_the_steps():
    by_time = estimate(TINY, settings(minutes=2.0), 1000, tokens_per_s=6400.0)
    assert (by_time.steps, by_time.tokens_seen, by_time.seconds) == (12_000, 768_000, 120.0)
    assert by_time.tokens_per_parameter == 768_000 / count_parameters(TINY)
    by_steps = estimate(TINY, settings(steps=10), 1000, tokens_per_s=64.0)
    assert (by_steps.steps, by_steps.seconds) == (10, 10.0)


def test_without_tokens_per_second_some_passes_are_timed_and_the_generator_is_left_alone():
    before = torch.get_rng_state()
    found = estimate(TINY, settings(steps=10), 1000)
    assert found.tokens_per_s > 0
    assert "timed here" in found.speed_source
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_has_no_room_is_estimated_all_the_same():
    found = estimate(get_config("gpt3-175b"), settings(minutes=1.0), 10**9)
    assert (found.tokens_per_s, found.steps, found.seconds) == (None, None, None)
    assert found.total_bytes > 16 * 174e9
    assert "unknown" in format_estimate(found)


def test_the_table_says_how_many_weights_are_trained():
    found = estimate(TINY, settings(steps=1), 1000, tokens_per_s=50.0, num_adapters=512)
    assert (found.num_trained, found.num_parameters) == (512, count_parameters(TINY) + 512)
    assert "512 of them trained" in format_estimate(found).splitlines()[0]


def test_the_table_has_what_the_run_will_take():
    config = settings(steps=100, parallel="fsdp")
    text = format_estimate(estimate(TINY, config, 1000, tokens_per_s=50.0, world_size=2))
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in text.splitlines()}
    assert lines["parameters"] == f"parameters {count_parameters(TINY):,}"
    assert lines["steps"] == "steps 100 of 64 tokens"
    assert lines["tokens seen"] == "tokens seen 6,400 6.4 times the data"
    assert lines["time"] == "time 2.13 minutes without evaluations"
    assert "memory on each device" in lines
    assert f"{training_flops(TINY):,}" in lines["FLOPs a token"]


# --- The choice ---


@given(
    num_tokens=st.integers(1, 10**12),
    vocab_size=st.integers(2, 60_000),
    minutes=st.floats(0.1, 1e5),
    flops=st.floats(1e8, 1e16),
)
def test_whatever_the_data_and_the_time_there_is_a_model_with_that_vocabulary(
    num_tokens, vocab_size, minutes, flops
):
    cfg, reason = choose_model(num_tokens, vocab_size, minutes, flops)
    assert cfg.vocab_size == vocab_size
    assert cfg.context_length <= max(8, num_tokens)
    assert f"{cfg.n_layers} layers, {cfg.emb_dim} wide" in reason
    assert "Hoffmann et al. 2022" in reason


def test_more_time_never_gives_a_smaller_model_where_data_is_not_short():
    sizes = [
        block_weights(choose_model(10**13, 50257, 10**power, 1e12)[0]) for power in range(-2, 8)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == block_weights(SHAPES[0])
    assert sizes[-1] == block_weights(SHAPES[-1])


def test_with_much_data_a_model_sees_about_twenty_tokens_for_each_weight():
    """Within what one size is from the next: Hoffmann et al. 2022, table 3."""
    for flops in (1e13, 1e14, 1e15):
        cfg, _ = choose_model(10**13, 50257, 24 * 60, flops)
        seen = 0.85 * 24 * 3600 * flops / training_flops(cfg)
        assert 5 < seen / block_weights(cfg) < 80


def test_little_data_is_not_given_a_model_that_would_learn_it_by_heart():
    cfg, _ = choose_model(10_000, 512, 60, 1e12)
    assert block_weights(cfg) <= 300_000
    assert cfg.drop_rate > 0


def test_a_size_that_has_time_for_few_steps_is_passed_over():
    """Ten minutes of one thread, on Shakespeare's tokens: the law alone takes the next larger."""
    cfg, reason = choose_model(283_962, 8192, 10, 104e9)
    assert (cfg.n_layers, cfg.emb_dim) == (4, 128)
    assert "that have time for 2,000 steps" in reason
    cfg, reason = choose_model(283_962, 8192, 0.01, 104e9)
    assert block_weights(cfg) == block_weights(SHAPES[0])
    assert "smallest size" in reason


def test_a_model_that_has_no_room_is_not_chosen():
    cfg, _ = choose_model(10**12, 50257, 10**6, 1e15, most_parameters=100_000_000)
    assert block_weights(cfg) <= 100_000_000


@given(st.floats(0, 1e12), st.integers(1, 10**9))
def test_a_token_that_comes_again_counts_less_but_never_nothing(seen, num_tokens):
    worth = tokens_that_count(seen, num_tokens)
    assert worth <= seen * (1 + 1e-9)
    assert worth <= 16.4 * num_tokens * (1 + 1e-9)
    if seen <= num_tokens:
        assert worth == seen


def test_four_passes_over_the_data_are_almost_as_good_as_new_data():
    """Muennighoff et al. 2023, section 6."""
    assert tokens_that_count(4e6, 10**6) > 0.9 * 4e6
    assert tokens_that_count(100e6, 10**6) < 0.2 * 100e6


@pytest.mark.parametrize("bad", [{"minutes": 0}, {"num_tokens": 0}, {"flops_per_s": -1.0}])
def test_a_choice_from_nothing_is_refused(bad):
    good = {"num_tokens": 10, "vocab_size": 10, "minutes": 1.0, "flops_per_s": 1e9}
    with pytest.raises(ConfigError, match="it must be above 0"):
        choose_model(**good | bad)


def test_the_vocabulary_grows_with_the_text_up_to_gpt2s():
    sizes = [choose_vocab_size(10**power)[0] for power in range(9)]
    assert sizes[-1] is None
    assert sizes[:-1] == sorted(sizes[:-1])
    assert (sizes[0], sizes[-2]) == (512, 16384)
    assert choose_vocab_size(1_115_394)[0] == 4096  # Tiny Shakespeare.


def test_the_speed_that_is_measured_is_what_the_choice_is_made_with(monkeypatch):
    speeds = iter([1e13, 1e9])
    monkeypatch.setattr("gptrs.training.trial.measured_flops_per_s", lambda *args: next(speeds))
    cfg, reason = choose_model_here(10**8, 512, settings(minutes=1.0))
    assert (cfg, reason) == choose_model(10**8, 512, 1.0, 1e9)


def test_a_model_is_timed_in_the_dtype_asked_for():
    assert measured_flops_per_s(TINY, CPU, "float32", num_windows=4) > 0
    assert measured_flops_per_s(TINY, CPU, "pure-bfloat16", num_windows=4) > 0

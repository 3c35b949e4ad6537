"""How much goes through the model at once, and why."""

import pytest
import torch

from gptrs.config import GPTConfig, get_config
from gptrs.devices import Precision
from gptrs.errors import ConfigError
from gptrs.training import precision as training_precision
from gptrs.training.precision import choose_micro_batch
from gptrs.training.precision import training_precision as chosen

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT32, BFLOAT16 = Precision(torch.float32, ""), Precision(torch.bfloat16, "")


def micro_batch(monkeypatch, free_gb, windows=64, device=CUDA, precision=BFLOAT16, **options):
    free = None if free_gb is None else int(free_gb * 1e9)
    monkeypatch.setattr(training_precision, "available_bytes", lambda device: free)
    options = {"asked": None, "cfg": get_config("gpt2-124m")} | options
    return choose_micro_batch(windows=windows, device=device, precision=precision, **options)


def test_what_was_asked_for_is_taken_but_no_more_than_there_is(monkeypatch):
    assert micro_batch(monkeypatch, 80, asked=7) == (7, "as asked")
    assert micro_batch(monkeypatch, 80, asked=99).size == 64


def test_a_step_that_fits_goes_through_at_once(monkeypatch):
    assert micro_batch(monkeypatch, 80, windows=8) == (8, "the whole step fits into memory")
    assert micro_batch(monkeypatch, None, windows=8, device=CPU).size == 8


def test_less_memory_makes_smaller_batches_of_equal_size(monkeypatch):
    sizes = [micro_batch(monkeypatch, free).size for free in (80, 40, 24, 16, 8, 6)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 3
    assert all(64 % size == 0 for size in sizes)
    assert "8.0 GB that are free" in micro_batch(monkeypatch, 8).reason


def test_float32_takes_more_memory_and_checkpointing_less(monkeypatch):
    plain = micro_batch(monkeypatch, 10).size
    assert micro_batch(monkeypatch, 10, precision=FLOAT32).size < plain
    assert micro_batch(monkeypatch, 10, checkpointing=True).size > plain


def test_frozen_weights_leave_room_for_more_windows(monkeypatch):
    whole = micro_batch(monkeypatch, 6).size
    assert micro_batch(monkeypatch, 6, num_adapters=300_000).size > whole
    with pytest.raises(ConfigError, match="moments need more"):
        micro_batch(monkeypatch, 2.5, cfg=get_config("gpt2-124m"))
    assert micro_batch(monkeypatch, 2.5, num_adapters=300_000).size >= 1


def test_a_cpu_is_busy_with_few_tokens(monkeypatch):
    found = micro_batch(monkeypatch, 1000, windows=512, device=CPU)
    assert found == (8, "8,192 tokens at once keep the device busy")


def test_a_model_that_does_not_fit_is_refused_with_what_helps(monkeypatch):
    with pytest.raises(ConfigError, match=r"more than the 1\.0 GB .* activation_checkpointing"):
        micro_batch(monkeypatch, 1)


@pytest.mark.parametrize(
    ("windows", "most", "size"), [(12, 5, 4), (13, 5, 5), (7, 7, 7), (9, 2, 2)]
)
def test_batches_are_divisors_if_these_are_not_much_smaller(windows, most, size):
    assert training_precision._even(windows, most) == size


def test_what_was_asked_for_is_computed_in():
    assert chosen("float32", CPU).name == "float32"
    assert chosen("bfloat16", CPU).name == "bfloat16"
    pure = chosen("pure-bfloat16", CPU)
    assert (pure.name, pure.is_pure, pure.dtype) == ("pure-bfloat16", True, torch.bfloat16)
    with pytest.raises(ConfigError, match="dtype bfloat16 is not supported on mps"):
        chosen("bfloat16", torch.device("mps"))


def test_measuring_draws_no_random_numbers():
    training_precision._measured.cache_clear()
    state = torch.get_rng_state()
    assert "times float32's speed" in chosen("auto", CPU).reason
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_model_needs_little(monkeypatch):
    cfg = GPTConfig(vocab_size=50, context_length=8, emb_dim=8, n_heads=2, n_layers=1)
    assert micro_batch(monkeypatch, 0.01, cfg=cfg).size == 64

"""`gptrs.trainer`: the loop that `gptrs train` and the demo share."""

import dataclasses
import itertools
import json
import math
import os
import signal
import threading
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gptrs import corpus, trainer
from gptrs.checkpoint import load_checkpoint, load_metadata
from gptrs.config import GPTConfig, Pos
from gptrs.devices import choose_device, choose_precision
from gptrs.errors import ConfigError, DataError, TokenIdError, TrainingError
from gptrs.interrupts import stop_on_interrupt
from gptrs.model import GPTModel
from gptrs.optimization import build_optimizer, learning_rate_at
from gptrs.tokenizer import get_tokenizer
from gptrs.trainer import train
from gptrs.training_config import TrainingConfig

V, T = 32, 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPTModel(
        GPTConfig(vocab_size=V, context_length=T, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.1)
    )


@pytest.fixture
def tokens():
    """A text that can be learned: every token follows from the one before."""
    return (np.arange(2000) * 5 % V).astype(np.uint16)


def settings(**changes):
    quick = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "num_evaluations": 3, "device": "cpu"}
    return TrainingConfig(**quick | {"dtype": "float32"} | changes)


def metrics(run_dir, event):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def test_a_model_learns_what_can_be_learned(model, tokens, tmp_path):
    result = train(model, tokens, settings(steps=150, learning_rate=1e-2), run_dir=tmp_path)
    assert result.evaluations[0].val_loss > 3
    assert result.last.val_loss < 0.5
    assert result.unigram_loss > 3
    assert not result.interrupted
    assert not model.training


def test_the_run_is_written_down_step_by_step(model, tokens, tmp_path):
    result = train(model, tokens, settings(), run_dir=tmp_path)
    (start,) = metrics(tmp_path, "start")
    assert start["config"] == dataclasses.asdict(settings())
    assert start["model"] == model.cfg.to_dict()
    assert (start["dtype"], start["dtype_reason"]) == ("float32", "as asked")
    steps = metrics(tmp_path, "step")
    assert [record["loss"] for record in steps] == result.step_losses
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    evaluations = metrics(tmp_path, "evaluation")
    assert [record["step"] for record in evaluations] == [0, 2, 4, 6]
    assert evaluations == [
        {"event": "evaluation", **dataclasses.asdict(e)} for e in result.evaluations
    ]
    assert result.last.tokens_seen == 6 * 4 * T
    assert result.last.train_loss == pytest.approx(np.mean(result.step_losses[4:]))


def test_the_checkpoint_is_the_trained_model(model, tokens, tmp_path):
    result = train(model, tokens, settings(), run_dir=tmp_path)
    saved, _ = load_checkpoint(result.checkpoint)
    torch.testing.assert_close(dict(saved.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    metadata = load_metadata(result.checkpoint)
    assert metadata["step"] == 6
    assert metadata["val_loss"] == result.last.val_loss


def test_the_same_seed_gives_the_same_run_and_leaves_torchs_generator_alone(
    model, tokens, tmp_path
):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model.load_state_dict(weights)
        before = torch.get_rng_state()
        losses.append(
            train(model, tokens, settings(seed=seed), run_dir=tmp_path / name).step_losses
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


def test_the_validation_loss_is_torchs_over_the_held_out_windows_without_dropout(
    model, tokens, tmp_path
):
    result = train(model, tokens, settings(learning_rate=1e-9), run_dir=tmp_path)
    held_out = torch.from_numpy(tokens[1800:].astype(np.int64))
    windows = held_out[: 24 * T].view(24, T), held_out[1 : 24 * T + 1].view(24, T)
    with torch.no_grad():
        expected = F.cross_entropy(model(windows[0]).flatten(0, 1), windows[1].flatten())
    assert result.last.val_loss == pytest.approx(expected.item(), rel=1e-5)


def test_with_a_tokenizer_the_loss_is_told_in_bits_per_byte_too(tmp_path):
    tokenizer = get_tokenizer("gpt2")
    text = "the cat sat on the mat; " * 40
    tokens = tokenizer.encode_to_numpy(text)
    model = GPTModel(GPTConfig(context_length=4, emb_dim=4, n_heads=1, n_layers=1))
    result = train(model, tokens, settings(steps=1), run_dir=tmp_path, tokenizer=tokenizer)
    num_held_out = math.ceil(len(tokens) / 10)
    num_bytes = len(tokenizer.decode(tokens[-num_held_out:]).encode())
    bits = result.last.val_loss * num_held_out / math.log(2) / num_bytes
    assert result.last.bits_per_byte == pytest.approx(bits)
    assert load_checkpoint(result.checkpoint)[1] is not None


def test_the_callers_function_sees_every_evaluation_with_the_model_in_eval_mode(
    model, tokens, tmp_path
):
    seen = []
    result = train(
        model, tokens, settings(), run_dir=tmp_path,
        on_evaluation=lambda evaluation: seen.append((evaluation, model.training)),
    )  # fmt: skip
    assert seen == [(evaluation, False) for evaluation in result.evaluations]


def test_an_exception_in_the_callers_function_arrives_unchanged(model, tokens, tmp_path):
    class TheirError(Exception):
        pass

    def fail(evaluation):
        raise TheirError

    with pytest.raises(TheirError):
        train(model, tokens, settings(), run_dir=tmp_path, on_evaluation=fail)


def test_minutes_become_a_number_of_steps_that_takes_that_long(
    model, tokens, tmp_path, monkeypatch
):
    class Clock:
        now = 0.0

    real_loss = trainer.next_token_loss

    def slow_loss(model, inputs, targets):
        Clock.now += 1.0 if model.training else 0.1
        return real_loss(model, inputs, targets)

    monkeypatch.setattr(trainer.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(trainer, "next_token_loss", slow_loss)
    result = train(model, tokens, settings(steps=None, minutes=2.0), run_dir=tmp_path)
    (schedule,) = metrics(tmp_path, "schedule")
    assert schedule["num_steps"] == len(result.step_losses)
    assert schedule["seconds_per_step"] == pytest.approx(1.0)
    assert 118 < result.last.seconds <= 120
    assert result.last.tokens_per_s == pytest.approx(4 * T)
    assert [round(evaluation.progress, 1) for evaluation in result.evaluations] == [0, 0.3, 0.7, 1]


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_value_that_is_not_finite_stops_the_run_and_the_good_checkpoint_is_named(
    model, tokens, tmp_path, monkeypatch, what
):
    if what == "loss":
        real_loss, calls = trainer.next_token_loss, []

        def loss_that_breaks(model, inputs, targets):
            calls.append(model.training)
            return real_loss(model, inputs, targets) * (math.nan if sum(calls) == 5 else 1)

        monkeypatch.setattr(trainer, "next_token_loss", loss_that_breaks)
    else:
        real_clip, calls = torch.nn.utils.clip_grad_norm_, []

        def norm_that_breaks(*args):
            calls.append(1)
            return real_clip(*args) * (math.inf if len(calls) == 5 else 1)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm_that_breaks)
    with pytest.raises(
        TrainingError, match=rf"the {what} is (nan|inf) .*at step 5, .* from step 4"
    ):
        train(model, tokens, settings(), run_dir=tmp_path)
    saved, _ = load_checkpoint(tmp_path / "checkpoint")
    torch.testing.assert_close(dict(saved.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to oneself")
def test_ctrl_c_ends_the_run_after_the_step_with_a_checkpoint_of_it(
    model, tokens, tmp_path, capsys
):
    def interrupt(evaluation):
        if evaluation.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = train(model, tokens, settings(), run_dir=tmp_path, on_evaluation=interrupt)
    assert result.interrupted
    assert load_metadata(result.checkpoint)["step"] == len(result.step_losses) == 2
    saved, _ = load_checkpoint(result.checkpoint)
    torch.testing.assert_close(dict(saved.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert f"gptrs generate --model {tmp_path} " in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to oneself")
def test_a_second_ctrl_c_is_not_swallowed():
    with stop_on_interrupt() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.wait(5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_training_outside_the_main_thread_works(model, tokens, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(model, tokens, settings(), run_dir=tmp_path))
    )
    thread.start()
    thread.join()
    assert len(results[0].step_losses) == 6


def test_the_learning_rate_rises_in_a_line_stays_and_falls_along_half_a_cosine():
    config = TrainingConfig(
        learning_rate=1.0, final_learning_rate=0.2, warmup_steps=10, decay_fraction=0.6
    )
    rates = [learning_rate_at(step, 101, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert set(rates[10:41]) == {1.0}
    assert rates[70] == pytest.approx(0.6)
    assert rates[100] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[40:]))
    assert learning_rate_at(50, None, config) == 1.0


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 21])
def test_a_run_hardly_longer_than_its_warm_up_has_a_learning_rate_too(num_steps):
    config = TrainingConfig(warmup_steps=20)
    rates = [learning_rate_at(step, num_steps, config) for step in range(num_steps)]
    assert all(0 < rate <= config.learning_rate for rate in rates)


def test_only_matrices_decay(model):
    optimizer = build_optimizer(model, settings(weight_decay=0.3))
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert {decays[id(p)] for p in model.parameters() if p.ndim == 1} == {0.0}
    assert {decays[id(p)] for p in model.parameters() if p.ndim == 2} == {0.3}
    assert len(decays) == len(list(model.parameters()))


@pytest.mark.parametrize("pos", get_args(Pos))
def test_tables_of_positions_and_distances_decay_and_vectors_of_heads_do_not(pos):
    model = GPTModel(GPTConfig(vocab_size=9, emb_dim=8, n_heads=2, n_layers=2, pos=pos))
    optimizer = build_optimizer(model, settings(weight_decay=0.3))
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    found = {name: decays.pop(id(parameter)) for name, parameter in model.named_parameters()}
    assert not decays
    of_heads = (".positions.u", ".positions.v")
    for name, parameter in model.named_parameters():
        is_vector = parameter.ndim == 1 or name.endswith(of_heads)
        assert found[name] == (0.0 if is_vector else 0.3), name
    assert sum(name.endswith(of_heads) for name in found) == (4 if pos == "transformer_xl" else 0)


def test_a_frozen_parameter_stays_as_it_is(model, tokens, tmp_path):
    model.tok_emb.requires_grad_(False)
    before = model.tok_emb.weight.clone()
    train(model, tokens, settings(), run_dir=tmp_path)
    assert torch.equal(model.tok_emb.weight, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 up, or None"),
        ({"minutes": math.nan}, "minutes is nan; it must be a number above 0"),
        ({"minutes": -1}, "minutes is -1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"beta2": 1.0}, r"beta2 is 1.0; it must be from 0 to below 1"),
        ({"validation_fraction": 0}, "validation_fraction is 0; it must be between 0 and 1"),
        ({"device": "tpu"}, "device is 'tpu'; it must be one of auto, cpu, cuda, mps"),
    ],
)
def test_an_impossible_setting_is_named_with_what_is_allowed(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**change)


def test_every_setting_explains_itself():
    for field in dataclasses.fields(TrainingConfig):
        assert TrainingConfig.help(field.name).endswith(".")


def test_a_tokenizer_that_cannot_be_saved_is_refused_before_the_first_step(model, tokens, tmp_path):
    with pytest.raises(ConfigError, match="the model has vocab_size 32, and the tokenizer needs"):
        train(model, tokens, settings(), run_dir=tmp_path, tokenizer=get_tokenizer("gpt2"))
    assert list(tmp_path.iterdir()) == []


def test_too_few_tokens_and_ids_outside_the_vocabulary_are_named(model, tokens, tmp_path):
    with pytest.raises(DataError, match=r"validation has 5 of 50 tokens; .* needs 9"):
        train(model, tokens[:50], settings(), run_dir=tmp_path)
    with pytest.raises(DataError, match="0 tokens"):
        train(model, tokens[:0], settings(), run_dir=tmp_path)
    tokens[77] = V
    with pytest.raises(TokenIdError, match=r"token id 32 at 77 is outside 0\.\.31"):
        train(model, tokens, settings(), run_dir=tmp_path)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_refused_by_name(name):
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if is_there[name]:
        assert choose_device(name).type == name
    else:
        with pytest.raises(ConfigError, match=f"device {name} is not available here; available: "):
            choose_device(name)


@pytest.mark.parametrize(("has_amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_it_has_amx_and_says_so(monkeypatch, has_amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    precision = choose_precision("auto", torch.device("cpu"))
    assert precision.dtype == dtype
    assert "AMX" in precision.reason


def test_bfloat16_training_learns_too(model, tokens, tmp_path):
    config = settings(steps=150, learning_rate=1e-2, dtype="bfloat16")
    assert train(model, tokens, config, run_dir=tmp_path).last.val_loss < 0.5
    assert model.tok_emb.weight.dtype == torch.float32


def batches_of_one_epoch(num_tokens, batch_size):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    batches = corpus.training_batches(tokens, batch_size=batch_size, context_length=T, seed=5)
    return tokens, batches


def test_an_epoch_is_windows_end_to_end_and_each_starts_elsewhere():
    _, batches = batches_of_one_epoch(1000, 1)
    phases = set()
    for _ in range(4):
        starts = sorted(int(next(batches)[0][0, 0]) for _ in range(124))
        assert set(np.diff(starts)) == {T}
        phases.add(starts[0])
    assert len(phases) > 1


def test_targets_are_the_inputs_one_token_later():
    _, batches = batches_of_one_epoch(100, 3)
    for _ in range(20):
        inputs, targets = next(batches)
        assert inputs.shape == targets.shape == (3, T)
        assert torch.equal(inputs + 1, targets)


@pytest.mark.parametrize("num_tokens", [T + 1, T + 2, 2 * T])
def test_a_batch_larger_than_an_epoch_is_filled_from_several(num_tokens):
    _, batches = batches_of_one_epoch(num_tokens, 7)
    assert next(batches)[0].shape == (7, T)


def test_the_unigram_loss_is_the_cross_entropy_of_smoothed_counts():
    split = corpus.Split(np.array([0, 0, 1], np.uint16), np.array([0, 2], np.uint16))
    assert corpus.unigram_loss(split, vocab_size=3) == pytest.approx(
        -(math.log(3 / 6) + math.log(1 / 6)) / 2
    )

"""`gptrs.train`: the loop that `gptrs train` and the demo share."""

import copy
import dataclasses
import json
import math
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gptrs
from gptrs.config import GPTConfig
from gptrs.devices import choose_device, choose_precision
from gptrs.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    TokenIdError,
    TokenizerError,
    TrainingError,
)
from gptrs.interrupts import stop_on_signals
from gptrs.model.gpt import GPTModel
from gptrs.text import corpus
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.training import precision as training_precision
from gptrs.training import progress as training_progress
from gptrs.training import step as training_step
from gptrs.training.callbacks import Callback
from gptrs.training.config import TrainingConfig
from gptrs.training.trainer import train
from gptrs.weights.checkpoint import load_checkpoint, load_metadata

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
    quick = {"steps": 6, "batch_tokens": 4 * T, "warmup_steps": 2, "num_evaluations": 3}
    return TrainingConfig(**quick | {"device": "cpu", "dtype": "float32"} | changes)


class OnEvaluation(Callback):
    """Calls a function at each evaluation."""

    def __init__(self, function):
        self.on_evaluation = lambda run, evaluation: function(evaluation)


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
    assert start["config"] == json.loads(json.dumps(dataclasses.asdict(settings())))
    assert start["model"] == model.cfg.to_dict()
    assert (start["dtype"], start["dtype_reason"]) == ("float32", "as asked")
    assert (start["micro_batch"], start["micro_batch_reason"]) == (
        4,
        "the whole step fits into memory",
    )
    assert start["versions"]["torch"] == torch.__version__.split("+")[0]
    (end,) = metrics(tmp_path, "end")
    assert end["reason"] == result.reason == "finished"
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
        callbacks=[OnEvaluation(lambda evaluation: seen.append((evaluation, model.training)))],
    )  # fmt: skip
    assert seen == [(evaluation, False) for evaluation in result.evaluations]


def test_an_exception_in_the_callers_function_arrives_unchanged(model, tokens, tmp_path):
    class TheirError(Exception):
        pass

    def fail(evaluation):
        raise TheirError

    with pytest.raises(TheirError):
        train(model, tokens, settings(), run_dir=tmp_path, callbacks=[OnEvaluation(fail)])


class FakeClock:
    """Stands for the module `time`; stands still unless it is put on."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def take_time(monkeypatch, *, step_s, evaluation_s):
    """Lets a micro-batch take so long, of a step or of an evaluation."""
    clock, real_loss = FakeClock(), training_step.next_token_loss

    def slow_loss(model, inputs, targets, **documents):
        clock.now += step_s if model.training else evaluation_s
        return real_loss(model, inputs, targets, **documents)

    monkeypatch.setattr(training_progress, "time", clock)
    monkeypatch.setattr(training_step, "next_token_loss", slow_loss)


def test_minutes_become_a_number_of_steps_that_takes_that_long(
    model, tokens, tmp_path, monkeypatch
):
    take_time(monkeypatch, step_s=1.0, evaluation_s=0.1)
    result = train(model, tokens, settings(steps=None, minutes=2.0), run_dir=tmp_path)
    (schedule,) = metrics(tmp_path, "schedule")
    assert schedule["num_steps"] == len(result.step_losses)
    assert schedule["seconds_per_step"] == pytest.approx(1.0)
    assert 118 < result.last.seconds <= 120
    assert result.last.tokens_per_s == pytest.approx(4 * T)
    assert [round(evaluation.progress, 1) for evaluation in result.evaluations] == [0, 0.3, 0.7, 1]


def test_other_minutes_settle_the_number_of_steps_again(model, tokens, tmp_path, monkeypatch):
    take_time(monkeypatch, step_s=1.0, evaluation_s=0.1)
    config = settings(steps=None, minutes=1.0)
    first = train(model, tokens, config, run_dir=tmp_path)
    longer = dataclasses.replace(config, minutes=2.0)
    result = train(model, tokens, longer, run_dir=tmp_path, resume=True)
    settled = [record["num_steps"] for record in metrics(tmp_path, "schedule")]
    assert settled == [len(first.step_losses), len(result.step_losses)]
    assert 58 < first.last.seconds <= 60
    assert 117 < result.last.seconds <= 120
    assert len(result.evaluations) > len(first.evaluations) + 1
    fewer = dataclasses.replace(config, minutes=1.5)
    with pytest.raises(ConfigError, match=r"minutes is 1.5, and the run has taken 1.9\d, which"):
        train(model, tokens, fewer, run_dir=tmp_path, resume=True)


def evaluated_at(standing, clock, *, step_s, evaluation_s, until):
    """The steps after which a run whose steps and evaluations take so long is evaluated."""
    found = []

    def evaluate():
        with standing._clock.evaluating():
            clock.now += evaluation_s
            standing._progress.note_evaluation(1.0)
        standing._pass_shares()
        found.append(standing.step)

    evaluate()
    while not standing.is_finished and standing.step < until:
        standing._progress.step += 1
        clock.now += step_s(standing.step)
        standing._settles_num_steps()
        if standing._evaluation_is_due():
            evaluate()
    return found


def test_evaluations_that_are_late_do_not_come_one_after_the_other(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(training_progress, "time", clock)
    config = settings(steps=None, minutes=1.0, num_evaluations=10)
    # Each takes longer than the share of the run after which the next one is due.
    slow = training_progress.Standing(config)
    steps = evaluated_at(slow, clock, step_s=lambda step: 0.25, evaluation_s=8.0, until=999)
    assert slow.is_finished
    assert len(steps) >= 4
    between = np.diff(steps[:-1])
    assert between.min() > 5, steps
    # One step was held up for the third of a run.
    held_up = training_progress.Standing(config)
    steps = evaluated_at(
        held_up, clock, step_s=lambda step: 20.0 if step == 20 else 0.5, evaluation_s=0.1, until=999
    )
    assert held_up.is_finished
    assert 20 in steps
    assert np.diff(steps[:-1]).min() >= 3, steps


def test_where_nothing_is_late_evaluations_are_evenly_spread(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(training_progress, "time", clock)
    standing = training_progress.Standing(settings(steps=100, num_evaluations=10))
    steps = evaluated_at(standing, clock, step_s=lambda step: 1.0, evaluation_s=5.0, until=999)
    assert steps == list(range(0, 101, 10))


def break_steps(monkeypatch, what, steps):
    """Lets the loss or the gradient of these steps be no number."""
    calls = []

    def is_broken():
        calls.append(1)
        return len(calls) in steps

    if what == "loss":
        real_loss = training_step.next_token_loss

        def loss(model, *args, **documents):
            value = real_loss(model, *args, **documents)
            return value * math.nan if model.training and is_broken() else value

        monkeypatch.setattr(training_step, "next_token_loss", loss)
    else:
        real_norm = training_step.total_norm
        monkeypatch.setattr(
            training_step,
            "total_norm",
            lambda gradients: real_norm(gradients) * (math.inf if is_broken() else 1),
        )


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    model, tokens, tmp_path, monkeypatch, what
):
    break_steps(monkeypatch, what, {3, 4})
    result = train(model, tokens, settings(), run_dir=tmp_path)
    assert result.reason == "finished"
    skipped = metrics(tmp_path, "skipped")
    assert [record["step"] for record in skipped] == [3, 4]
    assert all(f"the {what} is" in record["why"] for record in skipped)
    assert [math.isnan(loss) for loss in result.step_losses] == [0, 0, 1, 1, 0, 0]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert math.isfinite(result.last.train_loss)


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_too_many_such_steps_in_a_row_end_the_run_and_the_good_checkpoint_is_named(
    model, tokens, tmp_path, monkeypatch, what
):
    break_steps(monkeypatch, what, {5, 6, 7, 8})
    config = settings(steps=20, num_evaluations=10, max_skipped_steps=2)
    message = rf"the {what} is (nan|inf).*at step 7, .*step-00000004 is the last good checkpoint"
    with pytest.raises(TrainingError, match=message):
        train(model, tokens, config, run_dir=tmp_path)
    saved, _ = load_checkpoint(tmp_path / "checkpoint")
    torch.testing.assert_close(dict(saved.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert metrics(tmp_path, "end")[0]["reason"] == "failed"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to oneself")
def test_ctrl_c_ends_the_run_after_the_step_with_a_checkpoint_of_it(
    model, tokens, tmp_path, capsys
):
    def interrupt(evaluation):
        if evaluation.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    watching = [OnEvaluation(interrupt)]
    result = train(model, tokens, settings(), run_dir=tmp_path, callbacks=watching)
    assert result.interrupted
    assert load_metadata(result.checkpoint)["step"] == len(result.step_losses) == 2
    saved, _ = load_checkpoint(result.checkpoint)
    torch.testing.assert_close(dict(saved.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert f"gptrs generate --model {tmp_path} " in capsys.readouterr().out
    assert result.reason == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to oneself")
def test_a_second_ctrl_c_is_not_swallowed():
    with stop_on_signals() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.reason == "interrupted"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def hang_up():
    """Sets what SIGHUP does; the tests may run under nohup themselves."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_ends_a_run_with_a_checkpoint_but_not_under_nohup(
    model, tokens, tmp_path, hang_up
):
    def close_terminal(evaluation):
        if evaluation.step == 2:
            signal.raise_signal(signal.SIGHUP)

    hang_up(signal.SIG_DFL)
    callbacks = [OnEvaluation(close_terminal)]
    result = train(model, tokens, settings(), run_dir=tmp_path, callbacks=callbacks)
    assert (result.reason, result.last.step) == ("terminated", 2)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    hang_up(signal.SIG_IGN)
    with stop_on_signals() as request:
        signal.raise_signal(signal.SIGHUP)
        assert request.reason is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_training_outside_the_main_thread_works(model, tokens, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(model, tokens, settings(), run_dir=tmp_path))
    )
    thread.start()
    thread.join()
    assert len(results[0].step_losses) == 6


def test_a_frozen_parameter_stays_as_it_is(model, tokens, tmp_path):
    model.tok_emb.requires_grad_(False)
    before = model.tok_emb.weight.clone()
    train(model, tokens, settings(), run_dir=tmp_path)
    assert torch.equal(model.tok_emb.weight, before)


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
def test_without_a_run_a_cpu_computes_in_bfloat16_where_it_has_amx(monkeypatch, has_amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    precision = choose_precision("auto", torch.device("cpu"))
    assert precision.dtype == dtype
    assert "AMX" in precision.reason


@pytest.mark.parametrize(("ratio", "dtype"), [(3.0, torch.bfloat16), (1.1, torch.float32)])
def test_a_run_computes_in_bfloat16_where_it_was_measured_to_be_faster(monkeypatch, ratio, dtype):
    speed = {torch.float32: 1.0, torch.bfloat16: ratio}
    monkeypatch.setattr(training_precision, "_flops_per_s", lambda dtype, device: speed[dtype])
    training_precision._measured.cache_clear()
    precision = training_precision.training_precision("auto", torch.device("cpu"))
    training_precision._measured.cache_clear()
    assert precision.dtype == dtype
    assert f"{ratio} times" in precision.reason


@pytest.mark.parametrize("dtype", ["bfloat16", "pure-bfloat16"])
def test_bfloat16_training_learns_too(model, tokens, tmp_path, dtype):
    config = settings(steps=150, learning_rate=1e-2, dtype=dtype)
    assert train(model, tokens, config, run_dir=tmp_path).last.val_loss < 0.5
    assert model.tok_emb.weight.dtype == torch.float32


def test_the_unigram_loss_is_the_cross_entropy_of_smoothed_counts():
    loss = corpus.unigram_loss(np.array([2, 1, 0]), np.array([0, 2], np.uint16))
    assert loss == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


def final_weights(config, tokens, tmp_path, drop_rate=0.0, **options):
    torch.manual_seed(0)
    shape = {"vocab_size": V, "context_length": T, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
    model = GPTModel(GPTConfig(drop_rate=drop_rate, **shape))
    result = train(model, tokens, config, run_dir=tmp_path, **options)
    return {name: weight.detach() for name, weight in model.named_parameters()}, result


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(tokens, tmp_path, micro_batch):
    whole, one = final_weights(settings(micro_batch=10), tokens, tmp_path / "a")
    parts, other = final_weights(settings(micro_batch=micro_batch), tokens, tmp_path / "b")
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert other.step_losses == pytest.approx(one.step_losses, rel=1e-5)


def test_a_step_is_the_books_loop_with_torchs_own_optimizer(tokens, tmp_path):
    config = settings(steps=5, warmup_steps=0, learning_rate=1e-2, final_learning_rate=1e-2)
    weights, result = final_weights(config, tokens, tmp_path)
    torch.manual_seed(0)
    shape = {"vocab_size": V, "context_length": T, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
    model = GPTModel(GPTConfig(drop_rate=0.0, **shape))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    source = gptrs.training.data.WindowSource(tokens, T, 4 * T, seed=config.seed, stop=1800)
    losses = []
    for step in range(5):
        (batch,) = source.micro_batches(step)
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert result.step_losses == pytest.approx(losses, rel=1e-5)
    expected = {name: weight.detach() for name, weight in model.named_parameters()}
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


# PyTorch's compiler looks at gradients that it then warns of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    "changes",
    [
        {"activation_checkpointing": True},
        # It takes half a minute to compile.
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        pytest.param({"compile": True, "activation_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_blocks_that_are_compiled_or_computed_twice_compute_the_same(tokens, tmp_path, changes):
    # Without dropout: a compiled block draws other random numbers.
    plain, one = final_weights(settings(), tokens, tmp_path / "a")
    again, other = final_weights(settings(**changes), tokens, tmp_path / "b")
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)
    assert other.step_losses == pytest.approx(one.step_losses, rel=1e-5)


def test_dropout_is_the_same_where_a_block_is_computed_twice(model, tokens, tmp_path):
    plain = copy.deepcopy(model)
    expected = train(plain, tokens, settings(), run_dir=tmp_path / "a").step_losses
    config = settings(activation_checkpointing=True)
    assert train(model, tokens, config, run_dir=tmp_path / "b").step_losses == expected
    assert all("forward" not in vars(block) for block in model.trf_blocks)


class Ragged:
    """Batches in which few positions count, and one has none that does."""

    num_tokens_per_step = 4 * T

    def __init__(self, parts):
        self.parts = parts

    def micro_batches(self, step):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(V, (4, T + 1), generator=generator)
        targets = ids[:, 1:].clone()
        for row, count in enumerate((8, 1, 0, 3)):
            targets[row, count:] = -100
        rows = torch.arange(4).tensor_split(self.parts)
        yield from (gptrs.training.data.Batch(ids[part, :-1], targets[part]) for part in rows)

    def describe(self):
        return {"kind": "ragged"}


def test_every_position_that_counts_weighs_the_same_whichever_batch_it_is_in(tokens, tmp_path):
    runs = []
    for parts in (1, 4):
        source = Ragged(parts)
        held_out = list(source.micro_batches(99))
        runs.append(final_weights(settings(), source, tmp_path / str(parts), validation=held_out))
    (whole, one), (split, other) = runs
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)
    assert other.step_losses == pytest.approx(one.step_losses, rel=1e-5)
    assert other.last.val_loss == pytest.approx(one.last.val_loss, rel=1e-6)


def test_other_tokens_or_a_store_can_be_validated_on(model, tokens, tmp_path):
    (tmp_path / "text.txt").write_text("".join(map(chr, range(97, 120))) * 9)
    chars = gptrs.train_tokenizer(tmp_path / "text.txt", None, kind="char")
    store = gptrs.build_store(tmp_path / "text.txt", tmp_path / "store", tokenizer=chars)
    array = np.array(store[:])
    losses = [
        train(
            model, tokens, settings(learning_rate=1e-9), run_dir=tmp_path / name, validation=other
        ).last.val_loss
        for name, other in (("a", store), ("b", array))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # They learn, if hardly.
    start = metrics(tmp_path / "a", "start")[0]
    assert start["num_train_tokens"] == len(tokens)
    assert start["num_validation_tokens"] == (len(array) - 1) // T * T


def test_a_store_is_trained_on_as_its_tokens_are(tmp_path):
    (tmp_path / "text.txt").write_text("".join(map(chr, range(97, 120))) * 20)
    chars = gptrs.train_tokenizer(tmp_path / "text.txt", None, kind="char")
    store = gptrs.build_store(tmp_path / "text.txt", tmp_path / "store", tokenizer=chars)
    results = []
    for name, data in (("a", store), ("b", np.array(store[:]))):
        _, result = final_weights(settings(), data, tmp_path / name)
        results.append([*result.step_losses, result.last.val_loss, result.unigram_loss])
    assert results[0] == pytest.approx(results[1])


def test_learning_that_has_stopped_ends_the_run(model, tokens, tmp_path):
    config = settings(steps=400, learning_rate=3e-2, evaluate_every=10, early_stopping=2)
    result = train(model, tokens, config, run_dir=tmp_path)
    assert result.reason == "early stopping"
    losses = [evaluation.val_loss for evaluation in result.evaluations[1:]]
    assert min(losses) == losses[-3]
    assert load_metadata(result.checkpoint)["val_loss"] == min(losses)


def test_evaluations_come_after_so_many_steps_and_samples_with_them(tokens, tmp_path):
    config = settings(evaluate_every=4, sample_prompts=("ab", "b"), sample_tokens=3)
    (tmp_path / "text.txt").write_text("".join(map(chr, range(97, 97 + V - 1))))
    chars = gptrs.train_tokenizer(tmp_path / "text.txt", None, kind="char")
    _, result = final_weights(config, tokens, tmp_path / "run", tokenizer=chars)
    assert [evaluation.step for evaluation in result.evaluations] == [0, 4, 6]
    samples = metrics(tmp_path / "run", "sample")
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [
        (step, prompt) for step in (0, 4, 6) for prompt in ("ab", "b")
    ]
    assert all(1 <= len(sample["text"]) <= 20 for sample in samples)


def test_a_folder_with_a_run_is_not_written_over(model, tokens, tmp_path):
    train(model, tokens, settings(), run_dir=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="has a run already: resume it"):
        train(model, tokens, settings(), run_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="no run to resume"):
        train(model, tokens, settings(), run_dir=tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="no folder to write to"):
        train(model, tokens, settings(), run_dir=tmp_path / "file" / "run")


def test_memory_that_runs_out_is_told_with_what_to_lower(model, tokens, tmp_path, monkeypatch):
    def too_much(*args, **documents):
        if not model.training:
            return torch.zeros(())
        raise torch.OutOfMemoryError("tried to allocate 9 GiB. GPU 0 has 1 GiB")

    monkeypatch.setattr(training_step, "next_token_loss", too_much)
    with pytest.raises(TrainingError, match=r"4 windows of 8 tokens: lower micro_batch .* 9 GiB"):
        train(model, tokens, settings(), run_dir=tmp_path)


def test_what_data_cannot_be_is_refused(model, tokens, tmp_path):
    with pytest.raises(ConfigError, match=r"micro_batches\(step\); found str"):
        train(model, "a text", settings(), run_dir=tmp_path)
    with pytest.raises(ConfigError, match="validated on batches"):
        train(model, Ragged(1), settings(), run_dir=tmp_path)
    with pytest.raises(ConfigError, match="not a multiple of context_length 8"):
        train(model, tokens, settings(batch_tokens=9), run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [
        lambda tokens: tokens.astype(np.int64),
        lambda tokens: tokens.astype(np.uint8),
        lambda tokens: tokens.astype(">i4"),
        lambda tokens: tokens.astype(np.uint32),
        lambda tokens: torch.from_numpy(tokens.astype(np.int64)),
        lambda tokens: tokens.tolist(),
        lambda tokens: tuple(tokens),
    ],
)
def test_ids_are_trained_on_whatever_holds_them(tokens, tmp_path, given):
    one, other = (
        final_weights(settings(steps=2), each(tokens), tmp_path / name, validation=each(tokens))
        for name, each in (("one", np.copy), ("other", given))
    )
    assert other[1].step_losses == one[1].step_losses
    assert other[1].last.val_loss == one[1].last.val_loss
    assert all(torch.equal(one[0][name], tensor) for name, tensor in other[0].items())


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2, -3] * 9, TokenIdError, "token id -3 at 2 is outside 0..31"),
        (torch.arange(40), TokenIdError, "token id 39 at 39 is outside 0..31"),
        (np.arange(40), TokenIdError, "token id 39 at 39 is outside 0..31"),
        (np.ones(40), ConfigError, r"integers in a row, \[N\]; found float64 \[40\]"),
        (torch.ones(40).bfloat16(), ConfigError, r"integers in a row, \[N\]; found float64"),
        (torch.ones(40, 2).long(), ConfigError, r"found int64 \[40, 2\]"),
        (np.ones((40, 2), np.uint16), ConfigError, r"found uint16 \[40, 2\]"),
        ([1, 2, "c"], ConfigError, "found <U"),
        ([1, [2, 3]], ConfigError, "integers in a row"),
        ([], ConfigError, "found list"),
        ([1, 2, 3], DataError, "train has 2 of 3 tokens"),
    ],
)
def test_ids_that_are_none_are_named(model, tokens, tmp_path, ids, error, message):
    with pytest.raises(error, match=message):
        train(model, ids, settings(), run_dir=tmp_path)
    if error is not DataError and len(ids):
        with pytest.raises(error, match=message):
            train(model, tokens, settings(), run_dir=tmp_path, validation=ids)
    assert list(tmp_path.iterdir()) == []


def test_what_train_cannot_take_is_refused_before_anything_is_written(model, tokens, tmp_path):
    with pytest.raises(ConfigError, match=r"config is a TrainingConfig; found dict: Tr.*\(\*\*"):
        train(model, tokens, {"steps": 3}, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="train takes a GPTModel, not wrapped; found Linear"):
        train(torch.nn.Linear(2, 2), tokens, settings(), run_dir=tmp_path)
    with pytest.raises(ConfigError, match="sample_prompts are texts, which need a tokenizer"):
        train(model, tokens, settings(sample_prompts=["a"]), run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def at_an_odd_address(tokens):
    content = np.frombuffer(b"." + tokens.tobytes(), np.uint8)
    return content[1:].view(np.uint16)


def test_decays_of_the_optimizer_may_be_whole_numbers(model, tokens, tmp_path):
    result = train(model, tokens, settings(beta1=0, beta2=0), run_dir=tmp_path)
    assert result.reason == "finished"


@pytest.mark.parametrize("ids", [lambda x: x.repeat(2)[::2], lambda x: x[::-1], at_an_odd_address])
def test_ids_may_lie_in_memory_in_any_order(model, tokens, tmp_path, ids):
    given = ids(tokens)
    other = copy.deepcopy(model)
    for each, name, data in ((model, "a", given), (other, "b", given.tolist())):
        train(each, data, settings(), run_dir=tmp_path / name)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrower_weights_are_trained_in_float32(model, tokens, tmp_path, dtype):
    same = copy.deepcopy(model.to(dtype)).float()
    weight = model.tok_emb.weight
    for each, folder in ((model, "narrow"), (same, "float32")):
        train(each, tokens, settings(), run_dir=tmp_path / folder)
    assert model.tok_emb.weight is weight
    torch.testing.assert_close(model.state_dict(), same.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": ("ab", "日本")}, TokenizerError, "日"),
        ({"callbacks": [print]}, ConfigError, "a callback is a gptrs.Callback; found <built-in"),
    ],
)
def test_what_would_end_a_run_later_is_refused_before_it_is_begun(
    tmp_path, options, error, message
):
    (tmp_path / "text.txt").write_text("abc" * 200)
    tokenizer = gptrs.train_tokenizer(tmp_path / "text.txt", kind="char")
    cfg = GPTConfig(
        vocab_size=tokenizer.n_vocab, context_length=T, emb_dim=8, n_heads=2, n_layers=1
    )
    config = settings(sample_prompts=options.get("prompts", ()))
    ids = tokenizer.encode("abc" * 200)
    run_dir, callbacks = tmp_path / "run", options.get("callbacks", ())
    with pytest.raises(error, match=message):
        train(GPTModel(cfg), ids, config, run_dir=run_dir, tokenizer=tokenizer, callbacks=callbacks)
    assert not run_dir.exists() or not any(run_dir.iterdir())


def test_prompts_may_be_a_list():
    assert settings(sample_prompts=["a", "b"]) == settings(sample_prompts=("a", "b"))
    with pytest.raises(ConfigError, match="it must be a list or tuple of texts that are not empty"):
        settings(sample_prompts=["a", ""])

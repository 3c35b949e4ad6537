"""Several processes that train one model: what one process would do, faster.

Two and four processes over gloo, on a CPU; `torchrun` itself where it restarts them.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import (
    STEPS,
    TOKENS,
    Outcome,
    T,
    V,
    assert_same_course,
    course,
    learn,
    learn_by_command,
    needs_gloo,
    new_model,
    outcome,
    settings,
    together,
    told,
    weights,
)

from gptrs import cli
from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, TrainingError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import add_lora
from gptrs.model.loss import IGNORE_INDEX
from gptrs.text.tokenizer_training import train_tokenizer
from gptrs.training import step as training_step
from gptrs.training import trainer
from gptrs.training.checkpoint import checkpoints, step_of
from gptrs.training.config import TrainingConfig
from gptrs.training.data import Batch
from gptrs.training.instructions.template import format_prompt
from gptrs.training.run_lock import locked
from gptrs.training.step import World
from gptrs.training.world import joined
from gptrs.weights.checkpoint import load_checkpoint, save_checkpoint

pytestmark = needs_gloo


class Unequal:
    """Batches in whose targets hardly anything counts; of one process at times nothing."""

    num_tokens_per_step = 4 * T

    def __init__(self, rank, world_size):
        self.rows = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)

    def micro_batches(self, step):
        draw = torch.Generator().manual_seed(step)
        ids = torch.randint(V, (4, T + 1), generator=draw)
        inputs, targets = ids[:, :-1], ids[:, 1:].clone()
        targets[torch.rand(4, T, generator=draw) < 0.5] = IGNORE_INDEX
        targets[2 + step % 2 :] = IGNORE_INDEX  # The last rows, whoever has them.
        for row in range(4)[self.rows]:
            yield Batch(inputs[row : row + 1], targets[row : row + 1])

    def describe(self):
        return {"kind": "unequal"}


def trained_on_unequal(run_dir, rank, world_size, **changes):
    source = Unequal(rank, world_size)
    held_out = list(Unequal(0, 1).micro_batches(1000))[:3]
    config = settings(**changes)
    return trainer.train(new_model(), source, config, run_dir=run_dir, validation=held_out)


# --- What runs in each of several processes ---


def learn_unequal(run_dir, changes):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return outcome(trained_on_unequal(run_dir, rank, size, **changes))


def learn_with_nan(run_dir, changes, wrong):
    """The loss of one process is NaN, in the steps with these numbers."""
    real, calls = training_step.next_token_loss, []

    def loss(model, inputs, targets, **options):
        calls.extend([1] * torch.is_grad_enabled())
        found = real(model, inputs, targets, **options)
        is_wrong = len(calls) in wrong and os.environ["RANK"] == "1" and torch.is_grad_enabled()
        return found * float("nan") if is_wrong else found

    training_step.next_token_loss = loss
    try:
        return learn(run_dir, {"batch_tokens": 2 * T, "max_skipped_steps": 1} | changes)
    except TrainingError as error:
        return Outcome([], [], "failed", str(error))
    finally:
        training_step.next_token_loss = real


def learn_until_told(run_dir, changes, rank, step, number):
    """One process gets a signal, the others none."""
    real = training_step.measure
    calls = []

    def measure(*arguments):
        calls.append(1)
        if len(calls) == step and os.environ["RANK"] == str(rank):
            signal.raise_signal(number)
        return real(*arguments)

    module = sys.modules["gptrs.training.run"]
    module.measure = measure
    try:
        return learn(run_dir, changes)
    finally:
        module.measure = real


def learn_from_copy(run_dir, changes, name):
    if os.environ["RANK"] == "0":
        shutil.copytree(run_dir.with_name(name), run_dir)
    dist.barrier()
    return learn(run_dir, changes, resume=True)


def learn_beside_another(run_dir, changes):
    """While another job, as it were, trains in the same folder."""
    is_first = os.environ["RANK"] == "0"
    with locked(run_dir, World()) if is_first else contextlib.nullcontext():
        dist.barrier()
        try:
            return learn(run_dir, changes)
        except TrainingError as error:
            return Outcome([], [], "failed", str(error))


# --- What they did ---

KINDS = ("ddp", "fsdp")
BFLOAT16 = {"parallel": "fsdp", "dtype": "bfloat16", "activation_checkpointing": True}
CALLS = {
    "ddp": (learn, {}),
    "fsdp": (learn, {"parallel": "fsdp", "micro_batch": 2}),
    "fsdp, bfloat16": (learn, BFLOAT16),
    "fsdp, pure": (learn, {"parallel": "fsdp", "dtype": "pure-bfloat16"}),
    "ddp, unequal": (learn_unequal, {}),
    "fsdp, unequal": (learn_unequal, {"parallel": "fsdp"}),
    "ddp, skipped": (learn_with_nan, {}, (3,)),
    "fsdp, skipped": (learn_with_nan, {"parallel": "fsdp"}, (3,)),
    "ddp, failed": (learn_with_nan, {}, (3, 4)),
    "ddp, stopped": (learn_until_told, {}, 1, 5, signal.SIGTERM),
    "fsdp, stopped": (learn_until_told, {"parallel": "fsdp"}, 1, 5, signal.SIGINT),
    "ddp, refused": (learn_beside_another, {}),
    "ddp, gone on": (learn_from_copy, {}, "ddp, stopped"),
    "fsdp, gone on": (learn_from_copy, {"parallel": "fsdp"}, "fsdp, stopped"),
}


# As `gptrs train` is told.
LONG = 128
"""Tokens that an instruction in its template has room in."""
BY_COMMAND = {
    "instructions": ["sums.jsonl"],
    "adapters": ["text.txt", "--lora", "4"],
    "adapters for instructions": ["sums.jsonl", "--lora", "4"],
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A checkpoint with a tokenizer, instructions and a text."""
    folder = tmp_path_factory.mktemp("learned")
    entries = [
        {"instruction": "Add.", "input": f"{a} {b}", "output": str(a + b)}
        for a in range(8)
        for b in range(8)
    ]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, entries)))
    text = " ".join(format_prompt(entry) + entry["output"] for entry in entries)
    (folder / "text.txt").write_text(text)
    tokenizer = train_tokenizer(folder / "text.txt", 300)
    model = new_model(vocab_size=tokenizer.n_vocab, context_length=LONG)
    save_checkpoint(model, folder / "base", tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def commands(learned):
    """Arguments of `gptrs train`."""
    quick = ["--steps", STEPS, "--device", "cpu", "--dtype", "float32", "--learning-rate", "1e-2",
             "--set", "num_evaluations=2", "--set", "micro_batch=1",
             "--set", f"batch_tokens={5 * LONG}", "--set", "warmup_steps=2"]  # fmt: skip
    return {
        name: [learned / data, "--init", learned / "base", *options, *quick]
        for name, (data, *options) in BY_COMMAND.items()
    }


class Two(NamedTuple):
    """What two processes did, and where."""

    folder: Path
    outcomes: dict

    def run(self, name):
        return self.folder / name

    def __getitem__(self, name):
        """Of the first process; the other's is the same."""
        first, second = self.outcomes[name]
        np.testing.assert_array_equal(first.losses, second.losses)
        assert first.reason == second.reason
        assert first.val_losses == second.val_losses
        return first


@pytest.fixture(scope="module")
def two(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    wanted = CALLS | {name: (learn_by_command, options) for name, options in commands.items()}
    calls = [(function, folder / name, *rest) for name, (function, *rest) in wanted.items()]
    first, second = together(2, calls)
    return Two(folder, dict(zip(wanted, zip(first, second, strict=True), strict=True)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process that was never stopped."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    result = trainer.train(new_model(), TOKENS, settings(), run_dir=run_dir)
    return result, run_dir


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_learn_what_one_learns(two, alone, name):
    expected, run_dir = alone
    assert_same_course(two[name], expected)
    theirs = weights(run_dir)
    for key, tensor in weights(two.run(name)).items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow  # It takes half a minute to compile.
@pytest.mark.parametrize("parallel", KINDS)
def test_blocks_that_are_compiled_learn_the_same_in_two_processes(alone, tmp_path, parallel):
    changes = {"parallel": parallel, "compile": True}
    for (found,) in together(2, [(learn, tmp_path / "run", changes)]):
        assert_same_course(found, alone[0])


@pytest.mark.parametrize("name", ["fsdp, bfloat16", "fsdp, pure"])
def test_shards_in_bfloat16_are_near_float32(two, alone, name):
    assert_same_course(two[name], alone[0], rtol=0.02)
    assert two[name].losses != two["fsdp"].losses
    assert {tensor.dtype for tensor in weights(two.run(name)).values()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_every_position_weighs_the_same_whichever_process_has_it(two, tmp_path, kind):
    expected = trained_on_unequal(tmp_path, 0, 1)
    assert_same_course(two[f"{kind}, unequal"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_nan_in_one_process_is_skipped_by_all(two, kind):
    losses = two[f"{kind}, skipped"].losses
    assert [number for number, loss in enumerate(losses, 1) if np.isnan(loss)] == [3]


def test_all_processes_end_when_steps_go_on_being_skipped(two):
    for found in two.outcomes["ddp, failed"]:
        assert "the loss is nan" in found.message
        assert "steps skipped in a row: 2" in found.message


def test_no_process_trains_where_another_job_does(two):
    for found in two.outcomes["ddp, refused"]:
        assert "trains this run" in found.message
    assert not two.run("ddp, refused").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(two, kind):
    reason = {"ddp": "terminated", "fsdp": "interrupted"}[kind]
    assert two[f"{kind}, stopped"].reason == reason
    assert step_of(checkpoints(two.run(f"{kind}, stopped"))[-1]) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_only_one_process_writes(two, kind):
    lines = told(two.run(kind))
    steps = [line["step"] for line in lines if line["event"] == "step"]
    assert steps == [*range(1, STEPS + 1)]
    (start,) = [line for line in lines if line["event"] == "start"]
    assert (start["parallel"], start["world_size"]) == (kind, 2)
    assert {path.suffix for path in two.run(kind).rglob("*") if path.is_file()} == {
        ".json", ".jsonl", ".safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_that_were_stopped_go_on_to_the_bit(two, kind):
    found = two[f"{kind}, gone on"]
    # The micro-batches of the run that was not stopped were others, with shards.
    assert found.losses[:5] == two[f"{kind}, stopped"].losses
    np.testing.assert_allclose(found.losses, two[kind].losses, rtol=0 if kind == "ddp" else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_two_processes_goes_on_in_one(two, alone, tmp_path, kind):
    shutil.copytree(two.run(f"{kind}, stopped"), tmp_path / "run")
    config = settings()
    result = trainer.train(new_model(), TOKENS, config, run_dir=tmp_path / "run", resume=True)
    assert_same_course(outcome(result), alone[0])


def test_a_run_of_two_processes_goes_on_in_four_with_shards_or_without(two, alone, tmp_path):
    calls = []
    for stopped, parallel in zip(KINDS, reversed(KINDS), strict=True):
        run_dir = shutil.copytree(two.run(f"{stopped}, stopped"), tmp_path / stopped)
        calls.append((learn, run_dir, {"parallel": parallel}, True))
    for outcomes in together(4, calls):
        for found in outcomes:
            assert_same_course(found, alone[0])


# --- What `gptrs train` can do besides ---


@pytest.mark.parametrize("name", BY_COMMAND)
def test_two_processes_learn_from_instructions_and_through_adapters_as_one_does(
    commands, two, tmp_path, name
):
    first, second = two.outcomes[name]
    assert first[:2] == second[:2]
    assert cli.main(["train", *map(str, commands[name]), "--out", str(tmp_path / "alone")]) == 0
    losses, val_losses = course(tmp_path / "alone")
    assert val_losses[-1] < val_losses[0]
    np.testing.assert_allclose(first[0], losses, rtol=1e-4)
    np.testing.assert_allclose(first[1], val_losses, rtol=1e-4)
    ours, theirs = (
        load_checkpoint(path)[0].state_dict() for path in (two.run(name), tmp_path / "alone")
    )
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-4)
    # One voice, one log, one lock that both have let go of.
    assert first[2].count("Let it write:") == 1
    assert second[2] == ""
    assert not (two.run(name) / ".lock").exists()


# --- torchrun, and what it may find ---


def test_torchrun_trains_adapters_on_instructions(commands, two, tmp_path):
    name = "adapters for instructions"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "gptrs"]
    command = [sys.executable, *launch, "train", *commands[name], "--out", tmp_path / "run"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Let it write:") == 1
    losses, _ = course(tmp_path / "run")
    np.testing.assert_allclose(losses, two.outcomes[name][0][0], rtol=1e-5)


@contextmanager
def torchrun(run_dir, data, *options):
    """`gptrs train` in two processes; what they print goes to out.txt beside the run."""
    sizes = {"context_length": 8, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0}
    training = {"steps": 200, "batch_tokens": 32, "checkpoint_minutes": 2e-3, "device": "cpu"}
    training |= {"dtype": "float32", "num_evaluations": 1, "warmup_steps": 2}
    settings = [f"--set={name}={value}" for name, value in (sizes | training).items()]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    command = ["-m", "gptrs", "train", str(data), "--tokenizer=char", f"--out={run_dir}"]
    with (
        run_dir.with_name("out.txt").open("w") as out,
        subprocess.Popen(
            [sys.executable, *launch, *command, *settings], stdout=out, stderr=out
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def worker(process, rank):
    """The number of the process that torchrun started with this rank."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    for child in children:
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"there is no process {rank}: {children}")


def wait_for_step(process, run_dir, step):
    """Until a checkpoint of that step or a later one is there."""
    while not any(step_of(path) >= step for path in checkpoints(run_dir)):
        assert process.poll() is None, run_dir.with_name("out.txt").read_text()
        time.sleep(0.02)


def test_torchrun_goes_on_from_the_last_checkpoint_when_a_process_is_killed(tmp_path):
    data, run_dir = tmp_path / "text.txt", tmp_path / "run"
    data.write_text("".join(f"{n} sheep jumped over the gate. " for n in range(300)))
    with torchrun(run_dir, data, "--max-restarts=1") as process:
        wait_for_step(process, run_dir, 3)
        os.kill(worker(process, 1), signal.SIGKILL)
        process.wait(timeout=150)
    out = (tmp_path / "out.txt").read_text()
    assert process.returncode == 0, out
    assert out.count("Let it write:") == 1
    lines = told(run_dir)
    (resumed,) = [line for line in lines if line["event"] == "resumed"]
    assert resumed["step"] >= 3
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    config = TrainingConfig.of(lines[0]["config"] | {"parallel": "none"})
    text = data.read_text()
    tokenizer = load_checkpoint(run_dir)[1]
    alone = trainer.train(
        new_of(config, lines[0]["model"]),
        np.array([*tokenizer.encode_ordinary(text), tokenizer.eot_token], dtype=np.uint16),
        config,
        run_dir=tmp_path / "alone",
    )
    np.testing.assert_allclose(losses, alone.step_losses, rtol=1e-3)


def new_of(config, shape):
    torch.manual_seed(config.seed)
    return GPTModel(GPTConfig.of(shape))


@pytest.fixture
def as_one_of_one(monkeypatch):
    """As torchrun starts a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (variables | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, str(value))


def test_one_process_under_torchrun_trains_as_without_it(as_one_of_one):
    with joined(settings()) as world:
        assert (world.parallel, world.world_size) == ("none", 1)
    with joined(settings(parallel="ddp")) as world:
        assert (world.parallel, world.world_size) == ("ddp", 1)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({"parallel": "ddp", "dtype": "pure-bfloat16"}, {}, "ddp does not train in pure-bfloat16"),
        ({"parallel": "fsdp", "optimizer": "muon"}, {}, "muon needs whole matrices"),
        ({"parallel": "fsdp", "sample_prompts": ("A",)}, {}, "leave sample_prompts out"),
        ({"parallel": "fsdp"}, {"lora": True}, "train them with parallel=ddp"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(as_one_of_one, tmp_path, changes, model, message):
    tiny = new_model()
    if model:
        add_lora(tiny, 1, 2)
    with joined(settings(**changes)) as world, pytest.raises(ConfigError, match=message):
        trainer.train(tiny, TOKENS, settings(**changes), run_dir=tmp_path / "run", world=world)
    assert not (tmp_path / "run").exists()


def test_processes_that_torchrun_did_not_start_are_refused_with_the_command():
    with (
        pytest.raises(ConfigError, match="torchrun --nproc-per-node N -m gptrs train"),
        joined(settings(parallel="ddp")),
    ):
        pass


def test_several_processes_that_each_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match="each would train and write the same run"),
        joined(settings(parallel="none")),
    ):
        pass


def test_several_processes_need_a_folder_that_all_know(monkeypatch, run, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "text.txt").write_text("Some text.")
    code, _, err = run("train", tmp_path / "text.txt")
    assert (code, err) == (
        2,
        "gptrs: several processes train one run: name its folder with --out\n",
    )

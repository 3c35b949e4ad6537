"""A tiny model that several processes train: how they are started, and what each of them does."""

import contextlib
import io
import json
import multiprocessing
import os
import socket
import sys
import traceback
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist

from gptrs import cli
from gptrs.config import GPTConfig
from gptrs.model.gpt import GPTModel
from gptrs.training import trainer
from gptrs.training.config import TrainingConfig
from gptrs.weights.checkpoint import load_checkpoint

needs_gloo = pytest.mark.skipif(
    not (sys.platform == "linux" and dist.is_available() and dist.is_gloo_available()),
    reason="needs gloo",
)

V, T, STEPS = 32, 8, 8
TOKENS = (np.arange(3000) * 7 % 29 + np.arange(3000) // 1000).astype(np.uint16)


def new_model(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": V, "context_length": T, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
    return GPTModel(GPTConfig(**shape | {"drop_rate": 0.0} | changes))


def settings(**changes):
    # Five windows are three for one process and two for another, one at a time.
    quick = {"steps": STEPS, "batch_tokens": 5 * T, "micro_batch": 1, "warmup_steps": 2}
    kind = {"num_evaluations": 2, "device": "cpu", "dtype": "float32", "learning_rate": 1e-2}
    return TrainingConfig(**quick | kind | changes)


class Outcome(NamedTuple):
    """Of one process."""

    losses: list
    val_losses: list
    reason: str
    message: str = ""


def outcome(result):
    val_losses = [evaluation.val_loss for evaluation in result.evaluations]
    return Outcome(result.step_losses, val_losses, result.reason)


def learn(run_dir, changes, resume=False):
    config, model = settings(**changes), new_model()
    return outcome(trainer.train(model, TOKENS, config, run_dir=run_dir, resume=resume))


def learn_by_command(run_dir, arguments):
    """`gptrs train`, as torchrun calls it; with what it printed."""
    printed, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(wrong):
        code = cli.main(["train", *map(str, arguments), "--out", str(run_dir)])
    assert code == 0, wrong.getvalue()
    dist.barrier()  # The first process has written all of it.
    return *course(run_dir), printed.getvalue()


def course(run_dir):
    """A run's losses, and its validation losses."""
    lines = told(run_dir)
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    return losses, [line["val_loss"] for line in lines if line["event"] == "evaluation"]


def told(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def in_process(rank, size, port, results, calls):
    """Makes the calls, one after the other, as a process that torchrun started."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        # A group of the caller's: `train` makes and ends none of its own.
        dist.init_process_group("gloo")
        results.put((rank, [function(*arguments) for function, *arguments in calls]))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc()))
        raise


def together(size, calls):
    """What `size` processes return from the same calls: [process][call]."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gptrs.training.trainer"])
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=in_process, args=(rank, size, port, results, calls), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = {}
    for _ in processes:
        rank, outcomes = results.get(timeout=120)
        assert not isinstance(outcomes, str), f"process {rank}: {outcomes}"
        found[rank] = outcomes
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return [found[rank] for rank in range(size)]


def weights(run_dir, step=STEPS):
    model, _ = load_checkpoint(run_dir / "checkpoints" / f"step-{step:08d}")
    return model.state_dict()


def assert_same_course(found, expected, **tolerance):
    close = {"rtol": 1e-4} | tolerance
    val_losses = [evaluation.val_loss for evaluation in expected.evaluations]
    np.testing.assert_allclose(found.losses, expected.step_losses, **close)
    np.testing.assert_allclose(found.val_losses, val_losses, **close)

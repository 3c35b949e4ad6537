"""Checkpoints that processes write together, each its rows: who has what, and who can read it."""

import errno
import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import (
    STEPS,
    TOKENS,
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
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from gptrs import cli
from gptrs.errors import CheckpointError
from gptrs.training import job, shared_checkpoint, trainer
from gptrs.training.checkpoint import checkpoints, newest_run, read_run, step_of
from gptrs.training.tensor_rows import Rows, SavedTensors, save_rows, share_name

EACH_STEP = {"checkpoint_minutes": 1e-9, "keep_last": STEPS, "parallel": "fsdp"}
COMMAND = ["--tokenizer", "char", "--steps", STEPS, "--device", "cpu", "--dtype", "float32",
           "--context-length", 8, "--emb-dim", 16, "--n-heads", 2, "--n-layers", 2,
           "--drop-rate", 0, "--set", "tie_embeddings=true", "--set", "num_evaluations=2",
           "--set", "batch_tokens=64", "--set", "warmup_steps=2"]  # fmt: skip


# --- Files ---


def saved_rows(folder, tensors, world_size):
    """Files of so many processes, cut as torch.chunk cuts."""
    folder.mkdir()
    for rank in range(world_size):
        rows = {}
        for name, tensor in tensors.items():
            if tensor.ndim == 0:
                rows[name] = Rows(tensor if rank == 0 else torch.empty(0))
                continue
            each = -(-len(tensor) // world_size)
            start = min(rank * each, len(tensor))
            rows[name] = Rows(tensor[start : start + each], start)
        save_rows(rows, folder / share_name("training", rank, world_size))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_what_torch_reads_and_what_was_whole(tmp_path, seed):
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    shapes = [
        draw.integers(1, 9, size=draw.integers(0, 4)).tolist() for _ in range(draw.integers(1, 9))
    ]
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.uint8]
    tensors = {
        f"{number}.weight": (100 * torch.rand(shape)).to(dtypes[draw.integers(4)])
        for number, shape in enumerate(shapes)
    }
    files = saved_rows(tmp_path / "rows", tensors, int(draw.integers(1, 6)))

    ours = SavedTensors(files)
    assert set(ours) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(ours[name], tensor)
        assert ours.shape(name) == tensor.shape
        if tensor.ndim:
            start, stop = sorted(draw.integers(0, len(tensor) + 1, size=2).tolist())
            assert torch.equal(ours.rows(name, start, stop - start), tensor[start:stop])

    theirs = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That there is one process.
        dcp.load(theirs, storage_reader=HuggingFaceStorageReader(tmp_path / "rows"), no_dist=True)
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)


@pytest.mark.parametrize("lost", range(3))
def test_rows_that_are_missing_are_noticed(tmp_path, lost):
    # Behind the last rows nothing says that there were more: state.json lists the files.
    files = saved_rows(tmp_path / "rows", {"a": torch.rand(4), "b": torch.rand(6)}, 3)
    del files[lost]
    if lost < 2:
        with pytest.raises(CheckpointError, match=r"rows of [ab] are missing"):
            SavedTensors(files)
    else:
        assert SavedTensors(files).shape("b") == (4,)


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "training-00001-of-00001.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"training-00001-of-00001.*cannot be read"):
        SavedTensors([*tmp_path.iterdir()])


# --- Runs ---


def learn_without_room(run_dir, changes, wrong):
    """One process has no room on its disk, or another trouble, when it writes these checkpoints."""
    real, calls = shared_checkpoint.save_rows, []

    def save(rows, file):
        if file.name.startswith("weights-"):
            calls.append(1)
        if len(calls) in wrong and os.environ["RANK"] == "1":
            full = OSError(errno.ENOSPC, "No space left on device")
            raise full if len(calls) == wrong[0] else RuntimeError("something else")
        return real(rows, file)

    shared_checkpoint.save_rows = save
    try:
        return learn(run_dir, changes)
    finally:
        shared_checkpoint.save_rows = real


def learn_by_shared_weights(run_dir, arguments):
    """Only the first process may make a model with numbers."""
    real = job._model

    def made(*given):
        assert os.environ["RANK"] == "0"
        return real(*given)

    job._model = made
    try:
        return learn_by_command(run_dir, arguments)
    finally:
        job._model = real


def go_on_without_a_whole_model(run_dir, more):
    """A copy of the run `command`; no process may make a model with numbers."""
    if os.environ["RANK"] == "0":
        shutil.copytree(run_dir.with_name("command"), run_dir)
    dist.barrier()
    real, job._model = job._model, None
    try:
        assert cli.main(["train", "--resume", str(run_dir), *map(str, more)]) == 0
    finally:
        job._model = real
    dist.barrier()
    return course(run_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def command(folder):
    """Arguments of `gptrs train`."""
    (folder / "text.txt").write_text("".join(f"{n} sheep jump over the gate. " for n in range(99)))
    return [folder / "text.txt", *COMMAND]


@pytest.fixture(scope="module")
def three(folder, command):
    """What three processes did, who have six rows of 16, six and four."""
    shards = [*command, "--set", "parallel=fsdp"]
    calls = {
        "each step": (learn, folder / "each step", EACH_STEP),
        "no room": (learn_without_room, folder / "no room", EACH_STEP, (3, 4)),
        "command": (learn_by_shared_weights, folder / "command", shards),
        "more": (go_on_without_a_whole_model, folder / "more", ["--steps", 2 * STEPS]),
    }
    every = together(3, list(calls.values()))
    return {name: [each[k] for each in every] for k, name in enumerate(calls)}


def moments(path):
    saved = read_run(path)
    return {name: saved.tensors[name] for name in saved.tensors if "exp_avg" in name}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    config = settings(**EACH_STEP | {"parallel": "none"})
    result = trainer.train(new_model(), TOKENS, config, run_dir=run_dir)
    return result, run_dir


@needs_gloo
def test_each_process_writes_its_rows_and_the_weights_are_one_file(three, folder, alone):
    path = checkpoints(folder / "each step")[-1]
    names = sorted(file.name for file in path.iterdir())
    assert names[1].startswith("model-")
    names.pop(1)
    rows = [f"training-0000{rank}-of-00003.safetensors" for rank in (1, 2, 3)]
    assert names == ["config.json", "state.json", *rows]
    of_one = read_run(checkpoints(alone[1])[-1]).tensors
    sizes = [file.stat().st_size for file in sorted(path.glob("training-*"))]
    whole = sum(of_one[name].nbytes for name in of_one if "exp_avg" in name)
    # The states of random numbers are in the first.
    assert max(sizes[1:]) < 0.6 * whole
    theirs = weights(alone[1])
    for key, tensor in weights(folder / "each step").items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-4)


@needs_gloo
@pytest.mark.parametrize("step", [1, STEPS])
def test_moments_in_rows_are_those_of_one_process_and_torch_reads_them(three, folder, alone, step):
    name = f"checkpoints/step-{step:08d}"
    expected, found = moments(alone[1] / name), moments(folder / "each step" / name)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5)
    theirs = {key: torch.zeros_like(tensor) for key, tensor in found.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = HuggingFaceStorageReader(folder / "each step" / name)
        dcp.load(theirs, storage_reader=reader, no_dist=True)
    for key, tensor in found.items():
        assert torch.equal(theirs[key], tensor)


@needs_gloo
def test_a_process_without_room_costs_a_checkpoint_and_nothing_else(three, folder):
    run_dir = folder / "no room"
    assert three["no room"][0].losses == three["each step"][0].losses
    steps = [step_of(path) for path in checkpoints(run_dir)]
    assert steps == [step for step in range(1, STEPS + 1) if step not in (3, 4)]
    assert not [path for path in (run_dir / "checkpoints").iterdir() if path.name[0] == "."]


@needs_gloo
def test_damaged_rows_lead_back_to_the_checkpoint_before(three, folder, alone, tmp_path, capsys):
    run_dir = shutil.copytree(folder / "each step", tmp_path / "run")
    path = checkpoints(run_dir)[-1]
    shares = sorted(path.glob("training-*"))
    content = bytearray(shares[1].read_bytes())
    content[-1] ^= 1
    shares[1].write_bytes(content)
    saved = newest_run(run_dir, print)
    assert saved.step == STEPS - 1
    assert f"{shares[1]}: damaged" in capsys.readouterr().out
    # One process goes on from what three have written.
    config = settings(**EACH_STEP | {"parallel": "none"})
    result = trainer.train(new_model(), TOKENS, config, run_dir=run_dir, resume=True)
    assert_same_course(outcome(result), alone[0])


@needs_gloo
def test_rows_that_are_gone_are_damage(three, folder, tmp_path):
    run_dir = shutil.copytree(folder / "each step", tmp_path / "run")
    next(checkpoints(run_dir)[-1].glob("training-00002*")).unlink()
    assert newest_run(run_dir, print).step == STEPS - 1


@needs_gloo
def test_the_first_process_alone_makes_a_model_which_the_others_share(three, command, tmp_path):
    alone = [*map(str, command), "--out", str(tmp_path / "alone")]
    assert cli.main(["train", *alone]) == 0
    losses, val_losses = course(tmp_path / "alone")
    for found in three["command"]:
        np.testing.assert_allclose(found[0], losses, rtol=1e-4)
        np.testing.assert_allclose(found[1], val_losses, rtol=1e-4)


@needs_gloo
def test_a_run_goes_on_while_nobody_has_the_whole_model(three, folder, tmp_path):
    losses, _ = three["more"][0]
    assert losses[:STEPS] == three["command"][0][0]
    # One process goes on from the same checkpoint.
    run_dir = shutil.copytree(folder / "command", tmp_path / "run")
    more = ["--steps", str(2 * STEPS), "--set", "parallel=auto"]
    assert cli.main(["train", "--resume", str(run_dir), *more]) == 0
    np.testing.assert_allclose(losses, course(run_dir)[0], rtol=1e-4)


@needs_gloo
def test_what_is_told_of_checkpoints_is_told_once(three, folder):
    events = [line for line in told(folder / "each step") if line["event"] == "checkpoint"]
    assert [event["step"] for event in events] == [*range(1, STEPS + 1)]
    state = json.loads((checkpoints(folder / "each step")[0] / "state.json").read_text())
    assert len([name for name in state["files"] if name.startswith("training-")]) == 3

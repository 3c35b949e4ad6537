"""The checkpoints of a run: folders that are whole or not there, and the newest that is good.

    RUN/checkpoints/step-00000120/
        config.json, model-<digest>.safetensors, tokenizer.json    what `from_pretrained` reads
        lora.json, lora-<digest>.safetensors                       in their place: adapters alone
        training.safetensors                                       optimizer, random numbers
        training-00001-of-00002.safetensors, ...                   in its place: of shards
        state.json                                                 all else, each file's digest

A folder is written under another name, file by file to the disk, and renamed once it is whole. What
is read is compared with the digests first: a damaged checkpoint is passed over for the one before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gptrs.errors import CheckpointError
from gptrs.files import digest, digest_in_name, sync_names, write_whole, write_whole_with
from gptrs.tensor_file import save_tensors
from gptrs.training.tensor_rows import SavedTensors

FOLDER = "checkpoints"
STATE_FILE, TENSORS_FILE = "state.json", "training.safetensors"
FORMAT, FORMAT_VERSION = "gptrs-training", 2

_NAME = re.compile(r"step-\d{8,}")
_TENSORS = re.compile(r"training(-\d{5,}-of-\d{5,})?\.safetensors")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment, copied: the run may go on while it is written."""

    step: int
    write_model: Callable[[Path], object]
    """Writes the model's files to a folder."""
    tensors: Mapping[str, Tensor]
    """Of the optimizer, and the states of random number generators; on the CPU."""
    state: Mapping[str, Any]
    """What JSON can hold."""

    def write(self, run_dir: Path) -> Path:
        """Writes a checkpoint, and returns its folder.

        Raises:
            CheckpointError: it cannot be written; all older ones are as they were.
        """
        folder = folder_of(run_dir, self.step)
        temporary = temporary_of(folder)
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self.write_model(temporary)
            digest_of_tensors = write_whole_with(
                temporary / TENSORS_FILE, lambda path: save_tensors(self.tensors, path)
            )
            write_state(temporary, self.step, self.state, {TENSORS_FILE: digest_of_tensors})
            put_in_place(temporary, folder)
        except OSError as error:  # CheckpointError is one: the model's.
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{folder}: the checkpoint of step {self.step:,} cannot be written: {error}"
            ) from error
        return folder


class SavedRun(NamedTuple):
    """A checkpoint that is good."""

    path: Path
    step: int
    state: dict[str, Any]
    tensors: SavedTensors
    """Not read yet."""


class _NewerFormatError(CheckpointError):
    """Not damage: what lies before it is not what is wanted."""


def folder_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run_dir / FOLDER / f"step-{step:08d}"


def temporary_of(folder: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return folder.with_name(f"{_TEMPORARY}{folder.name}-{os.getpid()}")


def write_state(
    folder: Path, step: int, state: Mapping[str, Any], known: Mapping[str, str]
) -> None:
    """Writes `state.json`, the last file of a checkpoint.

    Args:
        known: digests of files that are there; those of others are computed.
    """
    # A network's disk may be late to list what another machine wrote.
    names = sorted({*known, *(path.name for path in folder.iterdir())})
    files = {
        name: known.get(name) or digest_in_name(folder / name) or digest(folder / name)
        for name in names
    }
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        **state,
        "files": files,
    }
    content["sum"] = _sum_of(content)
    write_whole(folder / STATE_FILE, (json.dumps(content, indent=1) + "\n").encode())


def put_in_place(temporary: Path, folder: Path) -> None:
    """Renames a folder that is whole; an older one of its name goes first."""
    if folder.exists():
        _remove(folder)
    sync_names(temporary)
    os.replace(temporary, folder)
    sync_names(folder.parent)


def prune(run_dir: Path, *, keep_last: int, best: int | None) -> None:
    """Removes all checkpoints but the newest `keep_last` and that of the step `best`.

    What is in the way of that is no harm: the next time it is tried again.
    """
    for path in checkpoints(run_dir)[:-keep_last]:
        if step_of(path) != best:
            _remove(path)


def clean(run_dir: Path) -> None:
    """Removes what killed processes left half-written."""
    folder = run_dir / FOLDER
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(_TEMPORARY):
                shutil.rmtree(path, ignore_errors=True)


def checkpoints(run_dir: Path) -> list[Path]:
    """The folders of checkpoints, the oldest first; none was looked into."""
    folder = run_dir / FOLDER
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name.removeprefix("step-"))


def newest_run(run_dir: Path, tell: Callable[[str], object]) -> SavedRun | None:
    """The newest checkpoint that is good; None if the run has not written any.

    Args:
        tell: is given a line for each that is damaged.
    Raises:
        CheckpointError: all are damaged, or one is of a newer format.
    """
    problems = []
    for path in reversed(checkpoints(run_dir)):
        try:
            saved = read_run(path)
        except _NewerFormatError:
            raise
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            tell(f"{problem}; going back to step {saved.step:,}")
        return saved
    if problems:
        raise CheckpointError(f"{run_dir}: every checkpoint is damaged: {'; '.join(problems)}")
    return None


def newest_state(run_dir: Path) -> dict[str, Any] | None:
    """The JSON of the newest checkpoint whose JSON is good; None if there is none.

    The tensors beside it are not looked at.

    Raises:
        CheckpointError: one is of a newer format.
    """
    for path in reversed(checkpoints(run_dir)):
        try:
            return _read_state(path)
        except _NewerFormatError:
            raise
        except CheckpointError:
            continue
    return None


def read_run(path: Path, *, is_good: bool = False) -> SavedRun:
    """The checkpoint in a folder; its files are compared with their sums.

    Args:
        is_good: somebody has compared them already.
    Raises:
        CheckpointError: it is damaged, or of a newer format.
    """
    state = _read_state(path)
    if not is_good:
        _compare(path, state["files"])
    tensors = SavedTensors([path / name for name in state["files"] if _TENSORS.fullmatch(name)])
    return SavedRun(path, int(state["step"]), state, tensors)


def _compare(path: Path, files: Mapping[str, str]) -> None:
    """Raises CheckpointError if a file is not what it was."""
    for name, expected in files.items():
        try:
            found = digest(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name}: damaged: cannot be read: {error}") from error
        if found != expected:
            raise CheckpointError(f"{path / name}: damaged: its content changed after it was saved")


def _read_state(path: Path) -> dict[str, Any]:
    file = path / STATE_FILE
    try:
        content = json.loads(file.read_text("utf-8"))
        is_ours = content["format"] == FORMAT
        version, expected = content["format_version"], content.pop("sum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged: {error!r}") from error
    if is_ours and version != FORMAT_VERSION:
        raise _NewerFormatError(
            f"{file}: format version {version!r}; this gptrs reads version {FORMAT_VERSION}"
        )
    if not is_ours or _sum_of(content) != expected:
        raise CheckpointError(f"{file}: damaged: its content changed after it was saved")
    state: dict[str, Any] = content
    return state


def _sum_of(content: Mapping[str, Any]) -> int:
    """Of an object's own words, however they are laid out in the file."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _remove(folder: Path) -> None:
    """Under another name first: what is half removed is no checkpoint."""
    doomed = folder.with_name(f"{_TEMPORARY}old-{folder.name}-{os.getpid()}")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.replace(folder, doomed)
    except OSError:
        return
    shutil.rmtree(doomed, ignore_errors=True)

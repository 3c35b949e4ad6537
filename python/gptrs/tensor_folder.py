"""A folder with tensors and a JSON that says what they are: written whole or not at all, no pickle.

    <stem>.json                  what the caller says, and which file of tensors is meant
    <stem>-<digest>.safetensors  the tensors, named by their content

The JSON is renamed into place last. So at every instant the folder holds one whole set, the old or
the new, and damage does not go unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gptrs.errors import CheckpointError
from gptrs.files import TEMPORARY, digest, write_by_content, write_whole
from gptrs.tensor_file import save_tensors

VERSION = 2


def write_folder(
    directory: Path, stem: str, content: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Writes `stem`.json with `content`, and the tensors; replaces an older set of that stem.

    Raises:
        CheckpointError: the folder cannot be written; what was there before still is.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = write_by_content(
            directory / f"{stem}-{{}}.safetensors",
            lambda path: save_tensors(tensors, path, {"format": "pt"}),
        )
        described = {"format": _format(stem), "version": VERSION, "tensors": file.name, **content}
        text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
        write_whole(directory / f"{stem}.json", text.encode())
        left_by_kills = f"{TEMPORARY}{stem}-", f"{TEMPORARY}{stem}.json-"
        for old in directory.iterdir():
            is_old = _is_tensors(stem, old.name) and old != file
            if is_old or old.name.startswith(left_by_kills):
                old.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error}") from error


def read_folder(directory: Path, stem: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_folder` wrote: the JSON's content, and the tensors, on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign or of a newer format.
    """
    path = directory / f"{stem}.json"
    content = _content(path)
    if content.get("format") != _format(stem):
        raise CheckpointError(f"{path}: not a file of gptrs: its format is not {_format(stem)!r}")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: has version {content.get('version')!r}; this gptrs reads version {VERSION}"
        )
    name = content.get("tensors")
    if not isinstance(name, str) or not _is_tensors(stem, name):
        raise CheckpointError(f"{path}: damaged: {name!r} is no file of tensors beside it")
    file = directory / name
    try:
        if digest(file) not in name:
            raise CheckpointError(f"{file}: damaged: its content changed after it was saved")
        return content, load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged: expected an object, found {content!r}")
    return content


def _format(stem: str) -> str:
    return f"gptrs-{stem}"


def _is_tensors(stem: str, name: str) -> bool:
    return re.fullmatch(rf"{stem}-[0-9a-f]{{16}}\.safetensors", name) is not None

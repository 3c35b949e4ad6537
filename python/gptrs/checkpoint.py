"""A model on disk: safetensors, a JSON config and the tokenizer, in one directory. Never pickle.

    config.json                  the model's config, metadata, and which weights file is meant
    model-<digest>.safetensors   the weights, under the book's names; a tied matrix once
    tokenizer.json               as Hugging Face's libraries read it; if a tokenizer was given

The weights file is named by its content, and config.json is renamed into place last. So at every
instant the directory holds one whole checkpoint, the old or the new, and damage does not go unseen.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError, TokenizerError
from gptrs.model import GPTModel
from gptrs.tokenizer import FILE_NAME, Tokenizer, own_tokenizer

if TYPE_CHECKING:
    import tiktoken

FORMAT = "gptrs-checkpoint"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
RUN_FOLDER = "checkpoint"
"""Where a run has its checkpoint."""
_WEIGHTS_FILE = re.compile(r"model-[0-9a-f]{16}\.safetensors")
_TEMPORARY = ".tmp-checkpoint-"


def save_checkpoint(
    model: GPTModel,
    directory: str | Path,
    *,
    tokenizer: "Tokenizer | tiktoken.Encoding | None" = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes `model` to `directory`, which is made if missing; replaces an older checkpoint there.

    Written whole or not at all: until the new one is complete and on the disk, the old one stays.

    Args:
        tokenizer: saved along, so that the checkpoint can be prompted with text.
        metadata: anything JSON can hold, for `load_metadata`.
    Raises:
        CheckpointError: the directory cannot be written.
        ConfigError: the tokenizer cannot be saved there, see `check_tokenizer`, or metadata is not
            JSON. Nothing was written.
    """
    directory = Path(directory)
    saved = check_tokenizer(tokenizer, model, directory)
    tensors = _tensors_to_save(model)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        weights_file = _write(
            directory, "model-{}.safetensors", lambda path: save_file(tensors, path)
        )
        if saved is not None:
            # An older checkpoint's tokenizer is replaced by the same.
            saved.save(directory)
        manifest = _Manifest(model.cfg, weights_file, saved is not None, metadata or {})
        _write(directory, CONFIG_FILE, lambda path: path.write_text(manifest.to_json(), "utf-8"))
        _remove_leftovers(directory, weights_file)
    except OSError as error:
        raise CheckpointError(f"{directory}: the checkpoint cannot be written: {error}") from error


def check_tokenizer(
    tokenizer: "Tokenizer | tiktoken.Encoding | None", model: GPTModel, directory: str | Path
) -> Tokenizer | None:
    """The tokenizer that a checkpoint of `model` in `directory` gets. Writes nothing.

    Raises:
        ConfigError: it is not ours nor tiktoken's GPT-2; or it has ids that the model does not
            know; or `directory` has another tokenizer, which other files may depend on.
    """
    if tokenizer is None:
        return None
    own, vocab_size = own_tokenizer(tokenizer), model.cfg.vocab_size
    if own.n_vocab > vocab_size:
        raise ConfigError(
            f"the model has vocab_size {vocab_size}, and the tokenizer needs {own.n_vocab}: {own!r}"
        )
    file = Path(directory) / FILE_NAME
    if not file.exists():
        return own
    try:
        there = Tokenizer.load(file)
    except TokenizerError as error:
        raise ConfigError(f"a tokenizer is saved only over the same one: {error}") from error
    if there != own:
        raise ConfigError(f"{file} has another tokenizer, {there!r}, than the model's, {own!r}")
    return own


def load_checkpoint(
    directory: str | Path, *, device: str | torch.device = "cpu"
) -> tuple[GPTModel, Tokenizer | None]:
    """The model saved in `directory`, in eval mode and its own dtype, and its tokenizer.

    Args:
        directory: a checkpoint's, or that of a run, which has its checkpoint in it.
    Raises:
        CheckpointError: there is none, or it is damaged, foreign, or of a newer format. The message
            names the file, and every tensor that is missing, unexpected, or of the wrong shape.
    """
    directory = _checkpoint_in(directory)
    manifest = _read_manifest(directory)
    weights_path = _checked_path(directory, manifest.weights_file)
    try:
        tensors = load_file(weights_path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{weights_path}: not a readable safetensors file: {error}"
        ) from error
    with torch.random.fork_rng(devices=[]):  # The first weights are drawn only to be overwritten.
        model = GPTModel(manifest.model)
    _check_tensors(tensors, _tensors_to_save(model), weights_path)
    model.to(tensors["tok_emb.weight"].dtype)
    if manifest.model.tie_embeddings:
        tensors["out_head.weight"] = tensors["tok_emb.weight"]
    model.load_state_dict(tensors)
    return model.to(device).eval(), load_tokenizer(directory)


def load_tokenizer(directory: str | Path) -> Tokenizer | None:
    """The tokenizer saved in the checkpoint, None if it was saved without. Reads no weights.

    Raises:
        CheckpointError: there is no checkpoint, or its tokenizer is damaged.
    """
    directory = _checkpoint_in(directory)
    if not _read_manifest(directory).has_tokenizer:
        return None
    try:
        return Tokenizer.load(directory)
    except TokenizerError as error:
        raise CheckpointError(f"{directory}: damaged: {error}") from error


def load_metadata(directory: str | Path) -> dict[str, Any]:
    """The metadata that the checkpoint was saved with. Reads no weights."""
    return _read_manifest(_checkpoint_in(directory)).metadata


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What config.json says."""

    model: GPTConfig
    weights_file: str
    has_tokenizer: bool
    metadata: dict[str, Any]

    def to_json(self) -> str:
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model.to_dict(),
            "weights_file": self.weights_file,
            "has_tokenizer": self.has_tokenizer,
            "metadata": self.metadata,
        }
        try:
            return json.dumps(content, indent=2) + "\n"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metadata must be JSON: {error}") from error


def _checkpoint_in(directory: str | Path) -> Path:
    """`directory`, or the checkpoint of the run that it is."""
    directory = Path(directory)
    of_run = directory / RUN_FOLDER
    is_run = (of_run / CONFIG_FILE).is_file() and not (directory / CONFIG_FILE).exists()
    return of_run if is_run else directory


def _read_manifest(directory: Path) -> _Manifest:
    path = directory / CONFIG_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{directory}: no checkpoint here: there is no {CONFIG_FILE}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a gptrs checkpoint: its format is not {FORMAT!r}")
    if (version := content.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version!r}; this gptrs reads version {FORMAT_VERSION}"
        )
    try:
        return _Manifest(
            model=GPTConfig.of(content["model"]),
            weights_file=_checked_name(content["weights_file"]),
            has_tokenizer=bool(content["has_tokenizer"]),
            metadata=dict(content["metadata"]),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: damaged: there is no {error}") from error
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def _checked_name(name: Any) -> str:
    """`name`, if `save_checkpoint` could have given it: nothing outside the directory is opened."""
    if not isinstance(name, str) or not _WEIGHTS_FILE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a weights file")
    return name


def _checked_path(directory: Path, name: str) -> Path:
    """The path of a file whose content is still what its name says."""
    path = directory / name
    try:
        digest = _digest(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if digest not in name:
        raise CheckpointError(f"{path}: damaged: its content changed after it was saved")
    return path


def _tensors_to_save(model: GPTModel) -> dict[str, Tensor]:
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.cfg.tie_embeddings:
        del tensors["out_head.weight"]
    return tensors


def _check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unexpected" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in found.keys() & expected.keys()
        if found[name].shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError(f"{path}: does not fit {CONFIG_FILE}: " + "; ".join(sorted(problems)))


def _write(directory: Path, name: str, write: Callable[[Path], object]) -> str:
    """Lets `write` fill a temporary file, then renames it to `name`; {} stands for its digest."""
    temporary = directory / f"{_TEMPORARY}{os.getpid()}"
    try:
        temporary.touch()
        usual_mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(usual_mode)  # safetensors makes its files unreadable for others.
        _sync(temporary)
        name = name.format(_digest(temporary))
        os.replace(temporary, directory / name)
        _sync(directory)
    finally:
        temporary.unlink(missing_ok=True)
    return name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sync(path: Path) -> None:
    """Waits until the file, or the directory's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no directories, and renames durably by itself.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(directory: Path, weights_file: str) -> None:
    """Deletes what earlier checkpoints and killed saves left; no file of any other name."""
    for path in directory.iterdir():
        is_old = _WEIGHTS_FILE.fullmatch(path.name) and path.name != weights_file
        if is_old or path.name.startswith(_TEMPORARY):
            path.unlink(missing_ok=True)

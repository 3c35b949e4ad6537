"""A model on disk: safetensors, a JSON config and the tokenizer, in one directory. Never pickle.

    config.json                  the model's config, metadata, and which weights file is meant
    model-<digest>.safetensors   the weights, under the book's names; a tied matrix once
    tokenizer.json               as Hugging Face's libraries read it; if a tokenizer was given

The weights file is named by its content, and config.json is renamed into place last. So at every
instant the directory holds one whole checkpoint, the old or the new, and damage does not go unseen.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError, TokenizerError
from gptrs.files import (
    TEMPORARY,
    digest,
    sync_names,
    write_by_content,
    write_whole,
    write_whole_with,
)
from gptrs.model.gpt import GPTModel
from gptrs.tensor_file import save_tensors
from gptrs.text.named_tokenizers import get_tokenizer, own_tokenizer
from gptrs.text.tokenizer import FILE_NAME, Tokenizer
from gptrs.weights.files import WeightFile, open_weights
from gptrs.weights.filled_model import filled_model, misfits
from gptrs.weights.manifest import CONFIG_FILE as CONFIG_FILE
from gptrs.weights.manifest import FORMAT as FORMAT
from gptrs.weights.manifest import RUN_FOLDER as RUN_FOLDER
from gptrs.weights.manifest import WEIGHTS_FILE, Manifest, checkpoint_in, read_manifest
from gptrs.weights.names import Recipe, Source

if TYPE_CHECKING:
    import tiktoken

WIDEST_MULTIPLE = 128
"""What vocabularies are filled up to a multiple of, at most."""
_LINK = f"{TEMPORARY}checkpoint-"
_TEMPORARIES = (_LINK, f"{TEMPORARY}model-", f"{TEMPORARY}{CONFIG_FILE}-")
"""What the names of files begin with that killed saves left."""


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
        ConfigError: the model has other layers than its config makes; the tokenizer cannot be saved
            there, see `check_tokenizer`; or metadata is not JSON. Nothing was written.
    """
    check_saveable(model)
    own = check_tokenizer(tokenizer, model, directory)
    write_checkpoint(model.cfg, tensors_of(model), Path(directory), own, metadata or {})


def check_saveable(model: GPTModel) -> None:
    """Raises ConfigError if `model` could not be loaded again as it is."""
    if not (wrong := misfits(model)):
        _refuse_a_lost_head(model)
        return
    advice = "Make its layers the book's first, as merge_lora and fold_projection do"
    if set(wrong) == {"tok_emb.weight", "out_head.weight"}:  # Somebody added tokens.
        num_ids = len(model.tok_emb.weight)
        advice = (
            f"For {num_ids} token ids, model.cfg = dataclasses.replace(model.cfg, "
            f"vocab_size={num_ids})"
        )
    raise ConfigError(
        f"the model could not be loaded again: its config does not make {', '.join(wrong[:4])}"
        f"{' ...' if len(wrong) > 4 else ''}. {advice}"
    )


def _refuse_a_lost_head(model: GPTModel) -> None:
    """Raises ConfigError where a tied matrix, which is written once, has become two."""
    head, embedding = model.out_head.weight, model.tok_emb.weight
    if not model.cfg.tie_embeddings or head is embedding or torch.equal(head, embedding):
        return
    raise ConfigError(
        "the model would lose its out_head: its config ties that to tok_emb, and they differ. "
        "model.cfg = dataclasses.replace(model.cfg, tie_embeddings=False) keeps both; "
        "model.out_head.weight = model.tok_emb.weight ties them again"
    )


def tensors_of(model: GPTModel) -> dict[str, Tensor]:
    """What a checkpoint of `model` has: its own tensors by name, a tied matrix once."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.cfg.tie_embeddings:
        del tensors["out_head.weight"]
    return tensors


def write_checkpoint(
    cfg: GPTConfig,
    tensors: Mapping[str, Tensor | Sequence[Tensor]],
    directory: Path,
    tokenizer: Tokenizer | None,
    metadata: dict[str, Any],
) -> None:
    """`save_checkpoint`, of tensors that `tensors_of` gave, with a tokenizer that was checked.

    Args:
        tensors: each whole, or its rows in parts, as `save_tensors` takes them.
    Raises:
        CheckpointError: the directory cannot be written; what was there before still is.
        ConfigError: metadata is not JSON. Nothing was written.
    """
    Manifest(cfg, "", tokenizer is not None, metadata).to_json()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        weights = write_by_content(
            directory / "model-{}.safetensors", lambda path: save_tensors(tensors, path)
        )
        _describe(
            directory, Manifest(cfg, weights.name, tokenizer is not None, metadata), tokenizer
        )
    except OSError as error:
        raise CheckpointError(f"{directory}: the checkpoint cannot be written: {error}") from error


def copy_checkpoint(source: Path, directory: Path) -> None:
    """Writes the checkpoint in `source` to `directory` too; the weights are shared if they can be.

    Raises:
        CheckpointError: there is none, or the directory cannot be written; what was there before
            still is.
    """
    manifest, tokenizer = read_manifest(source), load_tokenizer(source)
    weights = directory / manifest.weights_file
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not weights.exists():
            _link(source / manifest.weights_file, weights)
        _describe(directory, manifest, tokenizer)
    except OSError as error:
        raise CheckpointError(f"{directory}: the checkpoint cannot be written: {error}") from error


def _describe(directory: Path, manifest: Manifest, tokenizer: Tokenizer | None) -> None:
    """What follows the weights: from here on they are what the directory holds."""
    sync_names(directory)
    if tokenizer is not None:
        # An older checkpoint's tokenizer is replaced by the same.
        tokenizer.save(directory)
    write_whole(directory / CONFIG_FILE, manifest.to_json().encode())
    sync_names(directory)
    _remove_leftovers(directory, manifest.weights_file)


def _link(source: Path, target: Path) -> None:
    """A second name for a file that nobody writes to again, or a copy where the disk has none."""
    temporary = target.with_name(f"{_LINK}{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        write_whole_with(target, lambda path: shutil.copyfile(source, path))


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

    Takes little more memory than the weights.

    Args:
        directory: a checkpoint's, or that of a run, which has its checkpoint in it.
    Raises:
        CheckpointError: there is none, or it is damaged, foreign, or of a newer format. The message
            names the file, and every tensor that is missing, unexpected, of the wrong shape, or not
            finite.
    """
    cfg, file, recipe = open_checkpoint(directory)
    return filled_model(cfg, file, recipe, device=device), load_tokenizer(directory)


def open_checkpoint(directory: str | Path) -> tuple[GPTConfig, WeightFile, Recipe]:
    """The saved model's config, and its weights: unchanged since they were saved, but not read.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged, foreign, or of a newer format.
    """
    directory = checkpoint_in(directory)
    manifest = read_manifest(directory)
    file = open_weights(_checked_path(directory, manifest.weights_file))
    sources = {name: Source(name) for name in file.entries}
    if manifest.model.tie_embeddings and "tok_emb.weight" in sources:
        sources["out_head.weight"] = sources["tok_emb.weight"]
    return manifest.model, file, Recipe(sources, has_biases=True)


def usual_tokenizer(vocab_size: int) -> Tokenizer | None:
    """GPT-2's, for models whose vocabulary is its, or its filled up to a multiple of 64 or 128.

    nanoGPT and llm.c fill it up to 50,304 and save no tokenizer; the ids beyond are never trained.
    """
    gpt2 = get_tokenizer("gpt2")
    return gpt2 if gpt2.n_vocab <= vocab_size < gpt2.n_vocab + WIDEST_MULTIPLE else None


def load_tokenizer(directory: str | Path) -> Tokenizer | None:
    """The tokenizer saved in the checkpoint, None if it was saved without. Reads no weights.

    Raises:
        CheckpointError: there is no checkpoint, or its tokenizer is damaged.
    """
    directory = checkpoint_in(directory)
    if not read_manifest(directory).has_tokenizer:
        return None
    try:
        return Tokenizer.load(directory)
    except TokenizerError as error:
        raise CheckpointError(f"{directory}: damaged: {error}") from error


def load_metadata(directory: str | Path) -> dict[str, Any]:
    """The metadata that the checkpoint was saved with. Reads no weights."""
    return read_manifest(checkpoint_in(directory)).metadata


def _checked_path(directory: Path, name: str) -> Path:
    """The path of a file whose content is still what its name says."""
    path = directory / name
    try:
        found = digest(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if found not in name:
        raise CheckpointError(f"{path}: damaged: its content changed after it was saved")
    return path


def _remove_leftovers(directory: Path, weights_file: str) -> None:
    """Deletes what earlier checkpoints and killed saves left; no file of any other name."""
    for path in directory.iterdir():
        is_old = WEIGHTS_FILE.fullmatch(path.name) and path.name != weights_file
        if is_old or path.name.startswith(_TEMPORARIES):
            path.unlink(missing_ok=True)

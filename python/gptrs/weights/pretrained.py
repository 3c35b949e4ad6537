"""`GPTModel.from_pretrained`: whose weights these are, which config they have, and the model.

    path ─► own checkpoint ─────────────────────► config ─► filled model
        └─► file and config.json ─► whose names? ──┘

Reads config.json, and leaves the tensors to `files`, their names to `names` and the model to
`filled_model`. What differs is one error a stage: of the file and its config.json, of the caller's
config, and of the tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gptrs.config import PRESETS, ConfigLike, GPTConfig
from gptrs.errors import CheckpointError, MissingExtraError
from gptrs.model.gpt import GPTModel
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer import Tokenizer
from gptrs.weights.checkpoint import load_tokenizer, open_checkpoint, usual_tokenizer
from gptrs.weights.files import WeightFile, open_weights, weights_in
from gptrs.weights.filled_model import filled_model, weights_device, weights_dtype
from gptrs.weights.foreign_config import config_of_json, is_known, read_json
from gptrs.weights.manifest import CONFIG_FILE, FORMAT, RUN_FOLDER
from gptrs.weights.missing import no_such_path
from gptrs.weights.names import Recipe, recipe_for
from gptrs.weights.pretrained_config import check_fits, complete, config_of_file

if TYPE_CHECKING:
    import tiktoken

WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "model.pth",
    "ckpt.pt",
)
"""What is looked for in a folder, in this order; then for a single file of any other name."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = (CONFIG_FILE, "*.safetensors", "*.safetensors.index.json")
_HUB_NAMES = {
    "gpt2-124m": "gpt2",
    "gpt2-355m": "gpt2-medium",
    "gpt2-774m": "gpt2-large",
    "gpt2-1558m": "gpt2-xl",
}
"""What the hub calls the presets whose weights it has."""


def from_pretrained(
    path: str | os.PathLike[str],
    *,
    cfg: ConfigLike | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
) -> GPTModel:
    """What `GPTModel.from_pretrained` says."""
    if cfg is not None and not isinstance(cfg, Mapping):
        cfg = GPTConfig.of(cfg)  # A preset that is misspelt is known before anything is read.
    found, file, recipe = _open(Path(path))
    wanted = _wanted(cfg, found, file.path)
    return filled_model(wanted, file, recipe, dtype=dtype, device=device)


def _wanted(
    cfg: GPTConfig | Mapping[str, Any] | None, found: Mapping[str, Any], path: Path
) -> GPTConfig:
    """The config of the model: a mapping says only what it has, the rest is that of the weights."""
    if isinstance(cfg, GPTConfig):
        check_fits(cfg.to_dict(), found, path)
        return cfg
    check_fits(cfg or {}, found, path)
    return complete({**found, **(cfg or {})}, path)


def config_of_pretrained(path: str | os.PathLike[str]) -> GPTConfig:
    """The config of the model that `from_pretrained` would read, which reads no weights for it.

    Raises:
        CheckpointError, ConfigError: as `from_pretrained`, but for what only the weights show.
    """
    found, file, _ = _open(Path(path))
    return complete(found, file.path)


def _open(path: Path) -> tuple[dict[str, Any], WeightFile, Recipe]:
    """What is known of the config, the weights, and how their names become ours."""
    if not path.exists():
        raise CheckpointError(no_such_path(path, _hint_of_name(path)))
    if is_own_checkpoint(path):
        saved, file, recipe = open_checkpoint(path)
        return saved.to_dict(), file, recipe
    file, stated = _find(path)
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    foreign = recipe_for(shapes)
    if foreign is None:
        raise CheckpointError(
            f"{file.path}: no GPT-2's weights (wte.weight ...) and no book's (tok_emb.weight ...); "
            f"it has {', '.join(list(shapes)[:6]) or 'no tensors'}"
        )
    found = config_of_file(file, foreign, stated)
    if found["tie_embeddings"]:
        # A tied file has one matrix; the book's model, which is not tied, takes it twice.
        foreign.sources.setdefault("out_head.weight", foreign.sources["tok_emb.weight"])
    return found, file, foreign


def _hint_of_name(path: Path) -> str:
    """What may be meant by a path that does not exist, and could be a model's name."""
    name = str(path)
    if name in PRESETS and name not in _HUB_NAMES:
        return f"{name} is a preset, a config without weights: GPTModel({name!r}) draws them"
    is_in_folder = len(path.parts) > 1 and path.parent.is_dir()
    if is_in_folder or not _HUB_NAME.fullmatch(name):
        return ""
    hub_name = _HUB_NAMES.get(name, name)
    return f"gptrs.from_hub({hub_name!r}) fetches a model from the Hugging Face hub"


def from_hub(
    name: str,
    *,
    revision: str | None = None,
    cfg: ConfigLike | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
) -> GPTModel:
    """A GPT-2 of the Hugging Face hub, such as "openai-community/gpt2", kept in the hub's cache.

    Args:
        name: the repository, or a preset, "gpt2-124m" to "gpt2-1558m". It must have safetensors.
        revision: a branch, tag or commit; default: the main branch.
        cfg, dtype, device: as for `GPTModel.from_pretrained`.
    Raises:
        ConfigError: cfg does not fit, or weights cannot have this dtype or be on this device.
        MissingExtraError: huggingface_hub is not installed.
        CheckpointError: the hub cannot be reached and its cache does not have the model, or there
            is no such model, or it is not a GPT-2.
    """
    weights_dtype(dtype), weights_device(device)  # Before gigabytes are fetched.
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError(
            f"from_hub({name!r}) needs huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        folder = snapshot_download(
            _HUB_NAMES.get(name, name), revision=revision, allow_patterns=list(_HUB_FILES)
        )
    except Exception as error:  # The HTTP client's errors are among them, whichever it has.
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{name!r} cannot be fetched from the Hugging Face hub, and its cache does not have "
            f"it: {type(error).__name__}: {reason}"
        ) from error
    return from_pretrained(folder, cfg=cfg, dtype=dtype, device=device)


def tokenizer_beside(path: Path) -> Tokenizer | tiktoken.Encoding | None:
    """The tokenizer that was saved with a model; None if there is none.

    Raises:
        CheckpointError: the checkpoint's is damaged.
        TokenizerError: another folder's is not supported.
    """
    if is_own_checkpoint(path):
        return load_tokenizer(path)
    folder = path if path.is_dir() else path.parent
    names = ("tokenizer.json", "vocab.json")
    return get_tokenizer(folder) if any((folder / name).is_file() for name in names) else None


def with_tokenizer(
    path: Path, device: str | torch.device = "cpu"
) -> tuple[GPTModel, Tokenizer | tiktoken.Encoding]:
    """The model in `path`, and the tokenizer beside it, or GPT-2's where its vocabulary fits.

    Raises:
        CheckpointError: as `from_pretrained`, or there is no tokenizer.
    """
    model, tokenizer = from_pretrained(path, device=device), tokenizer_beside(path)
    if tokenizer is None and not is_own_checkpoint(path):
        tokenizer = usual_tokenizer(model.cfg.vocab_size)
    if tokenizer is None:
        raise CheckpointError(f"{path}: was saved without a tokenizer, so it takes no text")
    return model, tokenizer


def is_own_checkpoint(path: Path) -> bool:
    """A checkpoint's folder, or that of a run, which has its checkpoint in it."""
    if (path / CONFIG_FILE).exists():
        return bool(read_json(path / CONFIG_FILE).get("format") == FORMAT)
    return (path / RUN_FOLDER / CONFIG_FILE).exists()


def _find(path: Path) -> tuple[WeightFile, dict[str, Any]]:
    """The weights, and what a config.json beside them says."""
    folder = path if path.is_dir() else path.parent
    config = folder / CONFIG_FILE
    content = read_json(config) if config.exists() else {}
    # What lies beside a file may have nothing to do with it; a folder is one model.
    is_meant = config.exists() and (path.is_dir() or is_known(content))
    stated = config_of_json(content, config) if is_meant else {}
    return open_weights(_weights_of(path) if path.is_dir() else path), stated


def _weights_of(folder: Path) -> Path:
    """The file with the weights of the model in `folder`."""
    for name in WEIGHTS_FILES:
        if (folder / name).exists():
            return folder / name
    found = weights_in(folder)
    if len(found) == 1:
        return found[0]
    usual = " or ".join(WEIGHTS_FILES)
    if found:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(
            f"{folder}: there is no {usual}, and several other files of weights: {names}. "
            "Name the one that is meant"
        )
    raise CheckpointError(f"{folder}: no weights here: there is no {usual}")

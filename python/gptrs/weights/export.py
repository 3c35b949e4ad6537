"""`GPTModel.save_pretrained`: a folder for gptrs, Hugging Face's libraries or the book's code.

    gptrs   a checkpoint, see `checkpoint`
    hf      config.json, generation_config.json, model.safetensors, tokenizer files: what
            transformers' GPT2LMHeadModel, its tokenizers and its pipelines open
    book    model.pth, a state_dict that the book's GPTModel loads strictly, and its config.json

All is written under other names first. Then an older config.json is deleted, and the new one comes
last: whatever happens, a folder with a config.json is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import save_file

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError
from gptrs.files import write_whole, write_whole_with
from gptrs.model.gpt import GPTModel
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer import END_OF_TEXT, Tokenizer
from gptrs.text.tokenizer import FILE_NAME as TOKENIZER_FILE
from gptrs.text.tokenizer_files import gpt2_files
from gptrs.weights.checkpoint import (
    check_saveable,
    check_tokenizer,
    save_checkpoint,
    usual_tokenizer,
)
from gptrs.weights.manifest import CONFIG_FILE, FORMAT
from gptrs.weights.names import to_gpt2

if TYPE_CHECKING:
    import tiktoken

Format = Literal["gptrs", "hf", "book"]

_PIPELINE_TOKENS = 256
"""How many new tokens transformers' text-generation pipeline makes where nothing is said."""


def save_pretrained(
    model: GPTModel,
    directory: str | os.PathLike[str],
    *,
    format: Format = "gptrs",  # noqa: A002
    tokenizer: Tokenizer | tiktoken.Encoding | None = None,
) -> None:
    """What `GPTModel.save_pretrained` says."""
    directory = Path(directory)
    if format not in get_args(Format):
        raise ConfigError(f'format is {format!r}; it must be "gptrs", "hf" or "book"')
    if format == "gptrs":
        save_checkpoint(model, directory, tokenizer=tokenizer)
        return
    if model.cfg.pos != "learned":
        raise ConfigError(
            f'pos is "{model.cfg.pos}", and format="{format}" has learned positions only; '
            'format="gptrs" has every kind'
        )
    _check_folder(directory, format)
    if format == "hf" and tokenizer is None:
        tokenizer = usual_tokenizer(model.cfg.vocab_size)
    own = check_tokenizer(tokenizer, model, directory)
    files = _hf_files(model, own) if format == "hf" else _book_files(model, own)
    check_saveable(model)
    try:
        _write_folder(directory, files)
    except OSError as error:
        raise CheckpointError(f"{directory}: the model cannot be written: {error}") from error


_Files = dict[str, bytes | Callable[[Path], object]]
"""What to write under a name, or who writes it."""


def _hf_files(model: GPTModel, tokenizer: Tokenizer | None) -> _Files:
    try:
        tensors = to_gpt2({name: t.detach() for name, t in model.state_dict().items()})
    except KeyError as error:
        raise ConfigError(
            f"the model cannot be saved for transformers: GPT-2 and it differ in {error}"
        ) from error
    if model.cfg.tie_embeddings:
        del tensors["lm_head.weight"]
    elif model.out_head.weight is model.tok_emb.weight:  # safetensors writes no memory twice.
        tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    end = None if tokenizer is None else tokenizer.eot_token
    ids = {"bos_token_id": end, "eos_token_id": end}
    files: _Files = {
        # transformers looks for where the tensors came from.
        "model.safetensors": lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        "generation_config.json": _json(_generation_config(model.cfg) | ids),
        CONFIG_FILE: _json(_hf_config(model) | ids),
    }
    return files if tokenizer is None else _tokenizer_files(tokenizer, model.cfg) | files


def _generation_config(cfg: GPTConfig) -> dict[str, Any]:
    """Greedy, and within the context.

    Where nothing is said, transformers' pipeline makes 256 tokens, and fails behind the end of a
    short context. A long one is left to that: filling it would take minutes.
    """
    is_short = cfg.context_length < 2 * _PIPELINE_TOKENS
    return {"do_sample": False} | ({"max_length": cfg.context_length} if is_short else {})


def _tokenizer_files(tokenizer: Tokenizer, cfg: GPTConfig) -> _Files:
    is_gpt2 = tokenizer is get_tokenizer("gpt2")
    config: dict[str, Any] = {
        # The other reads a tokenizer.json as it is, whatever its tokens.
        "tokenizer_class": "GPT2Tokenizer" if is_gpt2 else "PreTrainedTokenizerFast",
        "model_max_length": cfg.context_length,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.eot_token is not None:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    content = tokenizer.to_json()
    return {
        TOKENIZER_FILE: content.encode(),
        **gpt2_files(content),
        "tokenizer_config.json": _json(config),
    }


def _hf_config(model: GPTModel) -> dict[str, Any]:
    cfg = model.cfg
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": cfg.vocab_size,
        "n_positions": cfg.context_length,
        "n_embd": cfg.emb_dim,
        "n_head": cfg.n_heads,
        "n_layer": cfg.n_layers,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.final_norm.eps,
        "embd_pdrop": cfg.drop_rate,
        "attn_pdrop": cfg.drop_rate,
        "resid_pdrop": cfg.drop_rate,
        "tie_word_embeddings": cfg.tie_embeddings,
        "dtype": str(model.tok_emb.weight.dtype).removeprefix("torch."),
    }


def _book_files(model: GPTModel, tokenizer: Tokenizer | None) -> _Files:
    length = model.cfg.context_length
    # One for all layers: torch.save writes shared memory once.
    mask = torch.triu(torch.ones(length, length), diagonal=1)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    masks = {f"trf_blocks.{index}.att.mask": mask for index in range(model.cfg.n_layers)}
    files: _Files = {
        "model.pth": lambda path: _save_tensors(tensors | masks, path),
        CONFIG_FILE: _json(model.cfg.to_dict()),
    }
    if tokenizer is not None:
        files[TOKENIZER_FILE] = tokenizer.to_json().encode()
    return files


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:  # Given a path, torch.save writes its name into the file.
        torch.save(tensors, file)


def _check_folder(directory: Path, wanted: Format) -> None:
    """A folder holds one model in one format."""
    try:
        content = json.loads((directory / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return
    is_hf, is_book = "model_type" in content, "emb_dim" in content
    if not (is_hf if wanted == "hf" else is_book):
        raise ConfigError(
            f"{directory} has a model in another format than {wanted!r}"
            f"{', a gptrs checkpoint' if content.get('format') == FORMAT else ''}: choose another"
        )


def _write_folder(directory: Path, files: _Files) -> None:
    """All files elsewhere first: until the new model is complete, the old one stays."""
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".tmp-save-", dir=directory) as temporary:
        for name, content in files.items():
            file = Path(temporary, name)
            if isinstance(content, bytes):
                write_whole(file, content)
            else:
                write_whole_with(file, content)
        (directory / CONFIG_FILE).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == CONFIG_FILE):
            Path(temporary, name).replace(directory / name)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()

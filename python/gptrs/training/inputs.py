"""What `gptrs train` is given, as what `gptrs.train` takes: data, tokenizer, model.

text files, folders     ─► tokenizer ─► an array of ids
a store, or both parts of one (`train`, `val`); nanoGPT's, llm.c's, Megatron's .bin ─► a store
JSON with instructions  ─► entries

preset, config, "auto"  ─► a new model         --init PATH ─► one that has learned already
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gptrs.config import PRESETS, GPTConfig, get_config
from gptrs.errors import ConfigError, SourceError, StoreError, TokenizerError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import add_lora
from gptrs.store.token_store import FOLDER_FORMAT, TokenStore
from gptrs.text import corpus
from gptrs.text.named_tokenizers import get_tokenizer, own_tokenizer
from gptrs.text.reading import find_text_files, refuse_pipes
from gptrs.text.tokenizer import Tokenizer
from gptrs.text.tokenizer_training import train_tokenizer
from gptrs.training.config import SMALL_GPT, TrainingConfig
from gptrs.training.data import Tokens
from gptrs.training.instructions.template import (
    Entry,
    format_prompt,
    read_instructions,
    refuse_other_json,
)
from gptrs.training.model_choice import choose_model_here, choose_vocab_size
from gptrs.training.parts import vocabulary
from gptrs.weights.pretrained import config_of_pretrained, tokenizer_beside

CHAR = "char"
"""As a tokenizer: the text's characters, sorted."""
AUTO = "auto"
"""As a tokenizer: one learned from the text; as a model: one of a fitting size."""
_LOOKED_AT_TOKENS, _FEWEST_LOOKED_AT = 1 << 20, 1 << 12
"""Of a file that names no tokenizer: so many show which ids there are. Text in GPT-2's tokens has
one of the upper half of its ids every few hundred."""
_BIN_SUFFIXES = (".bin", ".idx")
_JSON_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenInputs:
    """Tokens to train on."""

    data: Tokens | TokenStore
    validation: Tokens | TokenStore | None
    """None: a part of `data` is to be held out."""
    tokenizer: Any
    """None: a store's own is not here."""
    vocabulary_reason: str | None = None
    """Why the tokenizer is this one, or has as many ids, where that was chosen here; or why there
    is none."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        if isinstance(self.data, TokenStore):
            return self.data.n_vocab
        return int(self.tokenizer.n_vocab)

    @property
    def vocabulary(self) -> str | None:
        """What tells the tokenizer from every other, also one that is not here."""
        if self.tokenizer is None and isinstance(self.data, TokenStore):
            return self.data.manifest["tokenizer"]["fingerprint"] or None
        return vocabulary(self.tokenizer)

    @property
    def num_tokens(self) -> int:
        """How many tokens there are, held-out ones included."""
        return len(self.data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instructions:
    """Instructions to learn to follow."""

    entries: list[Entry]
    validation: list[Entry] | None
    """None: some of `entries` are to be held out."""
    tokenizer: Any

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer has."""
        return int(self.tokenizer.n_vocab)

    @property
    def vocabulary(self) -> str | None:
        """What tells the tokenizer from every other."""
        return vocabulary(self.tokenizer)

    @property
    def num_tokens(self) -> int:
        """How many tokens prompts and responses have."""
        texts = [f"{format_prompt(entry)}{entry['output']}" for entry in self.entries]
        return sum(len(self.tokenizer.encode_ordinary(text)) for text in texts)


def read_inputs(
    data: Sequence[Path],
    validation: Path | None,
    spec: str | Tokenizer | None,
    beside: Any = None,
) -> TokenInputs | Instructions:
    """Opens or reads the data, and finds the tokenizer that goes with it.

    Args:
        spec: `--tokenizer`, or a tokenizer; None: a store's own, or `beside`, or GPT-2's.
        beside: the tokenizer of the model that is trained on.
    Raises:
        SourceError: a file is missing, unreadable or not UTF-8, or a pipe that is to be read twice.
        StoreError, TokenizerError, DataError: a store, tokenizer or JSON file is not good.
        ConfigError: these inputs do not go together, or another tokenizer made a store.
    """
    paths = list(data)
    if any(_is_store(path) for path in paths):
        return _read_stores(paths, validation, spec, beside)
    if any(map(_is_json, paths)):
        return _read_instructions(paths, validation, spec or beside or "gpt2")
    files = find_text_files(paths)
    others = _validation_files(validation)
    spec, reason = spec or beside or "gpt2", None
    if spec in (CHAR, AUTO):
        learned_from = files if spec == AUTO else [*files, *others]
        refuse_pipes(learned_from, f"--tokenizer {spec} reads the text twice")
    if spec == AUTO:
        spec, reason = _tokenizer_of_its_own(files)
    tokenizer = _tokenizer(spec, [*files, *others])
    return TokenInputs(
        data=corpus.tokenize_files(files, tokenizer),
        validation=corpus.tokenize_files(others, tokenizer) if others else None,
        tokenizer=tokenizer,
        vocabulary_reason=reason,
    )


def _read_instructions(
    paths: list[Path], validation: Path | None, spec: str | Tokenizer
) -> Instructions:
    files = paths if validation is None else [*paths, validation]
    if others := [path for path in files if not _is_json(path)]:
        raise ConfigError(
            "instructions, in JSON, are trained and validated on without other texts: found "
            f"{others[0]} beside {next(filter(_is_json, files))}"
        )
    for path in files:
        refuse_other_json(path)
    return Instructions(
        entries=[entry for path in paths for entry in read_instructions(path)],
        validation=None if validation is None else read_instructions(validation),
        tokenizer=_tokenizer(spec, []),
    )


def _validation_files(path: Path | None) -> list[Path]:
    """The files of text to validate on."""
    if path is None:
        return []
    if _is_json(path):
        raise ConfigError(f"{path} is JSON: tokens and texts are validated on tokens or texts")
    return find_text_files([path])


def _read_stores(
    paths: list[Path], validation: Path | None, spec: str | Tokenizer | None, beside: Any
) -> TokenInputs:
    if len(paths) > 1:
        raise ConfigError(
            f"a store is trained on alone, found {len(paths)} inputs; `gptrs merge` joins stores"
        )
    if spec in (CHAR, AUTO):
        raise ConfigError(f"the tokens of a store are ready: --tokenizer {spec} is for text")
    (path,) = paths
    if (path / "train" / "manifest.json").is_file():
        validation = validation or path / "val"
        path = path / "train"
    store = _opened(path, spec, beside)
    if validation is None or _is_store(validation):
        held_out = None if validation is None else _opened(validation, spec, beside)
        if held_out is not None and held_out.manifest["tokenizer"] != store.manifest["tokenizer"]:
            names = [each.manifest["tokenizer"]["name"] for each in (store, held_out)]
            raise ConfigError(
                f"{path} and {validation} have other tokenizers: {' and '.join(names)}"
            )
        tokens: Tokens | TokenStore | None = held_out
    else:
        tokens = corpus.tokenize_files(_validation_files(validation), store.tokenizer)
    tokenizer, missing = _tokenizer_of(store, beside)
    reasons = (_taken_for(store) if spec is None else None, missing)
    return TokenInputs(
        data=store,
        validation=tokens,
        tokenizer=tokenizer,
        vocabulary_reason="\n".join(filter(None, reasons)) or None,
    )


def _taken_for(store: TokenStore) -> str | None:
    """What a file that names no tokenizer is taken for, and whether its ids look otherwise."""
    if store.format == FOLDER_FORMAT:
        return None
    name = store.manifest["tokenizer"]["name"]
    name = "GPT-2" if name == "gpt2" else name
    text = f"{store.path.name} names no tokenizer: taken for {name}'s, with {store.n_vocab:,} ids"
    seen = store[:_LOOKED_AT_TOKENS]
    largest = int(seen.max()) if len(seen) else 0
    if len(seen) < _FEWEST_LOOKED_AT or largest >= store.n_vocab // 2:
        return text
    return (
        f"{text}; but of its first {len(seen):,} the largest is {largest:,}: if another one made "
        "them, name it with --tokenizer"
    )


def _opened(path: Path, spec: str | Tokenizer | None, beside: Any) -> TokenStore:
    """A store of ours knows its tokenizer, and refuses another; another program's is told."""
    if not (path / "manifest.json").is_file():
        return TokenStore.open(path, spec or beside)
    store = TokenStore.open(path)
    if spec is None:
        return store
    given, own = own_tokenizer(spec), store.manifest["tokenizer"]
    if own["fingerprint"] not in ("", vocabulary(given)):
        name, hint = (
            (spec, ": leave --tokenizer out") if isinstance(spec, str) else (given.name, "")
        )
        raise ConfigError(
            f"{path} has ids of its own tokenizer, {own['name']} ({own['fingerprint'][:8]}), not "
            f"of {name} ({vocabulary(given):.8}){hint}"
        )
    return TokenStore.open(path, given)


def _tokenizer_of(store: TokenStore, beside: Any) -> tuple[Any, str | None]:
    """The store's, also where it lies beside the weights alone; or None, and what that means."""
    try:
        return store.tokenizer, None
    except StoreError as error:
        if beside is not None and vocabulary(beside) == store.manifest["tokenizer"]["fingerprint"]:
            return beside, None
        return None, f"the model will take no text unless --tokenizer names its tokenizer: {error}"


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in _JSON_SUFFIXES and not path.is_dir()


def _is_store(path: Path) -> bool:
    files = (path / "manifest.json", path / "train" / "manifest.json")
    return path.suffix in _BIN_SUFFIXES or any(file.is_file() for file in files)


def _tokenizer(spec: Any, files: Sequence[Path]) -> Any:
    """The tokenizer that is meant; `files` is the text, empty if the data is none."""
    if spec in (CHAR, AUTO) and not files:
        raise ConfigError(f"--tokenizer {spec} is for text")
    if spec == CHAR:
        return train_tokenizer(files, None, kind="char")
    return own_tokenizer(spec) if isinstance(spec, str | Tokenizer) else spec


def _tokenizer_of_its_own(files: Sequence[Path]) -> tuple[Tokenizer, str]:
    """A tokenizer learned from the text, as large as that is worth, and why so large."""
    size, reason = choose_vocab_size(sum(file.stat().st_size for file in files))
    if size is None:
        return get_tokenizer("gpt2"), reason
    try:
        return train_tokenizer(files, size), reason
    except TokenizerError as error:  # Too short or too uniform a text.
        return get_tokenizer("gpt2"), f"GPT-2's tokens, for of its own the text has few: {error}"


def model_config(
    spec: str | None,
    changes: Mapping[str, Any],
    inputs: TokenInputs | Instructions,
    config: TrainingConfig,
) -> tuple[GPTConfig, str | None]:
    """The config of a new model, and how it was chosen if nobody named it.

    Args:
        spec: a preset's name, a JSON or TOML file with a config, "auto", or None: `SMALL_GPT`.
        changes: fields that are set one by one.
    Raises:
        ConfigError: there is no such preset, or the fields do not fit together.
        SourceError: the file cannot be read.
    """
    reason = None
    if spec == AUTO:
        cfg, reason = choose_model_here(inputs.num_tokens, inputs.vocab_size, config)
    elif spec is None:
        cfg = SMALL_GPT
    else:
        cfg = named_config(spec)
    # A vocabulary may be larger than the tokenizer's, for speed; a smaller one has no room.
    vocab_size = changes.get("vocab_size", inputs.vocab_size)
    return GPTConfig.of(cfg.to_dict() | {"vocab_size": vocab_size} | dict(changes)), reason


def named_config(spec: str) -> GPTConfig:
    """A preset's config, or that in a JSON or TOML file."""
    path = Path(spec)
    if spec in PRESETS or path.suffix not in (".json", ".toml"):
        return get_config(spec)
    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SourceError(f"{path}: not {path.suffix[1:].upper()}: {error}") from error
    inner = content.get("model", content) if isinstance(content, Mapping) else content
    try:
        return GPTConfig.of(inner)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def new_model(cfg: GPTConfig, seed: int) -> GPTModel:
    """A model that has learned nothing; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTModel(cfg)


def pretrained_model(path: Path, changes: Mapping[str, Any]) -> tuple[GPTModel, Any]:
    """A model that has learned, in float32, and the tokenizer beside it, if there is one.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: the changes do not fit its weights.
    """
    cfg = replace(config_of_pretrained(path), **changes)
    model = GPTModel.from_pretrained(path, cfg=cfg, dtype=torch.float32)
    return model, tokenizer_beside(path)


def with_adapters(model: GPTModel, rank: int, seed: int) -> GPTModel:
    """The model, frozen, with LoRA layers that learn: alpha is twice the rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_lora(model, rank, 2 * rank)
    return model

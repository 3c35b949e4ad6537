"""A checkpoint's config.json: the model's shape, and which file has the weights. Imports no torch.

`checkpoint` writes and reads all of a checkpoint; this much is enough to know what is in it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError

FORMAT = "gptrs-checkpoint"
FORMAT_VERSION = 2
CONFIG_FILE = "config.json"
RUN_FOLDER = "checkpoint"
"""Where a run has its checkpoint."""
WEIGHTS_FILE = re.compile(r"model-[0-9a-f]{16}\.safetensors")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What config.json says."""

    model: GPTConfig
    weights_file: str
    has_tokenizer: bool
    metadata: dict[str, Any]

    def to_json(self) -> str:
        """The file's text.

        Raises:
            ConfigError: the metadata is not JSON.
        """
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


def checkpoint_in(directory: str | Path) -> Path:
    """`directory`, or the checkpoint of the run that it is."""
    directory = Path(directory)
    of_run = directory / RUN_FOLDER
    is_run = (of_run / CONFIG_FILE).is_file() and not (directory / CONFIG_FILE).exists()
    return of_run if is_run else directory


def read_manifest(directory: Path) -> Manifest:
    """What the checkpoint in `directory` says of itself.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign, or of a newer format.
    """
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
        return Manifest(
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
    if not isinstance(name, str) or not WEIGHTS_FILE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a weights file")
    return name

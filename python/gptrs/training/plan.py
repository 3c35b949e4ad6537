"""What `gptrs train` was asked for, in the run's folder: enough to go on with it. No torch here.

RUN/run.json          data, model, settings, as they were given; paths are absolute; and the config
                      of the model that came of it, which goes on whatever "auto" would choose now
RUN/tokenizer.json    the tokenizer: one of the text's characters was made for this run
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError
from gptrs.files import write_whole
from gptrs.text.named_tokenizers import own_tokenizer
from gptrs.text.tokenizer import FILE_NAME, Tokenizer
from gptrs.training.config import SMALL_GPT, TrainingConfig

FILE = "run.json"

_OF_OTHERS = (FILE_NAME, "manifest.json", "config.json")
"""What a tokenizer, a token store and a model have in their folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was asked for."""

    data: list[str]
    validation: str | None = None
    tokenizer: str | None = None
    model: str | None = None
    """A preset, a file or "auto"; None: the small one, or that of `init`."""
    model_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of GPTConfig that were set."""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of TrainingConfig that were set."""
    init: str | None = None
    lora: int | None = None
    model_config: dict[str, Any] | None = None
    """Of the model, all fields, once they are settled."""

    def check(self) -> None:
        """Refuses what is impossible before torch is imported and text is read.

        Raises:
            ConfigError: a setting makes no sense, or two exclude each other.
        """
        self.config()
        if self.lora is not None and self.init is None:
            raise ConfigError("--lora trains beside weights that have learned: it needs --init")
        if self.init is not None and self.model is not None:
            raise ConfigError("--init has a model: leave --model out")
        if self.init is None and self.model is None:
            GPTConfig.of(SMALL_GPT.to_dict() | self.model_changes)

    def config(self) -> TrainingConfig:
        """The settings, with the defaults of all that was not set."""
        return TrainingConfig.of(self.training)

    def settled(self, model_config: GPTConfig) -> Plan:
        """The same with the config that its model has."""
        return dataclasses.replace(self, model_config=model_config.to_dict())

    def changed(self, training: Mapping[str, Any]) -> Plan:
        """The same with other settings."""
        return dataclasses.replace(self, training=self.training | dict(training))


def refuse_folder_of_others(run_dir: Path) -> None:
    """Raises ConfigError where a plan would lie among, or on, what no run has written."""
    if (run_dir / FILE).exists():
        return  # A run's that was stopped before its first step.
    if there := [name for name in _OF_OTHERS if (run_dir / name).exists()]:
        raise ConfigError(
            f"{run_dir}: has a {there[0]}, which no run has written: a run gets a folder of its own"
        )


def write_plan(plan: Plan, tokenizer: Any, run_dir: Path) -> None:
    """Keeps a plan and its tokenizer in the folder of the run, which is made if missing.

    Raises:
        CheckpointError: they cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            own_tokenizer(tokenizer).save(run_dir)
        write_whole(run_dir / FILE, (json.dumps(asdict(plan), indent=2) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{run_dir}: cannot be written: {error}") from error


def read_plan(run_dir: Path) -> Plan:
    """What `write_plan` kept.

    Raises:
        CheckpointError: there is none: `gptrs.train` in a program goes on by resume=True; or it is
            damaged.
    """
    file = run_dir / FILE
    try:
        return Plan(**json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{run_dir}: there is no {FILE}: the run was not begun by `gptrs train`; in Python, "
            "gptrs.train(..., resume=True) goes on with it"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error


def kept_tokenizer(run_dir: Path) -> Tokenizer | None:
    """The run's tokenizer; None if it has none."""
    file = run_dir / FILE_NAME
    return Tokenizer.load(file) if file.is_file() else None


def remove_plan(run_dir: Path) -> None:
    """Takes back what `write_plan` wrote."""
    for name in (FILE, FILE_NAME):
        (run_dir / name).unlink(missing_ok=True)

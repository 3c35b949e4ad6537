"""The weights of a run's checkpoint: all of a model's, or its adapters alone.

    GPTModel               ─► config.json, model-<digest>.safetensors, tokenizer.json
    one with LoRA layers   ─► lora.json, lora-<digest>.safetensors; what learned beside them
                              (merged into a model of its own only when the run ends)

Copies first and writes later: the model may go on learning in between.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptrs.errors import CheckpointError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import (
    STEM,
    base_fingerprint,
    has_lora,
    load_lora_state_dict,
    lora_state_dict,
    merged_copy,
    save_lora,
)
from gptrs.model.lora_base import differs_from
from gptrs.tensor_folder import read_folder
from gptrs.training.step import World
from gptrs.training.tensor_rows import SavedTensors
from gptrs.weights.checkpoint import (
    check_saveable,
    check_tokenizer,
    open_checkpoint,
    save_checkpoint,
    tensors_of,
    write_checkpoint,
)

_BESIDE = "beside."
"""Before the names of weights that learned beside adapters."""


class ModelState:
    """What of a model a checkpoint has.

    Args:
        tokenizer: saved along.
        directory: where the model is to be exported: another tokenizer may be there.
    Raises:
        ConfigError: the model could not be loaded again, or the tokenizer cannot be saved.
    """

    def __init__(self, model: GPTModel, tokenizer: Any, directory: Path) -> None:
        self._model = model
        self.is_adapters = has_lora(model)
        self._tokenizer = check_tokenizer(tokenizer, model, directory)
        self._fingerprint: str | None = None
        if not self.is_adapters:
            check_saveable(model)

    def taken(
        self, masters: Mapping[str, Tensor], metadata: dict[str, Any]
    ) -> tuple[Callable[[Path], object], dict[str, Tensor]]:
        """What writes a copy of the weights to a folder, and tensors to be kept elsewhere.

        Args:
            masters: float32 weights, by name, that stand for the model's own.
        """
        if self.is_adapters:
            self._fingerprint = self._fingerprint or base_fingerprint(self._model)
            adapters = _adapters_copied(self._model)
            write = partial(save_lora, adapters, fingerprint=self._fingerprint)
            return write, {f"{_BESIDE}{name}": t for name, t in self._beside().items()}
        weights = {name: _copied(masters.get(name, t)) for name, t in self.weights().items()}
        return lambda folder: self.write(folder, weights, metadata), {}

    def weights(self) -> dict[str, Tensor]:
        """All that a checkpoint of the model has, by name; the tensors themselves."""
        return tensors_of(self._model)

    def write(
        self,
        folder: Path,
        weights: Mapping[str, Tensor | Sequence[Tensor]],
        metadata: dict[str, Any],
    ) -> None:
        """Writes the model's files.

        Args:
            weights: of the names of `weights`; each whole, or its rows in parts.
        """
        write_checkpoint(self._model.cfg, weights, folder, self._tokenizer, metadata)

    def load(self, folder: Path, tensors: SavedTensors, world: World) -> None:
        """Gives the model the weights of a checkpoint; of one in shards, the rows that are here.

        Args:
            tensors: of the checkpoint, besides the model's files.
        Raises:
            CheckpointError: they are damaged, or of adapters on another model.
        """
        if self.is_adapters:
            content, adapters = read_folder(folder, STEM)
            if why := differs_from(self._model, content["base"]):
                raise CheckpointError(f"{folder}: {why}")
            load_lora_state_dict(self._model, adapters)
            with torch.no_grad():
                for name, parameter in self._beside(copied=False).items():
                    parameter.copy_(tensors[f"{_BESIDE}{name}"])
            return
        weights = SavedTensors([open_checkpoint(folder)[1].path])
        for name, tensor in self.weights().items():
            tensor.copy_(world.placed(weights, name, tensor))
        weights.close()

    def export_merged(self, folder: Path, directory: Path, metadata: dict[str, Any]) -> None:
        """Saves the model with the adapters in `folder` added to its weights, to be used as it is.

        Raises:
            CheckpointError: the adapters are damaged, or `directory` cannot be written.
        """
        adapted = _adapters_copied(self._model)
        load_lora_state_dict(adapted, read_folder(folder, STEM)[1])
        merged = merged_copy(adapted)
        save_checkpoint(merged, directory, tokenizer=self._tokenizer, metadata=metadata)

    def _beside(self, *, copied: bool = True) -> dict[str, Tensor]:
        """What learns and is no adapter."""
        adapters = lora_state_dict(self._model).keys()
        return {
            name: _copied(parameter) if copied else parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad and name not in adapters
        }


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _adapters_copied(model: GPTModel) -> GPTModel:
    """A model that shares all weights but its adapters, which stay as they are now."""
    own = lora_state_dict(model).keys()
    shared = {
        id(parameter): parameter for name, parameter in model.named_parameters() if name not in own
    }
    return copy.deepcopy(model, shared)

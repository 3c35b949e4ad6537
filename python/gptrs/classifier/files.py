"""A classifier on disk: its model, adapters, head, labels and tokenizer, in one folder. No pickle.

    classifier.json                  parameters, classes, the model's config, how it was trained
    classifier-<digest>.safetensors  the model's weights with the new head, or what learned alone
    tokenizer.json                   as Hugging Face's libraries read it

Without the frozen weights, the model's path and a few of its numbers stand in classifier.json.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gptrs.classifier.body import ModelLike, layers_to_train, private_copy, put_head, read_model
from gptrs.classifier.labels import Split, as_labels
from gptrs.classifier.training import Epoch
from gptrs.config import GPTConfig
from gptrs.devices import choose_device, choose_precision
from gptrs.errors import CheckpointError, ConfigError, TokenizerError
from gptrs.model.gpt import GPTModel
from gptrs.tensor_folder import read_folder, write_folder
from gptrs.text.named_tokenizers import own_tokenizer
from gptrs.text.tokenizer import FILE_NAME, Tokenizer
from gptrs.training.config import DeviceName

if TYPE_CHECKING:
    from gptrs.classifier.classifier import Classifier

C = TypeVar("C", bound="Classifier")

STEM = "classifier"
_SAMPLE_SIZE = 8
_NOT_SAVED = ("model", "tokenizer")


def save_classifier(classifier: Classifier, directory: Path, include_model: bool) -> None:
    """What `Classifier.save` says."""
    tokenizer = own_tokenizer(classifier.tokenizer_)
    model = classifier.model_
    if type(model.tok_emb) is not nn.Embedding:
        raise ConfigError(f"tok_emb is a {type(model.tok_emb).__name__}: fold_projection first")
    content = {
        "params": _params(classifier),
        "classes": classifier.classes_.tolist(),
        "model": model.cfg.to_dict(),
        "base": None if include_model else _base(classifier),
        "history": [asdict(epoch) for epoch in classifier.history_],
        "confusion": classifier.confusion_.tolist(),
        "train_texts": classifier.split_.train.tolist(),
        "validation_texts": classifier.split_.validation.tolist(),
        "num_cut": classifier.num_cut_,
    }
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if include_model or name in learned
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        check_other_tokenizer(directory / FILE_NAME, tokenizer)
        tokenizer.save(directory)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error}") from error
    write_folder(directory, STEM, content, tensors)


def load_classifier(
    kind: type[C], directory: Path, model: ModelLike | None, device: DeviceName
) -> C:
    """What `Classifier.load` says."""
    content, tensors = read_folder(directory, STEM)
    try:
        tokenizer = Tokenizer.load(directory)
        classifier = kind("", **(content["params"] | {"device": device}))
        classifier.classes_ = as_labels(content["classes"])
        classifier.history_ = [Epoch(**epoch) for epoch in content["history"]]
        classifier.confusion_ = np.array(content["confusion"], dtype=np.int64)
        numbers = content["train_texts"], content["validation_texts"]
        classifier.split_ = Split(*(torch.tensor(part, dtype=torch.int64) for part in numbers))
        classifier.num_cut_ = int(content["num_cut"])
        cfg, base = GPTConfig.of(content["model"]), content["base"]
        path = "" if base is None else str(base["path"])
    except (KeyError, TypeError, ValueError) as error:  # Ours are among them.
        raise CheckpointError(
            f"{directory}: damaged: {STEM}.json or {FILE_NAME}: {error}"
        ) from error
    where = choose_device(device)
    if base is None:
        own = _skeleton(cfg)
    else:
        classifier.model = path if model is None else model
        whole = _checked_base(read_model(classifier.model), cfg, base, directory)
        own = private_copy(whole, "head", where)
    with torch.random.fork_rng():  # First weights are drawn, and replaced.
        _fill(own, classifier, tensors, directory)
    classifier.model_ = own.to(where).eval()
    if base is None:
        classifier.model = classifier.model_
    classifier.tokenizer = classifier.tokenizer_ = tokenizer
    classifier.precision_ = choose_precision(classifier.dtype, where)
    classifier.fitted_params_ = classifier.get_params()
    return classifier


def _params(classifier: Classifier) -> dict[str, Any]:
    """The constructor's arguments that JSON can hold; a search may have set NumPy's numbers."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in classifier.fitted_params_.items()
        if name not in _NOT_SAVED
    }


def _base(classifier: Classifier) -> dict[str, Any]:
    """Where the frozen weights are, and some of them."""
    path = classifier.fitted_params_["model"]
    if isinstance(path, GPTModel):
        raise ConfigError(
            "include_model=False needs the path of the model, and this classifier was given the "
            "model itself"
        )
    if classifier.fitted_params_["train"] == "all":
        raise ConfigError('include_model=False, but with train="all" every weight has learned')
    return {"path": os.fspath(path), "first_numbers": _sample(classifier.model_)}


def _checked_base(
    model: GPTModel, cfg: GPTConfig, base: dict[str, Any], directory: Path
) -> GPTModel:
    """The model, if it is the one that the classifier was trained on top of."""
    found = {**model.cfg.to_dict(), "tie_embeddings": cfg.tie_embeddings}
    numbers = torch.tensor(base["first_numbers"], dtype=torch.float32)
    if found != cfg.to_dict() or not torch.equal(torch.tensor(_sample(model)), numbers):
        raise CheckpointError(
            f"{directory}: was trained on another model than the one in {base['path']} now"
        )
    return model


def _sample(model: GPTModel) -> list[float]:
    sample: list[float] = model.tok_emb.weight.detach()[-1, :_SAMPLE_SIZE].float().tolist()
    return sample


def _skeleton(cfg: GPTConfig) -> GPTModel:
    """A model of shapes only."""
    with torch.device("meta"):
        return GPTModel(cfg)


def _fill(
    model: GPTModel, classifier: Classifier, tensors: dict[str, Tensor], directory: Path
) -> None:
    """Gives the model its head and adapters, and all of them the tensors that were saved."""
    try:
        put_head(model, len(classifier.classes_))
        layers_to_train(
            model,
            classifier.train,
            classifier.lora_rank,
            classifier.lora_alpha,
            classifier.lora_targets,
        )
        learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
        is_whole = all(weight.is_meta for weight in model.parameters())
        result = model.load_state_dict(tensors, strict=is_whole, assign=True)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: the weights do not fit: {error}") from error
    problems = [*result.unexpected_keys, *(learned & {*result.missing_keys})]
    problems += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if problems:
        raise CheckpointError(
            f"{directory}: damaged: these weights are missing, unexpected or not finite: "
            f"{', '.join(sorted(problems))}"
        )


def check_other_tokenizer(file: Path, tokenizer: Tokenizer) -> None:
    """Refuses a folder in which another model's classifier is: its tokenizer is another.

    Raises:
        ConfigError: `file` holds another tokenizer, or is none.
    """
    try:
        there = Tokenizer.load(file) if file.exists() else tokenizer
    except TokenizerError as error:
        raise ConfigError(f"a tokenizer is saved only over the same one: {error}") from error
    if there != tokenizer:
        raise ConfigError(f"{file} has another tokenizer, {there!r}, than {tokenizer!r}")

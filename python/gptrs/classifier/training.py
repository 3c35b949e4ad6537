"""The epochs of a classifier: who is held out, what is learned, when it ends, which epoch is kept.

    labels ─► stratified split ─► batches ─► weighted cross-entropy ─► AdamW
                   └─► after each epoch: validation loss; the best epoch's weights come back

Texts are numbers here; `classifier_features` makes vectors of them.
"""

# Tensor names end in their shape: B texts, K classes, N all texts.

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gptrs.classifier.body import Train
from gptrs.classifier.features import BlockInputs, OnTexts, PooledTexts, Texts, TokenTexts
from gptrs.classifier.labels import (
    Numbers,
    Split,
    balanced_weights,
    confusion,
    stratified_split,
)
from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.errors import ConfigError, TrainingError
from gptrs.sampling.requests import count, real

MAX_GRAD_NORM = 1.0
_EVALUATED_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class Epoch:
    """How a classifier stands after an epoch."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's texts while it learned from them, in nats, by the class weights."""
    val_loss: float | None
    """The same over the held-out texts, afterwards; None without any."""
    val_accuracy: float | None
    """The share of held-out texts whose class was found."""
    seconds: float
    """What the epoch took; the first includes what is computed once."""

    def __str__(self) -> str:
        line = f"epoch {self.epoch:>3}  training loss {self.train_loss:.4f}"
        if self.val_loss is not None:
            line += f"  validation loss {self.val_loss:.4f}  accuracy {self.val_accuracy:.1%}"
        return line


OnEpoch = Callable[[Epoch], object]
"""Is given each epoch when it ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What of a classifier's parameters has to do with learning.

    Raises:
        ConfigError: one is impossible.
    """

    train: Train
    pooling: Pooling
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    class_weight: Literal["balanced"] | None
    validation_fraction: float
    patience: int | None
    seed: int

    def __post_init__(self) -> None:
        for name, kinds in (("train", get_args(Train)), ("pooling", get_args(Pooling))):
            if (found := getattr(self, name)) not in kinds:
                raise ConfigError(f"{name} is one of {', '.join(kinds)}; found {found!r}")
        if self.class_weight not in (None, "balanced"):
            raise ConfigError(f'class_weight is None or "balanced", found {self.class_weight!r}')
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            count(name, getattr(self, name), least)
        if self.patience is not None:
            count("patience", self.patience, 1)
        if real("learning_rate", self.learning_rate) <= 0:
            raise ConfigError(f"learning_rate is above 0, found {self.learning_rate}")
        if real("weight_decay", self.weight_decay) < 0:
            raise ConfigError(f"weight_decay is 0 or more, found {self.weight_decay}")
        if not 0 <= real("validation_fraction", self.validation_fraction) < 1:
            raise ConfigError(
                f"validation_fraction is 0 <= it < 1, found {self.validation_fraction}"
            )


class Learned(NamedTuple):
    """What came of it, besides the weights."""

    history: list[Epoch]
    split: Split
    confusion: Numbers
    """int64 [K, K], of the held-out texts; rows are what they are."""


def learn(
    texts: TokenTexts,
    layers: Sequence[nn.Module],
    labels_N: Tensor,
    settings: Settings,
    started: float,
    on_epoch: OnEpoch,
    shows_bar: bool,
) -> Learned:
    """Trains the model of `texts` in place: its `out_head`, and `layers`, and ends in eval mode.

    What never changes is computed once: see `classifier_features`.

    Args:
        layers: what learns besides the head; dropout is on there while it does.
        labels_N: int64, the number of each text's class.
        started: when the first epoch began, by `time.perf_counter`.
    Raises:
        TrainingError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    split = stratified_split(labels_N, settings.validation_fraction, generator)
    head: Any = texts.model.out_head
    kept: Texts = texts
    most = len(texts.rows) + settings.epochs * len(split.train)
    with tqdm(total=most, unit=" texts", delay=0.2, disable=not shows_bar) as bar:
        if settings.train == "head":
            vectors_ND = texts.all_vectors(bar.update)
            mean_D, std_D = _mean_and_deviation(vectors_ND[split.train])
            kept = PooledTexts((vectors_ND - mean_D) / std_D)
        elif settings.train == "last_block" and BlockInputs.fits(texts):
            kept = BlockInputs(texts, bar.update)
        loop = EpochLoop(kept, head, layers, labels_N, split, settings, generator)
        history = loop.run(started, on_epoch, bar.update)
    found = loop.classes_of(split.validation)
    if settings.train == "head":
        _fold(head, mean_D, std_D)
    true = labels_N[split.validation].numpy()
    return Learned(history, split, confusion(true, found, head.out_features))


class EpochLoop:
    """Trains layers and a head on texts, epoch by epoch; arguments as of `learn`.

    Args:
        generator: of the order of the batches.
    """

    def __init__(
        self,
        texts: Texts,
        head: nn.Linear,
        layers: Sequence[nn.Module],
        labels_N: Tensor,
        split: Split,
        settings: Settings,
        generator: torch.Generator,
    ) -> None:
        self._texts, self._head, self._layers = texts, head, layers
        self._split, self._settings, self._generator = split, settings, generator
        self._labels = labels_N.to(head.weight.device)
        weights_K = torch.ones(head.out_features)
        if settings.class_weight == "balanced":
            weights_K = balanced_weights(labels_N[split.train], head.out_features)
        self._class_weights = weights_K.to(head.weight.device)
        learning = [p for m in (*layers, head) for p in m.parameters() if p.requires_grad]
        self._learning = list(dict.fromkeys(learning))
        self._optimizer = _adamw(self._learning, settings)

    def run(self, started: float, on_epoch: OnEpoch, on_texts: OnTexts) -> list[Epoch]:
        """All epochs, or until `patience` of them brought nothing; the best one's weights stay."""
        history: list[Epoch] = []
        best = Best()
        patience = self._settings.patience
        for number in range(1, self._settings.epochs + 1):
            train_loss = self._pass(on_texts)
            if not math.isfinite(train_loss):
                raise TrainingError(
                    f"the loss is {train_loss} in epoch {number}: try a lower learning_rate than "
                    f"{self._settings.learning_rate}"
                )
            val_loss, val_accuracy = self._validate()
            seconds, started = time.perf_counter() - started, time.perf_counter()
            history.append(Epoch(number, train_loss, val_loss, val_accuracy, seconds))
            on_epoch(history[-1])
            if val_loss is not None:
                best.see(number, val_loss, self._learning)
                if patience is not None and number - best.epoch >= patience:
                    break
        best.restore(self._learning)
        return history

    def classes_of(self, indices: Tensor) -> Numbers:
        """The class that each text is taken for now, int64 [len(indices)]."""
        found = torch.zeros(len(indices), dtype=torch.int64)
        for start in range(0, len(indices), _EVALUATED_TOGETHER):
            part = slice(start, start + _EVALUATED_TOGETHER)
            found[part] = self._evaluated(indices[part])[2].cpu()
        numbers: Numbers = found.numpy()
        return numbers

    def _pass(self, on_texts: OnTexts) -> float:
        """One pass over the texts to learn from, in a new order; the mean loss."""
        indices = self._split.train
        indices = indices[torch.randperm(len(indices), generator=self._generator)]
        total = torch.zeros(2, dtype=torch.float64)
        _set_training(self._layers, True)
        try:
            for batch in indices.split(self._settings.batch_size):
                loss, weight, _ = self._loss(batch)
                self._optimizer.zero_grad()
                (loss / weight).backward()
                nn.utils.clip_grad_norm_(self._learning, MAX_GRAD_NORM)
                self._optimizer.step()
                total += torch.stack([loss.detach(), weight]).cpu()
                on_texts(len(batch))
        finally:
            _set_training(self._layers, False)
        return float(total[0] / total[1])

    def _validate(self) -> tuple[float | None, float | None]:
        """The mean loss over the held-out texts, and the share whose class is found."""
        indices = self._split.validation
        if not len(indices):
            return None, None
        total, weights, num_right = 0.0, 0.0, 0
        for batch in indices.split(_EVALUATED_TOGETHER):
            loss, weight, found_B = self._evaluated(batch)
            total, weights = total + loss.item(), weights + weight.item()
            num_right += int((found_B == self._labels[batch]).sum())
        return total / weights, num_right / len(indices)

    @torch.no_grad()
    def _evaluated(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._loss(indices)

    def _loss(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss, the summed class weights, and the class each text is taken for."""
        labels_B = self._labels[indices]
        logits_BK: Tensor = self._head(self._texts.vectors(indices))
        loss = F.cross_entropy(logits_BK, labels_B, self._class_weights, reduction="sum")
        return loss, self._class_weights[labels_B].sum(), logits_BK.argmax(1)


class Best:
    """The epoch with the lowest validation loss, and its weights."""

    def __init__(self) -> None:
        self.epoch, self._loss = 0, math.inf
        self._weights: list[Tensor] = []

    def see(self, epoch: int, loss: float, weights: Sequence[Tensor]) -> None:
        """Keeps copies of the weights if the loss is the lowest so far."""
        if loss < self._loss:
            self.epoch, self._loss = epoch, loss
            self._weights = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def restore(self, weights: Sequence[Tensor]) -> None:
        """Gives the weights their best values back; none were kept without validation."""
        for weight, kept in zip(weights, self._weights, strict=False):
            weight.copy_(kept)


def _mean_and_deviation(vectors_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column, [D], to standardise a head's features.

    A GPT-2's hidden states have a few columns that are much larger than all others (Timkey and van
    Schijndel 2021): as they are, a head would need many more steps.
    """
    std_D, mean_D = torch.std_mean(vectors_ND, dim=0, correction=0)
    # A column that does not vary tells nothing, and stays as it is.
    return mean_D, torch.where(std_D > 1e-6 * std_D.max(), std_D, 1.0)


@torch.no_grad()
def _fold(head: nn.Linear, mean_D: Tensor, std_D: Tensor) -> None:
    """Makes a head of standardised vectors the head of the vectors as they are."""
    head.weight.div_(std_D)
    head.bias.sub_(head.weight @ mean_D)


def _adamw(parameters: list[nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """Weight decay on matrices, none on vectors."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _set_training(layers: Sequence[nn.Module], training: bool) -> None:
    for layer in layers:
        layer.train(training)

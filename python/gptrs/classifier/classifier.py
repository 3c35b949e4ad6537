"""A text classifier on top of a GPT, in scikit-learn's manner.

>>> classifier = Classifier("runs/demo-001", train="head")
>>> classifier.fit(["win a prize now", "see you at noon"], ["spam", "ham"])
>>> classifier.predict(["a prize for you"])
array(['spam'], dtype='<U4')

With train="last_block" it is the book's spam classifier (its chapter 6): `out_head` is replaced,
the last block, the last norm and the new head learn, and a text's last token decides. Works with
scikit-learn's `clone`, `cross_val_score` and `GridSearchCV`, and without scikit-learn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gptrs.classifier.body import (
    ModelLike,
    Train,
    layers_to_train,
    private_copy,
    put_head,
    read_model,
)
from gptrs.classifier.estimator import Estimator
from gptrs.classifier.features import TokenTexts
from gptrs.classifier.files import load_classifier, save_classifier
from gptrs.classifier.inputs import as_texts, max_length_for, token_rows, tokenizer_for
from gptrs.classifier.labels import as_labels, classes_of, confusion, numbers_of
from gptrs.classifier.training import Epoch, OnEpoch, Settings, learn
from gptrs.devices import choose_device, choose_precision
from gptrs.embeddings.pooling_kinds import Pooling
from gptrs.errors import ConfigError, DataError
from gptrs.model.lora import ATTENTION_TARGETS
from gptrs.training.config import DeviceName, DtypeName

LEARNING_RATES: dict[Train, float] = {
    "head": 1e-2,
    "last_block": 5e-5,
    "lora": 5e-4,
    "all": 5e-5,
}
"""Unless another is given. The book's for the last block; a head of standardised features, which
is convex, takes a larger one."""
POOLINGS: dict[Train, Pooling] = {
    "head": "mean",
    "last_block": "last",
    "lora": "last",
    "all": "last",
}
"""Unless another is given. The last token's hidden state foretells the next token, and becomes a
verdict on the text where blocks learn, as in the book; frozen ones say more together."""


class Classifier(Estimator):
    """Learns which class a text is of. The caller's model is never changed.

    Args:
        model: a GPTModel, or the path of what `GPTModel.from_pretrained` reads. What stays frozen
            shares its memory with a given model: train that one further, and classes change.
        num_classes: None: as many as the labels have. Labels 0..num_classes - 1 need not all occur.
        pooling: which of a text's tokens decide: "last" (the only one that has seen all), "mean",
            "max", "weighted_mean" (later ones more), or "cls", the first. None: the mean with
            train="head", else the last.
        train: what learns, always with a new head: "head" alone; "last_block", the book's recipe;
            "lora", adapters in every block; "all". With "head" the model runs once over the texts
            and later epochs cost next to nothing; with "last_block" all but that block runs once.
        tokenizer: ours, tiktoken's, or any with encode and decode. None: the one beside the model's
            path, or GPT-2's.
        epochs: how often to go through the texts, at most.
        learning_rate: of AdamW; None: see LEARNING_RATES.
        weight_decay: of matrices.
        class_weight: "balanced": all classes count the same, however many texts they have.
        validation_fraction: the share of each class that is held out to validate on; 0 is none.
        patience: stop after so many epochs without a lower validation loss; None: never. Either way
            the weights of the best epoch are kept.
        max_length: texts are cut to so many tokens; None: the model's context_length.
        lora_rank, lora_alpha, lora_targets: as for `add_lora`.
        seed: of first weights, held-out texts, order and dropout: the same results on one machine.
        device, dtype: as in training; "auto" takes a GPU, and bfloat16 where it is fast.
        verbose: show a progress bar and a line an epoch.

    Attributes:
        classes_: the labels there are, sorted, [K].
        model_: a GPTModel whose `out_head` gives the logits of the classes, [B, T, K].
        history_: an `Epoch` each.
        confusion_: int64 [K, K], of the held-out texts; rows are what they are.
        split_: the numbers of the texts that were learned from and held out.
        num_cut_: how many texts were longer than max_length.
        tokenizer_, precision_: what is used.
        fitted_params_: the arguments that `fit` saw; `set_params` changes those of the next.
    """

    def __init__(
        self,
        model: ModelLike,
        num_classes: int | None = None,
        *,
        pooling: Pooling | None = None,
        train: Train = "head",
        tokenizer: Any = None,
        epochs: int = 10,
        batch_size: int = 16,
        learning_rate: float | None = None,
        weight_decay: float = 0.1,
        class_weight: Literal["balanced"] | None = None,
        validation_fraction: float = 0.1,
        patience: int | None = 3,
        max_length: int | None = None,
        lora_rank: int = 8,
        lora_alpha: float = 16,
        lora_targets: str | Sequence[str] = ATTENTION_TARGETS,
        seed: int = 0,
        device: DeviceName = "auto",
        dtype: DtypeName = "auto",
        verbose: bool = False,
    ) -> None:
        # Unchanged and unchecked, as scikit-learn has it: `fit` checks.
        self.model = model
        self.num_classes = num_classes
        self.pooling = pooling
        self.train = train
        self.tokenizer = tokenizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.max_length = max_length
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_targets = lora_targets
        self.seed = seed
        self.device = device
        self.dtype = dtype
        self.verbose = verbose

    def fit(
        self, texts: Iterable[str], labels: Iterable[Any], *, on_epoch: OnEpoch | None = None
    ) -> Self:
        """Learns from texts and the label of each: str, int, bool or float, all of one kind.

        Args:
            on_epoch: is given each epoch when it ends.
        Raises:
            DataError: a text is empty or no str, labels are of several kinds or one class only, or
                there are not as many labels as texts.
            ConfigError: a parameter is impossible, or the tokenizer is another model's.
            CheckpointError: the model's path has none.
            TrainingError: the loss is not finite.
        """
        started = time.perf_counter()
        settings = self._settings()
        texts, labels = as_texts(texts), as_labels(labels)
        if len(texts) != len(labels):
            raise DataError(f"there are {len(texts)} texts and {len(labels)} labels")
        classes = classes_of(labels, self.num_classes)
        device = choose_device(self.device)
        precision = choose_precision(self.dtype, device)
        model = read_model(self.model)
        tokenizer = tokenizer_for(self.tokenizer, self.model, model.cfg)
        rows, num_cut = token_rows(tokenizer, texts, max_length_for(self.max_length, model.cfg))
        labels_N = torch.from_numpy(numbers_of(labels, classes))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            own = private_copy(model, self.train, device)
            put_head(own, len(classes))
            lora = self.lora_rank, self.lora_alpha, self.lora_targets
            layers = layers_to_train(own, self.train, *lora)
            token_texts = TokenTexts(own, rows, settings.pooling, precision)
            report = on_epoch or (_print if self.verbose else _say_nothing)
            learned = learn(token_texts, layers, labels_N, settings, started, report, self.verbose)
        self.history_, self.split_, self.confusion_ = learned
        self.classes_, self.model_, self.tokenizer_ = classes, own, tokenizer
        self.precision_, self.num_cut_ = precision, num_cut
        self.fitted_params_ = self.get_params()
        return self

    def predict(self, texts: Iterable[str]) -> npt.NDArray[Any]:
        """The likeliest class of each text, one of `classes_`: [N].

        Raises:
            DataError: a text is empty or no str.
            ConfigError: the classifier has not been fitted.
        """
        numbers = self.predict_proba(texts).argmax(1)
        found: npt.NDArray[Any] = self.classes_[numbers]
        return found

    def predict_proba(self, texts: Iterable[str]) -> npt.NDArray[np.float64]:
        """The probability of each class, in the order of `classes_`: float64 [N, K].

        A text's do not depend on the others', but for rounding. Errors as of `predict`.
        """
        logits_NK = self._logits(as_texts(texts))
        return torch.softmax(logits_NK.double(), dim=1).cpu().numpy()

    def score(self, texts: Iterable[str], labels: Iterable[Any]) -> float:
        """The share of texts whose class is found.

        Raises:
            DataError: a label was not among those that were learned; or as of `predict`.
        """
        texts = as_texts(texts)
        true = numbers_of(labels, self._fitted().classes_)
        if len(texts) != len(true) or not texts:
            raise DataError(f"there are {len(texts)} texts and {len(true)} labels")
        return float((self.predict_proba(texts).argmax(1) == true).mean())

    def confusion_matrix(
        self, texts: Iterable[str] | None = None, labels: Iterable[Any] | None = None
    ) -> npt.NDArray[np.int64]:
        """How many texts of each class, a row, were taken for each, a column: int64 [K, K].

        Args:
            texts, labels: default: those that `fit` held out, which is `confusion_`.
        """
        self._fitted()
        if texts is None or labels is None:
            return self.confusion_
        true = numbers_of(labels, self.classes_)
        found = self.predict_proba(texts).argmax(1)
        return confusion(true, found, len(self.classes_))

    def save(self, directory: str | os.PathLike[str], *, include_model: bool = True) -> None:
        """Writes the classifier with its model, labels and tokenizer, whole or not at all.

        Args:
            include_model: False leaves out what stayed frozen and notes the model's path.
        Raises:
            ConfigError: it has not been fitted; or its tokenizer is neither ours nor tiktoken's
                GPT-2; or include_model is False, and `model` is no path or every weight learned.
            CheckpointError: the folder cannot be written.
        """
        save_classifier(self._fitted(), Path(directory), include_model)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        model: ModelLike | None = None,
        device: DeviceName = "auto",
    ) -> Self:
        """The classifier in a folder that `save` wrote, ready to predict.

        Args:
            model: where the frozen weights are, if they were left out and have moved.
        Raises:
            CheckpointError: there is none, or it is damaged, foreign, or another model's.
        """
        return load_classifier(cls, Path(directory), model, device)

    @property
    def best_epoch_(self) -> int:
        """The epoch whose weights are kept: of the lowest validation loss, or the last."""
        last = self._fitted().history_[-1]
        if last.val_loss is None:
            return last.epoch
        return min(self.history_, key=lambda epoch: (epoch.val_loss, epoch.epoch)).epoch

    def __repr__(self) -> str:
        pooling = _pooling(self.pooling, self.train)
        return f"<Classifier: train={self.train!r}, pooling={pooling!r}>"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def _fitted(self) -> Self:
        if not hasattr(self, "model_"):
            raise ConfigError("this classifier knows nothing yet: call fit, or Classifier.load")
        return self

    def _logits(self, texts: list[str]) -> Tensor:
        """float32 [N, K]."""
        model = self._fitted().model_.eval()
        fitted = self.fitted_params_
        length = max_length_for(fitted["max_length"], model.cfg)
        rows, _ = token_rows(self.tokenizer_, texts, length)
        pooling = _pooling(fitted["pooling"], fitted["train"])
        token_texts = TokenTexts(model, rows, pooling, self.precision_)
        with tqdm(total=len(rows), unit=" texts", delay=0.5, disable=not self.verbose) as bar:
            vectors_ND = token_texts.all_vectors(bar.update)
        with torch.no_grad():
            logits_NK: Tensor = model.out_head(vectors_ND)
        return logits_NK

    def _settings(self) -> Settings:
        """The parameters that have to do with learning."""
        rate = self.learning_rate
        return Settings(
            train=self.train,
            pooling=_pooling(self.pooling, self.train),
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=LEARNING_RATES.get(self.train, 0.0) if rate is None else rate,
            weight_decay=self.weight_decay,
            class_weight=self.class_weight,
            validation_fraction=self.validation_fraction,
            patience=self.patience,
            seed=self.seed,
        )


def _pooling(asked: Pooling | None, train: Train) -> Pooling:
    return POOLINGS.get(train, "last") if asked is None else asked


def _print(epoch: Epoch) -> None:
    tqdm.write(str(epoch))


def _say_nothing(epoch: Epoch) -> None:
    pass

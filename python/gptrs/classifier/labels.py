"""Labels as numbers, who is held out, and what a classifier confuses: a table. `plots` draws it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptrs.errors import ConfigError, DataError
from gptrs.plots import confusion_figure as confusion_figure
from gptrs.plots import save_confusion_figure as save_confusion_figure

Numbers = npt.NDArray[np.int64]


def classes_of(labels: Iterable[Any], num_classes: int | None) -> npt.NDArray[Any]:
    """The different labels, sorted, [K]: all of one kind, str, int, bool or float.

    Whole numbers in 0..num_classes - 1 stand for themselves: not all of them need occur.

    Raises:
        DataError: labels of several kinds, or of another, or fewer than two different ones.
        ConfigError: there are not as many different ones as num_classes.
    """
    array = as_labels(labels)
    classes = np.unique(array)
    if len(classes) < 2:
        found = f"one class only, {classes[0]!s}" if len(classes) else "none"
        raise DataError(f"a classifier needs labels of two classes at least, found {found}")
    if num_classes is not None and array.dtype.kind == "i":
        numbers = np.arange(num_classes)
        classes = numbers if np.isin(classes, numbers).all() else classes
    if num_classes is not None and len(classes) != num_classes:
        raise ConfigError(
            f"num_classes is {num_classes}, and the labels are of {len(classes)}: {_shown(classes)}"
        )
    return classes


def as_labels(labels: Iterable[Any]) -> npt.NDArray[Any]:
    """Labels [N] as an array of one kind.

    Raises:
        DataError: they are of several kinds, or of another than str, int, bool or float; or there
            is more than one for a text.
    """
    if isinstance(labels, str):
        raise DataError(f"labels are one for each text, found the str {labels!r}")
    items = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    kinds: dict[type, int] = {}
    for number, item in enumerate(items):
        kind = type(item.item() if isinstance(item, np.generic) else item)
        if kind not in (str, int, bool, float) or item != item:  # nan is not itself
            raise DataError(f"label {number} is {item!r}; it must be a str, int, bool or float")
        kinds.setdefault(kind, number)
    if len(kinds) > 1:
        found = " and ".join(f"{kind.__name__} (label {at})" for kind, at in kinds.items())
        raise DataError(f"labels are of one kind, found {found}")
    return np.array(items)


def numbers_of(labels: Iterable[Any], classes: npt.NDArray[Any]) -> Numbers:
    """The number of each label's class, int64 [N].

    Raises:
        DataError: a label is none of the classes.
    """
    array = as_labels(labels)
    numbers = np.zeros(len(array), dtype=np.int64)
    known = np.zeros(len(array), dtype=bool)
    if (array.dtype.kind == "U") == (classes.dtype.kind == "U"):  # Else none is any of them.
        numbers = np.minimum(np.searchsorted(classes, array), len(classes) - 1).astype(np.int64)
        known = classes[numbers] == array
    if not known.all():
        unseen = np.unique(array[~known])
        raise DataError(
            f"labels that were not learned: {_shown(unseen)}; the classes are {_shown(classes)}"
        )
    return numbers


@dataclass(frozen=True, slots=True)
class Split:
    """The numbers of the texts to learn from, and of those to validate on; int64 each."""

    train: Tensor
    validation: Tensor


def stratified_split(labels_N: Tensor, fraction: float, generator: torch.Generator) -> Split:
    """Holds out the same share of each class, and never all of one."""
    train: list[Tensor] = []
    validation: list[Tensor] = []
    for label in labels_N.unique():
        members = (labels_N == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        num_held_out = min(len(members) - 1, round(fraction * len(members)))
        validation.append(members[:num_held_out])
        train.append(members[num_held_out:])
    return Split(torch.cat(train), torch.cat(validation))


def balanced_weights(labels_N: Tensor, num_classes: int) -> Tensor:
    """What a text of each class counts so that all classes count the same: float32 [K].

    As in scikit-learn: texts / (classes * texts of the class).
    """
    counts_K = labels_N.bincount(minlength=num_classes)
    return len(labels_N) / (num_classes * counts_K.clamp(min=1).float())


def confusion(true: Numbers, found: Numbers, num_classes: int) -> Numbers:
    """How many texts of each class, a row, were taken for each, a column: int64 [K, K]."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (true, found), 1)
    return matrix


def confusion_table(matrix: Numbers, classes: Iterable[Any]) -> str:
    """The matrix as text, with the share of each class that was found."""
    names = [str(name) for name in classes]
    rows = [["", *names, "found"]]
    for name, counts in zip(names, matrix, strict=True):
        total = int(counts.sum())
        share = f"{counts[len(rows) - 1] / total:.1%}" if total else "-"
        rows.append([name, *map(str, counts), share])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join(["each line a class, each column what it was taken for", *lines])


def _shown(names: Iterable[Any], most: int = 10) -> str:
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more

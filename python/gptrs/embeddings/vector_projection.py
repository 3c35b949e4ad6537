"""Vectors of words with as many columns as a model's embeddings have. NumPy only.

as many    taken as they are
fewer      an orthonormal map, drawn at random: every length and angle stays
more       PCA: the directions in which they differ most
"learned"  left alone, beside the first numbers of a matrix that learns with the model
"""

# Tensor names end in their shape: N vectors, C their columns, D the model's.

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Project = Literal["pca", "learned"]
Vectors = npt.NDArray[np.float32]


class Projection:
    """Matched vectors [N, C] with the columns that they get.

    Attributes:
        vectors: [N, D]; [N, C] where a matrix is to learn.
        learned_DC: that matrix's first numbers.
        explained: see `Coverage`.
        words: what was done, as a sentence.
    """

    def __init__(
        self,
        vectors_NC: Vectors,
        emb_dim: int,
        project: Project | None,
        random: np.random.Generator,
    ) -> None:
        num_columns = vectors_NC.shape[1]
        self.vectors, self.explained = vectors_NC, None
        self.learned_DC: Vectors | None = None
        if project == "learned":
            self.learned_DC = _orthonormal(emb_dim, num_columns, random)
            self.words = f"A matrix that learns makes {emb_dim} columns of their {num_columns}."
        elif num_columns == emb_dim:
            self.words = f"They have the model's {emb_dim} columns, and are taken as they are."
        elif num_columns < emb_dim:
            self.vectors = vectors_NC @ _orthonormal(emb_dim, num_columns, random).T
            self.words = (
                f"Their {num_columns} columns are turned at random into the model's {emb_dim}: "
                "lengths and angles stay."
            )
        else:
            self.vectors, self.explained = _principal(vectors_NC, emb_dim)
            self.words = (
                f"PCA makes {emb_dim} columns of their {num_columns}, with {self.explained:.1%} of "
                "the variance and mean 0."
            )


def _principal(vectors_NC: Vectors, emb_dim: int) -> tuple[Vectors, float]:
    """The vectors, less their mean, along the directions in which they differ most: [N, D]."""
    centred_NC = vectors_NC - vectors_NC.mean(0)
    variances_C, directions_CC = np.linalg.eigh((centred_NC.T @ centred_NC).astype(np.float64))
    kept_CD = directions_CC[:, : -emb_dim - 1 : -1]
    # The signs are anybody's guess: the largest number of each direction is positive.
    largest_D = np.abs(kept_CD).argmax(0)
    kept_CD = kept_CD * np.sign(kept_CD[largest_D, np.arange(emb_dim)])
    total = max(float(variances_C.sum()), 1e-30)
    return centred_NC @ kept_CD.astype(np.float32), float(variances_C[-emb_dim:].sum()) / total


def _orthonormal(num_rows: int, num_columns: int, random: np.random.Generator) -> Vectors:
    """Columns, or if there are more of these, rows of length 1 at right angles, drawn at random."""
    tall = random.standard_normal((max(num_rows, num_columns), min(num_rows, num_columns)))
    directions = np.linalg.qr(tall)[0].astype(np.float32)
    return directions if num_rows >= num_columns else directions.T

"""`encode` and its like, in sentence-transformers' manner, so that its evaluators take an Embedder.

Knows of the model only that it can `embed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gptrs.errors import ConfigError
from gptrs.model.facts import device_of
from gptrs.model.gpt import GPTModel

Vectors = npt.NDArray[np.float32]

# Options of `encode` that would change the vectors, and the values that do not.
_UNSUPPORTED: Final = {
    "prompt_name": (None,),
    "precision": (None, "float32"),
    "output_value": (None, "sentence_embedding"),
}


class SentenceMethods:
    """What tools ask of a SentenceTransformer.

    Attributes:
        model, normalize: set by the class that has these methods.
        similarity_fn_name: always "cosine".
    """

    model: GPTModel
    normalize: bool
    similarity_fn_name = "cosine"

    def embed(self, texts: Iterable[str], *, progress: bool = False) -> Vectors:
        """Vectors float32 [N, D], of length 1 if `normalize`."""
        raise NotImplementedError

    def encode(
        self,
        sentences: str | Sequence[str] | npt.NDArray[Any],
        *,
        prompt: str | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> Any:
        """Vectors of sentences: float32 [N, D], or [D] of one that is no list.

        Args:
            prompt: put in front of every sentence.
            convert_to_numpy, convert_to_tensor: an array, or a tensor where the model is; with
                neither, a list of tensors.
            normalize_embeddings: scale to length 1, also where `normalize` is False.
            truncate_dim: so many of the first numbers are kept, and scaled after that.
            options: sentence-transformers' other ones. `batch_size` and its like change nothing: a
                batch has `batch_tokens`.
        Raises:
            ConfigError: an option asks for what there is not, such as another precision.
            DataError: a sentence is empty or not a str.
        """
        for name, neutral in _UNSUPPORTED.items():
            if options.get(name) not in neutral:
                raise ConfigError(f"{name} is {options[name]!r}; only {neutral[-1]!r} is supported")
        is_one = isinstance(sentences, str)
        texts: list[Any] = [sentences] if is_one else list(sentences)
        if prompt:
            texts = [prompt + text if isinstance(text, str) else text for text in texts]
        vectors = self.embed(texts, progress=bool(show_progress_bar))
        if truncate_dim is not None:
            vectors = vectors[:, :truncate_dim]
        if normalize_embeddings or (self.normalize and truncate_dim is not None):
            vectors = normalized(vectors)
        found: Any = vectors
        if convert_to_tensor or not convert_to_numpy:
            found = torch.from_numpy(vectors).to(self.device)
            found = found if convert_to_tensor else list(found)
        return found[0] if is_one else found

    encode_query = encode_document = encode

    def similarity(self, one: Any, other: Any) -> Tensor:
        """Cosines of all pairs: [N, D] and [M, D], or [D], to [N, M]."""
        return _units(one) @ _units(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Tensor:
        """Cosines row by row: [N, D] twice to [N]."""
        return (_units(one) * _units(other)).sum(-1)

    def get_sentence_embedding_dimension(self) -> int:
        """D."""
        return self.model.cfg.emb_dim

    get_embedding_dimension = get_sentence_embedding_dimension

    @property
    def max_seq_length(self) -> int:
        """Tokens that the model sees at once. Longer sentences are not cut, but read in windows."""
        return self.model.cfg.context_length

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    @property
    def model_card_data(self) -> ModelCard:
        """Takes what evaluators report."""
        return ModelCard()


class ModelCard:
    """Evaluators hand their results to a card besides returning them; there is none to fill."""

    def set_evaluation_metrics(self, *_: Any) -> None:
        """Keeps nothing."""


def normalized(vectors: Vectors) -> Vectors:
    """Rows of length 1; rows of zeros stay what they are."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled


def _units(vectors: Any) -> Tensor:
    rows = torch.stack(vectors) if isinstance(vectors, list) else torch.as_tensor(vectors)
    return torch.nn.functional.normalize(torch.atleast_2d(rows.float()), dim=-1)

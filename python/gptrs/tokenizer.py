"""GPT-2's tokenizer: text to ids and back, in Rust, with the vocabulary compiled in.

>>> tokenizer = get_tokenizer("gpt2")
>>> tokenizer.encode("Hello, I am")
[15496, 11, 314, 716]
>>> tokenizer.decode([15496, 11, 314, 716])
'Hello, I am'

Ids equal those of `tiktoken.get_encoding("gpt2")` for every text, and the methods are named as
tiktoken's, so either works wherever gptrs takes a tokenizer. Nothing here uses the network, except
`get_tokenizer("tiktoken:...")`. Importing this module imports neither NumPy nor tiktoken nor torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, overload

from gptrs import tokenizer_json
from gptrs._core import Gpt2Tokenizer
from gptrs.errors import TokenizerError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tiktoken

_TIKTOKEN_PREFIX: Final = "tiktoken:"

# GPT-2's pattern as tiktoken writes it: possessive, so that it never backtracks.
_PATTERN: Final = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

_CORE: Final = Gpt2Tokenizer()

END_OF_TEXT: Final[str] = _CORE.END_OF_TEXT
"""GPT-2's one special token as it is written in a text: `<|endoftext|>`."""


class SupportsToList(Protocol):
    """A NumPy array or a tensor, neither of which this module imports."""

    def tolist(self) -> Any:
        """The items as Python ints, in a list."""


class Tokenizer:
    """GPT-2's byte-pair encoding: 50,257 ids, of which the last is `<|endoftext|>`.

    It has no state: threads may share it, and it pickles to its name.
    """

    __slots__ = ()

    name: Final = "gpt2"
    n_vocab: Final = _CORE.N_VOCAB
    """The number of ids: they run from 0 to `max_token_value`."""
    max_token_value: Final = _CORE.N_VOCAB - 1
    eot_token: Final = _CORE.END_OF_TEXT_ID
    """The id of `<|endoftext|>`, 50256."""
    special_tokens_set: Final = frozenset({END_OF_TEXT})

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Collection[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """The ids of `text`.

        Special tokens that are written out in `text` are refused by default, because a text from
        elsewhere could forge a document's end. A lone surrogate counts as U+FFFD.

        Args:
            allowed_special: special tokens that become one id each; "all" is every one there is.
            disallowed_special: strings that `text` must not contain; "all" is every special token
                that is not allowed, `()` is none: what is not allowed then is ordinary text.

        Raises:
            TokenizerError: `text` contains a disallowed string.
        """
        allowed, disallowed = self._special(allowed_special, disallowed_special)
        text = _checked(text)
        try:
            return _CORE.encode(text, allowed, disallowed)
        except UnicodeEncodeError:
            return _CORE.encode(_repaired(text), allowed, [*map(_repaired, disallowed)])

    def encode_to_numpy(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Collection[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> npt.NDArray[np.uint16]:
        """The ids of `text` as `encode` gives them, in a uint16 array: no list is made."""
        allowed, disallowed = self._special(allowed_special, disallowed_special)
        text = _checked(text)
        try:
            return _CORE.encode_to_numpy(text, allowed, disallowed)
        except UnicodeEncodeError:
            return _CORE.encode_to_numpy(_repaired(text), allowed, [*map(_repaired, disallowed)])

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`, in which `<|endoftext|>` is nothing special."""
        return self.encode(text, disallowed_special=())

    def decode(self, ids: Iterable[int] | SupportsToList, errors: str = "replace") -> str:
        """The text that `ids` stand for.

        Args:
            ids: one-dimensional: a list, a NumPy array, a tensor, any iterable of int.
            errors: as for `bytes.decode`: ids may end in the middle of a character.

        Raises:
            TokenIdError: an id is outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int] | SupportsToList) -> bytes:
        """The bytes that `ids` stand for, valid UTF-8 or not; arguments and errors of `decode`."""
        # The core reads a uint16 array's memory as it is. Other arrays and tensors become lists:
        # going through their items one object at a time is slow.
        items: Any = ids
        if hasattr(items, "tolist") and str(getattr(items, "dtype", "")) != "uint16":
            items = items.tolist()
        return _CORE.decode_bytes(items)

    def as_tiktoken(self) -> tiktoken.Encoding:
        """A real `tiktoken.Encoding` with this vocabulary, made without the network."""
        return _tiktoken_encoding()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a `tokenizer.json` that Hugging Face's libraries read, whole or not at all.

        Args:
            path: the file, or an existing directory in which it is to be named `tokenizer.json`.

        Returns:
            The file's path.

        Raises:
            OSError: the file cannot be written.
        """
        file = Path(path)
        if file.is_dir():
            file /= tokenizer_json.FILE_NAME
        tokenizer_json.write(file, _CORE)
        return file

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a `tokenizer.json`, or in a directory that holds one.

        Raises:
            TokenizerError: there is none, or it is not GPT-2's, the only one supported.
        """
        file = Path(path)
        if file.is_dir():
            file /= tokenizer_json.FILE_NAME
        tokenizer_json.check(file, _CORE)
        return _GPT2

    def _special(
        self,
        allowed: Literal["all"] | Collection[str],
        disallowed: Literal["all"] | Collection[str],
    ) -> tuple[list[str], list[str]]:
        """Both sets as lists, with "all" spelled out. Like tiktoken, allows what it never finds."""
        special = self.special_tokens_set
        allowed = _strings("allowed_special", allowed, all_of=special)
        disallowed = _strings("disallowed_special", disallowed, all_of=special.difference(allowed))
        return list(special.intersection(allowed)), list(disallowed)

    def __repr__(self) -> str:
        return f"<Tokenizer {self.name!r}: {self.n_vocab} ids>"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_tokenizer, (self.name,)


_GPT2: Final = Tokenizer()


@overload
def get_tokenizer(spec: Literal["gpt2"] = "gpt2") -> Tokenizer: ...
@overload
def get_tokenizer(spec: str | os.PathLike[str]) -> Tokenizer | tiktoken.Encoding: ...
def get_tokenizer(spec: str | os.PathLike[str] = "gpt2") -> Tokenizer | tiktoken.Encoding:
    """A tokenizer by name.

    Args:
        spec: "gpt2"; "tiktoken:NAME" for one of tiktoken's own encodings, which tiktoken fetches
            from the network or its cache; or the path of a `tokenizer.json`, or of a directory that
            holds one. Only GPT-2's vocabulary is supported in a file.

    Raises:
        TokenizerError: there is no such tokenizer, or a file holds another vocabulary.
    """
    if spec == "gpt2":
        return _GPT2
    if isinstance(spec, str) and spec.startswith(_TIKTOKEN_PREFIX):
        return _from_tiktoken(spec.removeprefix(_TIKTOKEN_PREFIX))
    path = os.fspath(spec)
    if os.path.exists(path):  # False, not an error, for what no path can be.
        return Tokenizer.load(path)
    raise TokenizerError(
        f"no tokenizer is named {path!r}, and no such path exists: expected 'gpt2', "
        f"'tiktoken:gpt2' or the path of a {tokenizer_json.FILE_NAME}"
    )


def _from_tiktoken(name: str) -> tiktoken.Encoding:
    import tiktoken

    known = tiktoken.list_encoding_names()
    if name not in known:
        raise TokenizerError(f"tiktoken has no encoding {name!r}; it has {', '.join(known)}")
    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # Whatever its HTTP client raises; tiktoken declares nothing.
        raise TokenizerError(
            f"tiktoken could not get its encoding {name!r} from its cache or the network "
            f"({type(error).__name__}: {error}); get_tokenizer('gpt2') needs no network, and its "
            "as_tiktoken() is a tiktoken.Encoding"
        ) from error


@functools.cache
def _tiktoken_encoding() -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(
        "gpt2",
        pat_str=_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(_CORE.ranks())},
        special_tokens={END_OF_TEXT: _CORE.END_OF_TEXT_ID},
        explicit_n_vocab=_CORE.N_VOCAB,
    )


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, found {type(text).__name__}")
    return text


def _strings(name: str, value: object, *, all_of: Collection[str]) -> Collection[str]:
    """A set of strings that an argument gives, or `all_of` for "all"."""
    if value == "all":
        return all_of
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f'{name} must be "all" or a set of strings, found {value!r}')
    return value


def _repaired(text: str) -> str:
    """Surrogate pairs as the characters they mean, lone ones as U+FFFD, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

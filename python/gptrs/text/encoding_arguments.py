"""What the methods of a tokenizer are given, as the core takes it."""

from __future__ import annotations

# What is imported here, every command waits for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any, Protocol

    class SupportsToList(Protocol):
        """A NumPy array or a tensor, neither of which this module imports."""

        def tolist(self) -> Any:
            """The items as Python ints, in a list."""


def plain_ids(ids: Iterable[int] | SupportsToList) -> Any:
    """What the core reads: a uint16 array's memory as it is.

    Other arrays and tensors become lists: going through their items one by one is slow.
    """
    items: Any = ids
    if hasattr(items, "tolist") and str(getattr(items, "dtype", "")) != "uint16":
        return items.tolist()
    return items


def checked_text(text: str) -> str:
    """`text`, or TypeError."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, found {type(text).__name__}")
    return text


def strings(name: str, value: object, *, all_of: Collection[str]) -> Collection[str]:
    """A set of strings that an argument gives, or `all_of` for "all"."""
    if value == "all":
        return all_of
    if isinstance(value, (frozenset, set, list, tuple)):
        return value
    from collections.abc import Collection

    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f'{name} must be "all" or a set of strings, found {value!r}')
    return value


def repaired(text: str) -> str:
    """Surrogate pairs as the characters they mean, lone ones as U+FFFD, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

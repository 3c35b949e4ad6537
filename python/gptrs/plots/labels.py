r"""Tokens and words as labels: what cannot be seen is shown, what is no character as bytes.

>>> token_label(b" the")
'␣the'
>>> token_label(b"\xe4\xb8")
'<0xE4><0xB8>'
"""

from __future__ import annotations

from collections.abc import Sequence

from gptrs.plots.fonts import drawable

MOST_CHARACTERS = 16
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}


def token_label(token: bytes | str) -> str:
    """A token as text: spaces and line ends visible, bytes that are no character as `<0xE4>`."""
    text = token.decode("utf-8", "surrogateescape") if isinstance(token, bytes) else token
    return "".join(map(_shown, text))


def fitting(labels: Sequence[str], most: int = MOST_CHARACTERS) -> list[str]:
    """Labels as they are drawn: with escapes where no font has a glyph, and cut to `most`."""
    drawn = [drawable(label) for label in labels]
    return [label if len(label) <= most else f"{label[: most - 1]}…" for label in drawn]


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # What surrogateescape makes of a byte.
        return f"<0x{ord(character) - 0xDC00:02X}>"
    return _VISIBLE.get(character, character)

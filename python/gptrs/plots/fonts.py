"""Which installed fonts have the glyphs of a text, and what is shown of characters that none has.

matplotlib brings DejaVu Sans along. What that lacks, such as Chinese or Korean, is looked for among
the installed fonts; a character without a glyph is written as an escape, never as an empty box.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from gptrs.plots.style import matplotlib_needed

FIRST_FAMILY = "DejaVu Sans"
PREFERRED = (
    "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC",
    "Noto Sans JP", "Noto Sans KR", "Source Han Sans", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "WenQuanYi Zen Hei",
    "NanumGothic", "Arial Unicode MS",
)  # fmt: skip
# matplotlib's last font has a glyph for every character: a box. Colours are no outlines.
_NO_LETTERS = ("Last Resort", "LastResort", "Color", "Colour")


def drawable(text: str) -> str:
    r"""The text, with escapes such as \u4e2d for characters that no installed font has."""
    return "".join(
        character
        if character.isprintable() and family_with(character) is not None
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def families_for(texts: Iterable[str]) -> list[str]:
    """The families that together have the glyphs of `texts`, to be tried in this order."""
    characters = sorted({character for text in texts for character in text})
    found = [family_with(character) for character in characters]
    return list(dict.fromkeys([FIRST_FAMILY, *(family for family in found if family is not None)]))


@cache
def family_with(character: str) -> str | None:
    """A family that has a glyph for this character; None if none is installed."""
    return next((name for name in _families() if ord(character) in _code_points(name)), None)


def _families() -> Iterator[str]:
    with matplotlib_needed():  # Labels are looked at before anything is drawn.
        from matplotlib.font_manager import fontManager

    installed = sorted({str(entry.name) for entry in fontManager.ttflist})
    known = [name for name in (FIRST_FAMILY, *PREFERRED) if name in installed]
    yield from known
    for name in installed:
        if name not in known and not any(word in name for word in _NO_LETTERS):
            yield name


@cache
def _code_points(family: str) -> frozenset[int]:
    """What the regular font of a family can draw; nothing if it cannot be read."""
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    try:
        path = fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False)
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()

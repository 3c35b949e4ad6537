"""Texts for the tokenizers' benchmarks, from files that every machine has, and hostile ones.

Takes nothing from the network, and in the same order each time: two runs in one environment see the
same bytes.
"""

import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PROSE_BYTES = 16_000_000
HOSTILE_BYTES = 1_000_000
END_OF_TEXT = "<|endoftext|>"


def prose() -> str:
    """At least `PROSE_BYTES` of English and code, as found; each file once.

    Python's help topics, what packages say of themselves, the standard library's sources, and as
    many of the packages' as it takes. Written-out special tokens are left out: how each tokenizer
    is told to take them for ordinary text is not what is measured.
    """
    found: list[str] = []
    seen = set()
    num_bytes = 0
    for text in prose_files():
        if num_bytes >= PROSE_BYTES:
            break
        if text not in seen:
            seen.add(text)
            found.append(text.replace(END_OF_TEXT, ""))
            num_bytes += len(found[-1].encode())
    return "".join(found)


def prose_files() -> Iterator[str]:
    """The texts that `prose` joins, best first."""
    from pydoc_data import topics

    yield "".join(topics.topics.values())
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    for pattern in ("*.rst", "*.md", "*.txt", "METADATA"):
        yield from texts(packages, pattern, without=set())
    yield from texts(library, "*.py", without={"site-packages", "test", "tests"})
    yield from texts(packages, "*.py", without={"tests"})


def texts(folder: Path, pattern: str, *, without: set[str]) -> Iterator[str]:
    """What is UTF-8 among the files that match, in order of their paths."""
    for path in sorted(folder.rglob(pattern)):
        if without.isdisjoint(path.relative_to(folder).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue


def other_languages() -> str:
    """The translated messages in the environment's `.po` files: Django's, into 100 languages."""
    messages = []
    for folder in (Path(sysconfig.get_path("purelib")), Path(sys.prefix) / "share"):
        for text in texts(folder, "*.po", without={"en", "en_AU", "en_GB"}):
            messages.extend(translations(text))
    return "\n".join(messages).replace(END_OF_TEXT, "")


def translations(po_file: str) -> Iterator[str]:
    """The strings that follow `msgstr` in a gettext file."""
    is_translation = False
    for line in po_file.splitlines():
        if line.startswith("msg"):
            is_translation = line.startswith("msgstr")
        first, last = line.find('"'), line.rfind('"')
        if is_translation and last > first + 1:
            yield line[first + 1 : last].replace("\\n", "\n").replace('\\"', '"')


def hostile() -> dict[str, str]:
    """Texts of 1 MB that caches, tables and backtracking do not like; the same in each run."""
    draw = random.Random(50257)
    letters = "abcdefghijklmnopqrstuvwxyz"
    scalars = [*range(0xD800), *range(0xE000, 0x110000)]

    def drawn(alphabet: str | list[str], num_bytes: int = HOSTILE_BYTES) -> str:
        width = len("".join(draw.choices(alphabet, k=1000)).encode()) / 1000
        return "".join(draw.choices(alphabet, k=int(num_bytes / width)))

    words = "".join(f" {drawn(letters, 8)}" for _ in range(HOSTILE_BYTES // 9))
    cjk = [chr(code) for code in range(0x4E00, 0xA000)]
    emoji = [chr(code) for code in range(0x1F300, 0x1F650)]
    anything = [chr(code) for code in scalars]
    mixed = (letters, [" ", "\n", "\t"], cjk, emoji, anything, list("0123456789"), list("'-=#"))
    return {
        "random 8-letter words": words,
        "one letter": "a" * HOSTILE_BYTES,
        "random letters, unbroken": drawn(letters),
        "random CJK, unbroken": drawn(cjk),
        "random emoji, unbroken": drawn(emoji),
        "random Unicode": drawn(anything),
        "digits, unbroken": drawn("0123456789"),
        "=-=-=-": "=-" * (HOSTILE_BYTES // 2),
        "line breaks": "\n" * HOSTILE_BYTES,
        "spaces, then a letter": " " * HOSTILE_BYTES + "a",
        "all of these by turns": "".join(
            drawn(draw.choice(mixed), draw.randrange(4, 400)) for _ in range(HOSTILE_BYTES // 200)
        ),
    }

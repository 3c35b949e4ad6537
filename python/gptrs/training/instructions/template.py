"""Instructions and their answers: read from JSON, and put into the book's template (chapter 7).

    {"instruction": "Add.", "input": "2, 3", "output": "5"}      one a line, or a list of them

    Below is an instruction that describes a task. ...      ┐
                                                            │ format_input    ┐
    ### Instruction:                                        │                 │
    Add.                                                    │                 │ format_prompt
                                                            │                 │
    ### Input:                                              │                 │
    2, 3                                                    ┘                 │
                                                                              │
    ### Response:                                                             ┘
    5                                                         the response: what is to be learned

All entries are checked when they are read. No tokens here, and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptrs.errors import DataError
from gptrs.text.reading import read_text

PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
RESPONSE_HEADING = "\n\n### Response:\n"
_SHOWN_PROBLEMS = 3
_SHOWN_CHARS = 80
_BEGINNING = 1 << 20

Entry = dict[str, Any]
"""`instruction` and `output`, str and not empty; `input`, a str; whatever else its line had."""


def format_input(entry: Mapping[str, Any]) -> str:
    """An entry's instruction, and its input if it has one, in the book's words and headings."""
    text = f"{PREAMBLE}\n\n### Instruction:\n{entry['instruction']}"
    return text + f"\n\n### Input:\n{entry['input']}" if entry.get("input") else text


def format_prompt(entry: Mapping[str, Any]) -> str:
    """All that stands before the response, its heading too: what a trained model is to go on from.

    >>> gen = Generator("runs/train-001")
    >>> gen(format_prompt({"instruction": "Name a primary color."}), temperature=0.0)[0].text
    """
    return format_input(entry) + RESPONSE_HEADING


def read_instructions(path: str | Path) -> list[Entry]:
    """The entries of a UTF-8 file: JSON Lines, an object a line, or one JSON list of objects.

    Each has `instruction` and `output`. `input` may be left out or null, and is "" then. Other keys
    are kept.

    Raises:
        SourceError: the file cannot be read, or is not UTF-8.
        DataError: it is empty or not JSON, or an entry is not as above. The message has the lines
            (in a list, the numbers, counted from 1) of the first few such entries.
    """
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path}: is empty: there are no instructions")
    if text.lstrip().startswith("["):
        return _checked(_of_list(path, text), str(path), "entry")
    return _checked(_of_lines(path, text), str(path), "line")


def check_entries(entries: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """The entries of a program, checked and completed as those of a file are.

    Raises:
        DataError: there are none, or one is not as `read_instructions` says.
    """
    if not entries:
        raise DataError("there are no instructions: the list of entries is empty")
    return _checked(enumerate(entries), "instructions", "entry")


def refuse_other_json(path: str | Path) -> None:
    """Raises DataError if a JSON file begins with something else than an entry's `instruction`.

    Looks at the beginning alone, so that a large file of plain texts is not read. What that cannot
    tell, such as a file that is no JSON, is left to `read_instructions`.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            start = file.read(_BEGINNING).strip(" \t\r\n")
    except (OSError, UnicodeDecodeError):
        return
    if (found := _instead_of_an_entry(start)) is not None:
        raise DataError(
            f"{path}: {found}; JSON is trained on if it has instructions: objects with "
            "'instruction', 'output' and, where there is one, 'input'. `gptrs build` makes a store "
            "of the texts in JSON Lines"
        )


def _instead_of_an_entry(start: str) -> str | None:
    """What a file begins with that is no entry; None: it may be one."""
    first = start.removeprefix("[").lstrip(" \t\r\n")
    if first[:1] in ("", "]"):
        return None
    if first[0] != "{":
        return f"begins with {_shown(start)}"
    # The object may be cut off, so its keys are looked for one by one.
    decoder, place, keys = json.JSONDecoder(), 1, []
    try:
        while first[place := _next(first, place, " \t\r\n,")] != "}":
            key, place = decoder.raw_decode(first, place)
            if key == "instruction":
                return None
            keys.append(key)
            _, place = decoder.raw_decode(first, _next(first, place, " \t\r\n:"))
    except (ValueError, IndexError, RecursionError):
        return None
    return f"its first entry has no 'instruction'; its keys are {_listed(keys)}"


def _next(text: str, place: int, skipped: str) -> int:
    """Where the next character is that is not skipped."""
    return len(text) - len(text[place:].lstrip(skipped))


def _of_list(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """A JSON list's entries, numbered from 1."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not entries:
        raise DataError(f"{path}: there are no instructions: the list is empty")
    return enumerate(entries, start=1)


def _of_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The entries of JSON Lines with the numbers of their lines; empty lines are none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = ""
            if number == 1 and line.strip() == "{":
                hint = "; a line is one whole object, unless the file is a JSON list: [{...}, ...]"
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{path}: line {number} is not JSON: {reason}; found {_shown(line)}{hint}"
            ) from None


def _checked(entries: Iterator[tuple[int, Any]], source: str, what: str) -> list[Entry]:
    """The entries with `input` filled in, if there is nothing wrong with any of them."""
    checked: list[Entry] = []
    problems: list[str] = []
    num_wrong = 0
    for number, entry in entries:
        if (problem := _problem(entry)) is None:
            checked.append({**entry, "input": entry.get("input") or ""})
            continue
        num_wrong += 1
        if len(problems) < _SHOWN_PROBLEMS:
            problems.append(f"{what} {number} {problem}")
    if num_wrong:
        more = f"; and {num_wrong - len(problems)} more" if num_wrong > len(problems) else ""
        raise DataError(f"{source}: {'; '.join(problems)}{more}")
    return checked


def _problem(entry: Any) -> str | None:
    """What is wrong with an entry, if anything is."""
    if not isinstance(entry, Mapping):
        return f"is not an object with instruction and output: found {_shown(entry)}"
    for key in ("instruction", "output"):
        if key not in entry:
            return f"has no {key!r}; its keys are {_listed(entry)}"
        if not isinstance(entry[key], str):
            return f"has an {key!r} that is no text: {_shown(entry[key])}"
        if not entry[key].strip():
            return f"has an empty {key!r}"
    if not isinstance(entry.get("input"), str | None):
        return f"has an 'input' that is no text: {_shown(entry['input'])}"
    return None


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys)) or "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."

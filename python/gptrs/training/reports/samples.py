"""samples.md: what a model wrote on the way, to read from top to bottom.

A text stands between fences longer than any run of backticks in it, so that it cannot end its own
block and is shown as it is, whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptrs.files import write_whole

SAMPLES_FILE = "samples.md"

_LONGEST = 60
_BACKTICKS = re.compile("`+")


def samples_page(name: str, samples: Iterable[Mapping[str, Any]]) -> str:
    """All samples of the run called `name`, each with its step, prompt and text."""
    return f"# What {name} wrote\n" + "".join(map(sample_section, samples))


def sample_section(sample: Mapping[str, Any]) -> str:
    """One of them: the prompt, and the text behind it."""
    whole = f"{sample['prompt']}{sample['text']}"
    fence = fence_for(whole)
    line_end = "" if whole.endswith("\n") else "\n"
    heading = _one_line(str(sample["prompt"]))
    return f"\n## Step {sample['step']:,}: {heading}\n\n{fence}text\n{whole}{line_end}{fence}\n"


def write_samples(file: Path, name: str, samples: Iterable[Mapping[str, Any]]) -> None:
    """Writes the whole page."""
    write_whole(file, _encoded(samples_page(name, samples)))


def append_sample(file: Path, sample: Mapping[str, Any]) -> None:
    """Adds one to a page that is there."""
    with file.open("ab") as stream:
        stream.write(_encoded(sample_section(sample)))


def fence_for(text: str) -> str:
    """A fence that `text` cannot close: a backtick more than its longest run, three at least."""
    return "`" * max(3, 1 + max(map(len, _BACKTICKS.findall(text)), default=0))


def _one_line(prompt: str) -> str:
    """A prompt as a heading: in one line, cut short, and nothing in it is Markdown or HTML."""
    words = " ".join(prompt.split())
    words = words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", words) or "no prompt"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")

"""GPT-2 ids as a NumPy array: tiktoken beside gptrs, on the standard library's own sources.

Run by `make bench-tokenizer`. The first pass over the text is the warm-up: neither keeps its words.
"""

import sysconfig
from pathlib import Path

import numpy as np
from table import compare, copy_ceiling, print_header

import gptrs

MEGABYTES = 16


def main() -> None:
    """Prints the table."""
    text = standard_library()[: MEGABYTES * 1_000_000]
    tokenizer = gptrs.get_tokenizer("gpt2")
    encoding = tokenizer.as_tiktoken()
    assert np.array_equal(
        tokenizer.encode_to_numpy(text, disallowed_special=()), theirs(encoding, text)
    )
    print_header(
        f"encode_to_numpy: {len(text) / 1e6:.0f} MB of Python's standard library", 1, copy_ceiling()
    )
    compare(
        {
            "tiktoken": lambda: theirs(encoding, text),
            "gptrs": lambda: tokenizer.encode_to_numpy(text, disallowed_special=()),
        },
        work=len(text.encode()),
        unit="bytes",
        rounds=5,
    )


def theirs(encoding, text):
    """The ids as tiktoken gives them, uint32."""
    return encoding.encode_to_numpy(text, disallowed_special=())


def standard_library():
    """All sources that come with Python, one after the other."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    return "".join(path.read_text(encoding="utf-8", errors="ignore") for path in files)


if __name__ == "__main__":
    main()

"""`create_dataloader_v1` beside the book's own: building it, and one epoch of batches.

Run by `make bench-loader`. The text is Python's help topics, several times over.
"""

import numpy as np
import torch
from llms_from_scratch import ch02
from table import compare, copy_ceiling, print_header

import gptrs
from gptrs.text.reading import help_topics

REPEATS, BATCH_SIZE, MAX_LENGTH, STRIDE = 4, 8, 256, 128


def main() -> None:
    """Prints the tables."""
    torch.set_num_threads(1)
    text = help_topics() * REPEATS
    tokenizer = gptrs.get_tokenizer("gpt2")
    encoding = tokenizer.as_tiktoken()
    # The book's loader asks for this by name, which would need a network.
    ch02.tiktoken.get_encoding = lambda name: encoding
    arguments = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "stride": STRIDE}
    ours = gptrs.create_dataloader_v1(text, **arguments)
    books = ch02.create_dataloader_v1(text, **arguments)

    num_tokens = len(ours) * BATCH_SIZE * MAX_LENGTH
    wide = np.empty((2, BATCH_SIZE, MAX_LENGTH), dtype=np.int64)
    narrow = np.ones((2, BATCH_SIZE, MAX_LENGTH), dtype=np.uint16)
    print_header(
        f"create_dataloader_v1: {len(text) / 1e6:.1f} MB of text, batches of {BATCH_SIZE} x "
        f"{MAX_LENGTH}, stride {STRIDE}",
        1,
        f"{copy_ceiling()}; bare copies turn as many uint16 tokens into int64, no more",
    )
    print("text to loader")
    compare(
        {
            "the book's": lambda: ch02.create_dataloader_v1(text, **arguments),
            "gptrs": lambda: gptrs.create_dataloader_v1(text, **arguments),
        },
        work=len(text),
        unit="bytes",
        rounds=3,
    )
    print("one epoch of shuffled batches")
    compare(
        {
            "the book's": lambda: sum(1 for _ in books),
            "bare copies": lambda: [np.copyto(wide, narrow) for _ in range(len(ours))],
            "gptrs": lambda: sum(1 for _ in ours),
        },
        work=num_tokens,
        unit="tokens",
    )


if __name__ == "__main__":
    main()

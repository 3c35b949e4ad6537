"""Greedy generation with GPT-2's 124M shape: the book's loop, ours without the cache, ours with it.

Run by `make bench-generation`. Random weights: the speed does not depend on them.
"""

import numpy as np
import torch
from llms_from_scratch import ch04
from table import compare, print_header, seconds

import gptrs

PROMPT_LENGTH, NEW_TOKENS, CONTEXT = 32, 32, 1024


def main() -> None:
    """Prints the tables."""
    torch.manual_seed(0)
    model = gptrs.GPTModel(gptrs.GPT_CONFIG_124M).eval()
    book = ch04.GPTModel(gptrs.GPT_CONFIG_124M).eval()
    book.load_state_dict(model.state_dict(), strict=False)
    weights = 123_532_032  # Without the embedding tables, of which a token reads two rows.
    buffer = np.ones(weights, dtype=np.float32)
    rate = weights / min(seconds(buffer.sum) for _ in range(5))
    print_header(
        f"generate_text_simple, 124M parameters, float32, prompt {PROMPT_LENGTH}, "
        f"{NEW_TOKENS} new tokens",
        torch.get_num_threads(),
        f"NumPy sums that many weights {rate / weights:.1f} times a second on one thread",
    )
    for batch_size in (1, 8):
        idx = torch.randint(50_257, (batch_size, PROMPT_LENGTH))
        print(f"batch {batch_size}")
        compare(
            {
                "the book's model and loop": lambda idx=idx: ch04.generate_text_simple(
                    book, idx, NEW_TOKENS, CONTEXT
                ),
                "gptrs without the cache": lambda idx=idx: gptrs.generate_text_simple(
                    lambda ids: model(ids), idx, NEW_TOKENS, CONTEXT
                ),
                "gptrs": lambda idx=idx: gptrs.generate_text_simple(
                    model, idx, NEW_TOKENS, CONTEXT
                ),
            },
            work=batch_size * NEW_TOKENS,
            unit="tokens",
            rounds=3,
        )


if __name__ == "__main__":
    main()

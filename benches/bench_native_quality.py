"""What fewer bits cost: a trained model's perplexity in the native engine, and what it writes.

    gptrs demo && make bench-native-quality ARGS="runs/demo-001"

The text is the end of Python's help topics, which the demo holds out of its training.
"""

import argparse
import random
from pathlib import Path

import torch
from table import print_header, print_table

from gptrs import Generator, GPTModel, load_checkpoint
from gptrs.text.reading import help_topics

HELD_OUT = 0.1
PROMPTS, NEW_TOKENS = 30, 60


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run, such as the demo's")
    run = parser.parse_args().run
    model, tokenizer = load_checkpoint(run)
    text = help_topics()
    held_out = text[-int(len(text) * HELD_OUT) :]
    in_torch = Generator(model, tokenizer, engine="torch")
    [reference] = in_torch.score(held_out)
    prompts = excerpts(held_out)
    written = tokens(in_torch, prompts)
    rows = [["PyTorch, float32", f"{reference.perplexity:.4f}", "", ""]]
    for name, generator in {
        "float32": Generator(model, tokenizer, engine="native"),
        "bfloat16": Generator(GPTModel.from_pretrained(run, dtype="bfloat16"), tokenizer),
        "int8": Generator(model, tokenizer, dtype="int8"),
    }.items():
        [score] = generator.score(held_out)
        same = sum(a == b for a, b in zip(tokens(generator, prompts), written, strict=True))
        change = score.perplexity / reference.perplexity - 1
        rows.append([name, f"{score.perplexity:.4f}", f"{change:+.4%}", f"{same} of {PROMPTS}"])
    print_header(
        f"{reference.num_tokens:,} tokens of real text", torch.get_num_threads(), "nothing is timed"
    )
    print_table(["native engine", "perplexity", "change", "texts as PyTorch's"], rows)


def excerpts(text: str) -> list[str]:
    """Beginnings to go on with, of several lengths."""
    draw = random.Random(0)
    starts = [draw.randrange(len(text) - 300) for _ in range(PROMPTS)]
    return [text[start : start + draw.randrange(10, 200)] for start in starts]


def tokens(generator: Generator, prompts: list[str]) -> list[list[int]]:
    """What it writes, the likeliest token each time."""
    completions = generator(prompts, NEW_TOKENS, temperature=0.0)
    return [completion.token_ids for completion in completions]


if __name__ == "__main__":
    main()

"""How wide should an embedding be? The demo's GPT, in several widths, learns the same text.

    emb_dim 16, 32, ... ─► as many steps each, on the same batches ─► validation loss beside emb_dim

Layers, heads, steps and batches are the same. A wider model wants smaller steps: the learning rate
is the demo's, which suits a width of 128, divided by the root of how much wider a model is. A
tokenizer of 2,048 ids, learned from the same text, keeps the output layer small, where most of the
time would go.

Run it: python examples/width.py [--widths 16 64 256] [--steps 300]
"""

import argparse
import contextlib
import io
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from gptrs import GPTConfig, GPTModel, train_tokenizer
from gptrs.text.reading import help_topics
from gptrs.training.callbacks import Evaluation
from gptrs.training.config import SMALL_GPT, TrainingConfig
from gptrs.training.trainer import train

VOCAB_SIZE = 2048


def main() -> None:
    """Trains a model of each width, and prints a row when it is done."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "help.txt")
        text.write_text(help_topics(), encoding="utf-8")
        tokenizer = train_tokenizer(text, VOCAB_SIZE)
    tokens = tokenizer.encode_to_numpy(help_topics())
    tokens_seen = args.steps * TrainingConfig().tokens_per_step(SMALL_GPT.context_length)
    print(f"{len(tokens):,} tokens of Python's help topics; each model sees {tokens_seen:,}\n")
    print("emb_dim   parameters  in the blocks  validation loss  bits per byte")
    for width in args.widths:
        model, last = trained(width, args.steps, tokens, tokenizer)
        num_all, num_in_blocks = (
            sum(weight.numel() for weight in module.parameters())
            for module in (model, model.trf_blocks)
        )
        print(
            f"{width:7}{num_all:13,}{num_in_blocks:15,}{last.val_loss:17.3f}"
            f"{last.bits_per_byte:15.3f}",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The validation loss of models of several widths.")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=300)
    return parser.parse_args()


def trained(width: int, steps: int, tokens, tokenizer) -> tuple[GPTModel, Evaluation]:
    """The demo's GPT in another width, and how it stands after training."""
    smaller_steps = math.sqrt(SMALL_GPT.emb_dim / width)
    learning_rate = TrainingConfig().peak_learning_rate(SMALL_GPT.emb_dim) * smaller_steps
    config = TrainingConfig(steps=steps, learning_rate=learning_rate, num_evaluations=1)
    torch.manual_seed(config.seed)
    cfg: GPTConfig = replace(SMALL_GPT, emb_dim=width, vocab_size=tokenizer.n_vocab)
    model = GPTModel(cfg)
    # What the trainer tells as it goes is no part of the table; its bar goes to stderr.
    with tempfile.TemporaryDirectory() as run_dir, contextlib.redirect_stdout(io.StringIO()):
        result = train(model, tokens, config, run_dir=run_dir, tokenizer=tokenizer)
    if result.interrupted:  # By Ctrl-C or SIGTERM, which mean all widths.
        sys.exit(f"stopped while the model of width {width} was trained")
    return model, result.last


if __name__ == "__main__":
    main()

"""How wide should an embedding be? The demo's GPT, in several widths, learns the same text.

    emb_dim 16, 32, ... ─► as many steps each, on the same batches ─► validation loss beside emb_dim

Nothing but emb_dim differs: layers, heads, steps and tokens are the same. A wider model wants a
lower learning rate, so each width tries several and keeps the best.

Run it: python examples/width.py [--widths 32 64] [--steps 100] [--learning-rates 2.5e-3]
"""

import argparse
import contextlib
import io
import tempfile
from dataclasses import replace
from typing import NamedTuple

import torch

from gptrs import GPTModel, get_tokenizer
from gptrs.config import GPTConfig
from gptrs.tables import align
from gptrs.text import help_topics
from gptrs.trainer import train
from gptrs.training_config import SMALL_GPT, TrainingConfig

HEADER = (
    "emb_dim",
    "parameters",
    "of them blocks",
    "validation loss",
    "bits per byte",
    "learning rate",
)


class Result(NamedTuple):
    """What one width came to, with its best learning rate."""

    cfg: GPTConfig
    learning_rate: float
    val_loss: float
    bits_per_byte: float


def main() -> None:
    """Trains every width with every learning rate, then prints what was best."""
    args = arguments()
    tokenizer = get_tokenizer("gpt2")
    tokens = tokenizer.encode_to_numpy(help_topics())
    configs = [
        TrainingConfig(
            steps=args.steps,
            learning_rate=rate,
            final_learning_rate=rate / 10,
            num_evaluations=1,
            dtype=args.dtype,
        )
        for rate in args.learning_rates
    ]
    tokens_a_step = configs[0].batch_size * SMALL_GPT.context_length
    print(f"{len(tokens):,} tokens of Python's help topics; {args.steps:,} steps a model,")
    print(f"each on {tokens_a_step:,} tokens; {SMALL_GPT.n_layers} layers\n", flush=True)
    rows = [HEADER]
    for width in args.widths:
        cfg = replace(SMALL_GPT, emb_dim=width)
        results = [measured(cfg, config, tokens, tokenizer) for config in configs]
        rows.append(cells(min(results, key=lambda result: result.val_loss)))
    print("\n".join(align(rows, ">" * len(HEADER))))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The validation loss of models of several widths.")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[2.5e-3, 5e-3, 1e-2])
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    return parser.parse_args()


def measured(cfg, config, tokens, tokenizer) -> Result:
    """Trains a model of this shape; what the trainer prints goes nowhere."""
    torch.manual_seed(config.seed)
    model = GPTModel(cfg)
    with tempfile.TemporaryDirectory() as run_dir, contextlib.redirect_stdout(io.StringIO()):
        last = train(model, tokens, config, run_dir=run_dir, tokenizer=tokenizer).last
    return Result(cfg, config.learning_rate, last.val_loss, last.bits_per_byte)


def cells(result: Result) -> list[str]:
    """A row of the table."""
    model = GPTModel(result.cfg)
    num_in_blocks = sum(weight.numel() for weight in model.trf_blocks.parameters())
    return [
        str(result.cfg.emb_dim),
        f"{sum(weight.numel() for weight in model.parameters()):,}",
        f"{num_in_blocks:,}",
        f"{result.val_loss:.2f}",
        f"{result.bits_per_byte:.3f}",
        f"{result.learning_rate:g}",
    ]


if __name__ == "__main__":
    main()

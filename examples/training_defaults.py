"""What each default of `gptrs train` buys: the book's training step, made faster rung by rung.

    the book's step ─► fused AdamW ─► fused loss ─► bfloat16 ─► dropout in Rust ─► small vocabulary

Each rung keeps what those above it have, and all take turns, with equal models on the same text.
The last changes what a token is, so bytes of text a second are told as well. Dropout is the book's,
0.1.

Run it: python examples/training_defaults.py [--rounds 5] [--emb-dim 256]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrs import GPTConfig, GPTModel, get_tokenizer, train_tokenizer
from gptrs.model.dropout import seeded_dropout
from gptrs.model.loss import next_token_loss
from gptrs.text.reading import help_topics
from gptrs.training.config import SMALL_GPT

BATCH_SIZE, SMALL_VOCABULARY = 8, 2048

Step = Callable[[], None]


def main() -> None:
    """Prints a row for each rung."""
    args = arguments()
    tokenizers = {"GPT-2's": get_tokenizer("gpt2"), "small": small_tokenizer()}
    text = help_topics()
    tokens = {name: torch.tensor(each.encode_ordinary(text)) for name, each in tokenizers.items()}
    bytes_per_token = {name: len(text.encode()) / len(ids) for name, ids in tokens.items()}
    n_vocab = tokenizers["GPT-2's"].n_vocab
    cfg = replace(SMALL_GPT, emb_dim=args.emb_dim, vocab_size=n_vocab, drop_rate=0.1)
    small = replace(cfg, vocab_size=tokenizers["small"].n_vocab)
    large_ids, small_ids = tokens.values()
    steps = {
        "the book's step, float32": step(cfg, large_ids, fused=False, loss=book_loss),
        "+ fused AdamW": step(cfg, large_ids, loss=book_loss),
        "+ fused loss": step(cfg, large_ids),
        "+ bfloat16": step(cfg, large_ids, bfloat16=True),
        "+ dropout in Rust": step(cfg, large_ids, bfloat16=True, seeded=True),
        "+ small vocabulary": step(small, small_ids, bfloat16=True, seeded=True),
    }
    times = in_turns(steps, args.rounds)
    first = times["the book's step, float32"]
    num_tokens = BATCH_SIZE * cfg.context_length
    print(f"{cfg.n_layers} layers, {cfg.emb_dim} wide, {num_tokens:,} tokens a step\n")
    print(f"{'':26}tokens/s  bytes of text/s  the first, times")
    for name, taken in times.items():
        ids = "small" if name == "+ small vocabulary" else "GPT-2's"
        rate = num_tokens / median(taken)
        speedup = median(one / other for one, other in zip(first, taken, strict=True))
        print(f"{name:24}{rate:10,.0f}{rate * bytes_per_token[ids]:17,.0f}{speedup:18.1f}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What each default of `gptrs train` buys here.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--emb-dim", type=int, default=SMALL_GPT.emb_dim)
    return parser.parse_args()


def small_tokenizer():
    """One that was learned from the text itself."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "help.txt")
        text.write_text(help_topics(), encoding="utf-8")
        return train_tokenizer(text, SMALL_VOCABULARY)


def book_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """All logits, and then their cross-entropy."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def step(
    cfg: GPTConfig,
    ids: Tensor,
    *,
    fused: bool = True,
    loss: Callable[..., Tensor] = next_token_loss,
    bfloat16: bool = False,
    seeded: bool = False,
) -> Step:
    """A training step on the text's first windows."""
    model = GPTModel(cfg).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    windows = ids[: BATCH_SIZE * cfg.context_length + 1]
    inputs, targets = (part.view(BATCH_SIZE, -1) for part in (windows[:-1], windows[1:]))

    def take() -> None:
        with seeded_dropout(model) if seeded else nullcontext():
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                value = loss(model, inputs, targets)
            value.backward()
        adamw.step()
        adamw.zero_grad()

    return take


def in_turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, round by round; two rounds before that do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-2, rounds):
        for name, take in steps.items():
            began = time.perf_counter()
            take()
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()

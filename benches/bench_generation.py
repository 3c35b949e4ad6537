"""Greedy generation with GPT-2's 124M shape: ours beside the book, transformers and fused torch.

Run by `make bench-generation`, for ten minutes, most of them the book's; ARGS="--quick" takes one.
Random weights, an untied output layer: the speed does not depend on what the tokens are.
"""

import argparse
import warnings

import numpy as np
import torch
import transformers
from llms_from_scratch import ch04
from peers.hand_fused import HandFused
from table import compare, print_header, seconds

import gptrs

CONFIG = gptrs.GPT_CONFIG_124M
CONTEXT = CONFIG["context_length"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Prints the tables."""
    args = _arguments()
    torch.manual_seed(0)
    model = gptrs.GPTModel(CONFIG).eval()
    print_header(
        f"124M parameters, prompt {args.prompt}, {args.new_tokens} new tokens, greedy",
        torch.get_num_threads(),
        _ceiling(),
    )
    for dtype in args.dtypes:
        for batch_size in args.batches:
            print(f"{dtype}, batch {batch_size}")
            _beside_peers(model, dtype, batch_size, args)
    for batch_size in args.batches:
        print(
            f"generate_text_simple as the book calls it, batch {batch_size}, "
            f"{args.book_tokens} new tokens"
        )
        _beside_the_book(model, batch_size, args)


def _beside_peers(
    model: gptrs.GPTModel, dtype: str, batch_size: int, args: argparse.Namespace
) -> None:
    idx = torch.randint(CONFIG["vocab_size"], (batch_size, args.prompt))
    num_new = args.new_tokens
    gen = gptrs.Generator(model, dtype=dtype)
    fused = HandFused(model, batch_size, CONTEXT, DTYPES[dtype])
    peer = _transformers_gpt2().to(DTYPES[dtype])
    mask = torch.ones_like(idx)

    def generate_of_transformers() -> torch.Tensor:
        return peer.generate(
            idx,
            attention_mask=mask,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
        )

    compare(
        {
            "transformers' generate": generate_of_transformers,
            "torch, fused by hand": lambda: fused.generate(idx, num_new),
            "gptrs.Generator": lambda: gen(idx, num_new, temperature=0.0, eos_id=None),
        },
        work=batch_size * num_new,
        unit="tokens",
        rounds=args.rounds,
    )


def _beside_the_book(model: gptrs.GPTModel, batch_size: int, args: argparse.Namespace) -> None:
    book = ch04.GPTModel(CONFIG).eval()
    book.load_state_dict(model.state_dict(), strict=False)
    idx = torch.randint(CONFIG["vocab_size"], (batch_size, args.prompt))
    results = {}

    def generate(name: str, function: object, model: torch.nn.Module) -> None:
        results[name] = function(model, idx, args.book_tokens, CONTEXT)

    compare(
        {
            "the book": lambda: generate("book", ch04.generate_text_simple, book),
            "gptrs": lambda: generate("ours", gptrs.generate_text_simple, model),
        },
        work=batch_size * args.book_tokens,
        unit="tokens",
        rounds=1,  # Minutes each, and far apart.
    )
    assert torch.equal(results["book"], results["ours"])


def _transformers_gpt2() -> transformers.GPT2LMHeadModel:
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="transformers")
    config = transformers.GPT2Config(tie_word_embeddings=False)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None
    return model


def _ceiling() -> str:
    weights = 123_532_032  # Without the embedding tables, of which a token reads two rows.
    buffer = np.ones(weights, dtype=np.float32)
    best = min(seconds(buffer.sum) for _ in range(5))
    return f"NumPy sums that many float32 weights {1 / best:.1f} times a second on one thread"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--book-tokens", type=int, default=128, help="new tokens beside the book")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    args = parser.parse_args()
    if args.quick:
        args.new_tokens, args.book_tokens, args.rounds = 32, 8, 3
    return args


if __name__ == "__main__":
    main()

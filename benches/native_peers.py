"""Greedy generation in each library, from `native_models.py`'s files, called its fastest way.

A `Peer` loads inside the process that measures it; nothing but that library is imported there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts of one length, and how many tokens each gets, to the new tokens."""

BATCH_CONTEXT = 256
"""Tokens that llama.cpp's cache holds for each of several sequences."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One library in one precision."""

    package: str
    imports: str
    """Modules that a process has loaded before its memory and its start are measured."""
    load: Callable[[Path, int], Generate]
    """Given the folder of the model and how many threads."""
    is_slow: bool = False
    """Runs in the first round only."""


class Numbers:
    """A tokenizer for models of any vocabulary: ids are their own text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""
        return " ".join(map(str, ids))


def gptrs(engine: str, dtype: str, *, compiled: bool = False) -> Callable[[Path, int], Generate]:
    def load(folder: Path, threads: int) -> Generate:
        import torch

        from gptrs import Generator, GPTModel

        torch.set_num_threads(threads)
        model = GPTModel.from_pretrained(folder / "hf").eval()
        own: dict[str, object] = {"dtype": dtype}
        if engine == "native" and dtype == "bfloat16":
            model, own = model.to(torch.bfloat16), {}  # It reads weights as they are.
        gen = Generator(model, Numbers(), engine=engine, compile=compiled, **own)

        def generate(prompts: list[list[int]], num_new: int) -> list[list[int]]:
            done = gen(prompts, num_new, temperature=0.0, eos_id=None)
            return [list(completion.token_ids) for completion in done]

        return generate

    return load


def transformers(dtype: str) -> Callable[[Path, int], Generate]:
    def load(folder: Path, threads: int) -> Generate:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        model = transformers.GPT2LMHeadModel.from_pretrained(
            folder / "hf", dtype=getattr(torch, dtype)
        ).eval()
        model.generation_config.eos_token_id = None

        def generate(prompts: list[list[int]], num_new: int) -> list[list[int]]:
            idx = torch.tensor(prompts)
            out = model.generate(
                idx,
                attention_mask=torch.ones_like(idx),
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                pad_token_id=0,
            )
            return out[:, idx.shape[1] :].tolist()

        return generate

    return load


def book(folder: Path, threads: int) -> Generate:
    import torch
    from llms_from_scratch import ch04

    from gptrs import GPTModel

    torch.set_num_threads(threads)
    weights = GPTModel.from_pretrained(folder / "hf")
    cfg = weights.cfg
    names = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate")
    model = ch04.GPTModel({**{name: getattr(cfg, name) for name in names}, "qkv_bias": True})
    model.load_state_dict(weights.state_dict(), strict=False)  # All but its masks.
    model.eval()
    del weights

    def generate(prompts: list[list[int]], num_new: int) -> list[list[int]]:
        idx = torch.tensor(prompts)
        out = ch04.generate_text_simple(model, idx, num_new, cfg.context_length)
        return out[:, idx.shape[1] :].tolist()

    return generate


def ctranslate2(compute_type: str) -> Callable[[Path, int], Generate]:
    def load(folder: Path, threads: int) -> Generate:
        import ctranslate2

        generator = ctranslate2.Generator(
            str(folder / f"ct2-{compute_type}"),
            compute_type=compute_type,
            intra_threads=threads,
            inter_threads=1,
        )

        def generate(prompts: list[list[int]], num_new: int) -> list[list[int]]:
            results = generator.generate_batch(
                [[str(token) for token in prompt] for prompt in prompts],
                max_length=num_new,
                min_length=num_new,
                include_prompt_in_result=False,
            )
            return [result.sequences_ids[0] for result in results]

        return generate

    return load


def llama_cpp(file_type: str) -> Callable[[Path, int], Generate]:
    def load(folder: Path, threads: int) -> Generate:
        model = LlamaCpp(folder / f"{file_type}.gguf", threads)
        model.open(1)
        return model.generate

    return load


class LlamaCpp:
    """llama.cpp's own interface: a cache for each sequence, all sequences in one call a step."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.library, self.threads = llama_cpp, threads
        # Kept: llama.cpp calls it as long as it lives.
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(bytes(path), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot open {path.name}")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self.context_length = llama_cpp.llama_model_n_ctx_train(self.model)
        self.contexts: dict[int, object] = {}

    def open(self, batch_size: int) -> object:
        """The context for so many sequences."""
        if batch_size not in self.contexts:
            params = self.library.llama_context_default_params()
            each = self.context_length if batch_size == 1 else BATCH_CONTEXT
            params.n_ctx = params.n_batch = batch_size * each
            params.n_seq_max = batch_size
            params.n_threads = params.n_threads_batch = self.threads
            self.contexts[batch_size] = self.library.llama_init_from_model(self.model, params)
        return self.contexts[batch_size]

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        """As `Generate` says."""
        import numpy as np

        library, context = self.library, self.open(len(prompts))
        library.llama_memory_clear(library.llama_get_memory(context), True)
        batch = library.llama_batch_init(sum(map(len, prompts)), 0, 1)
        tokens, position = prompts, 0
        new: list[list[int]] = [[] for _ in prompts]
        for _ in range(num_new):
            last = self._fill(batch, tokens, position)
            if library.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            position += len(tokens[0])
            for sequence, index in enumerate(last):
                logits = library.llama_get_logits_ith(context, index)
                row = np.ctypeslib.as_array(logits, (self.vocab_size,))
                new[sequence].append(int(row.argmax()))
            tokens = [[drawn[-1]] for drawn in new]
        library.llama_batch_free(batch)
        return new

    @staticmethod
    def _fill(batch, tokens: list[list[int]], position: int) -> list[int]:
        """Puts the tokens of all sequences into the batch; where each sequence's last one is."""
        last, count = [], 0
        for sequence, own in enumerate(tokens):
            for offset, token in enumerate(own):
                batch.token[count] = token
                batch.pos[count] = position + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = offset == len(own) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = ctypes.c_int32(count)
        return last


TORCH = "torch, gptrs"
OURS = "gptrs native"

# By precision, in the tables' order; ours is the last.
PEERS: dict[str, dict[str, Peer]] = {
    "float32": {
        "the book, no cache": Peer(
            package="llms-from-scratch",
            imports="torch, llms_from_scratch.ch04, gptrs",
            load=book,
            is_slow=True,
        ),
        "transformers": Peer(
            package="transformers",
            imports="torch, transformers.models.gpt2",
            load=transformers("float32"),
        ),
        "llama.cpp": Peer(
            package="llama-cpp-python", imports="numpy, llama_cpp", load=llama_cpp("f32")
        ),
        "CTranslate2": Peer(
            package="ctranslate2", imports="ctranslate2", load=ctranslate2("float32")
        ),
        "gptrs torch": Peer(package="gptrs", imports=TORCH, load=gptrs("torch", "float32")),
        OURS: Peer(package="gptrs", imports=TORCH, load=gptrs("native", "float32")),
    },
    "bfloat16": {
        "transformers": Peer(
            package="transformers",
            imports="torch, transformers.models.gpt2",
            load=transformers("bfloat16"),
        ),
        "llama.cpp": Peer(
            package="llama-cpp-python", imports="numpy, llama_cpp", load=llama_cpp("bf16")
        ),
        "gptrs torch": Peer(package="gptrs", imports=TORCH, load=gptrs("torch", "bfloat16")),
        OURS: Peer(package="gptrs", imports=TORCH, load=gptrs("native", "bfloat16")),
    },
    "int8": {
        "llama.cpp q8_0": Peer(
            package="llama-cpp-python", imports="numpy, llama_cpp", load=llama_cpp("q8_0")
        ),
        "llama.cpp q4_0": Peer(
            package="llama-cpp-python", imports="numpy, llama_cpp", load=llama_cpp("q4_0")
        ),
        "CTranslate2": Peer(package="ctranslate2", imports="ctranslate2", load=ctranslate2("int8")),
        OURS: Peer(package="gptrs", imports=TORCH, load=gptrs("native", "int8")),
    },
}

# With torch.compile, which takes a minute for each batch size: only where it is asked for.
COMPILED = {
    precision: Peer(package="gptrs", imports=TORCH, load=gptrs("torch", precision, compiled=True))
    for precision in ("float32", "bfloat16")
}
COMPILED_NAME = "gptrs torch, compiled"

"""nanoGPT's model, from a clone of karpathy/nanoGPT: it is no package that could be installed."""

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

from torch import nn


def gpt2_124m(folder: Path) -> nn.Module:
    """`model.py`'s GPT with GPT-2's 124M shape: tied, with biases, without dropout."""
    return gpt(folder, vocab_size=50257)


def gpt(folder: Path, **shape: Any) -> nn.Module:
    """`model.py`'s GPT with what its GPTConfig is told; left out, it has GPT-2's 124M shape."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):  # It counts its parameters aloud.
        model: nn.Module = module.GPT(module.GPTConfig(**shape))
    return model

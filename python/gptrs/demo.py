"""The demo: a small GPT learns English from Python's own help texts, then writes.

    help topics ─► tokens ─► train, with samples before, during and after ─► checkpoint, loss.png
                                                                   └─► reload ─► a streamed completion

Every demo is a new numbered run, `runs/demo-001` and so on. It needs no network and no file.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from gptrs import plots
from gptrs.checkpoint import load_checkpoint
from gptrs.config import GPTConfig
from gptrs.errors import MissingExtraError
from gptrs.generator import Generator
from gptrs.model import GPTModel
from gptrs.text import help_topics
from gptrs.tokenizer import Tokenizer, get_tokenizer
from gptrs.trainer import Evaluation, TrainingResult, train
from gptrs.training_config import TrainingConfig

MODEL = GPTConfig(
    context_length=128,
    emb_dim=128,
    n_heads=4,
    n_layers=4,
    drop_rate=0.0,
    tie_embeddings=True,
    init="gpt2",
)
PROMPT = "The for statement is used to"
SAMPLE_TOKENS, STREAMED_TOKENS = 40, 120
TEMPERATURE, TOP_K, SEED = 0.7, 40, 123

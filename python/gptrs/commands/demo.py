"""The demo: a small GPT learns English from Python's own help texts, then writes.

    help topics ─► tokens ─► train, with samples before, during and after ─► checkpoint, loss.png
                                                                                 │
                                                          a streamed completion ◄┘  loaded again

Every demo is a new numbered run, `runs/demo-001` and so on. It needs no network and no file.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from gptrs.commands.report import print_stream, train_in_new_run
from gptrs.generation.generator import Generator
from gptrs.sampling.requests import Options
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.reading import help_topics
from gptrs.training.callbacks import Callback, Evaluation, RunView
from gptrs.training.config import SMALL_GPT, TrainingConfig
from gptrs.training.trainer import TrainingResult
from gptrs.weights.checkpoint import load_checkpoint

PROMPT = "If the object"
SAMPLE_TOKENS, STREAMED_TOKENS = 40, 120
SAMPLING = Options(temperature=1.0, top_p=0.8, seed=1)
SAMPLED_SHARES = (0.0, 0.2, 0.5, 1.0)
"""A sample is written at the first evaluation after each of these shares of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """How a demo went."""

    training: TrainingResult
    completion: str
    """What the reloaded model wrote; empty if the training was interrupted."""


def run_demo(runs_dir: str | Path = "runs", config: TrainingConfig | None = None) -> DemoResult:
    """Trains the small GPT in a new run under `runs_dir`, printing as it goes, and lets it write.

    Raises:
        ConfigError: the device or dtype in `config` is not available here.
        TrainingError: see `train`.
    """
    tokenizer = get_tokenizer("gpt2")
    text = help_topics()
    print(
        f"A GPT of {SMALL_GPT.n_layers} layers, {SMALL_GPT.emb_dim} wide, learns from the "
        f"{len(text):,} characters of Python's help topics.\n"
    )
    result = train_in_new_run(
        runs_dir,
        "demo",
        SMALL_GPT,
        tokenizer.encode_to_numpy(text),
        config or TrainingConfig(),
        tokenizer=tokenizer,
        callbacks=[_SampleWriter()],
    )
    if result.interrupted:
        return DemoResult(training=result, completion="")
    print(f"\nLoaded again from {result.checkpoint}, it writes:\n")
    model, saved_tokenizer = load_checkpoint(result.checkpoint)
    pieces = Generator(model, saved_tokenizer).stream(PROMPT, STREAMED_TOKENS, **SAMPLING)
    completion = print_stream(pieces, PROMPT)
    print(_what_next(result.checkpoint.parent))
    return DemoResult(training=result, completion=completion)


class _SampleWriter(Callback):
    """Prints how the model would continue the prompt, a few times in a run."""

    def __init__(self) -> None:
        self._shares_left = list(SAMPLED_SHARES)

    def on_evaluation(self, run: RunView, evaluation: Evaluation) -> None:
        """Prints a sample, if it is time for one."""
        if not self._shares_left or evaluation.progress < self._shares_left[0]:
            return
        self._shares_left = [share for share in self._shares_left if share > evaluation.progress]
        completion = Generator(run.model)(PROMPT, SAMPLE_TOKENS, **SAMPLING)[0]
        tqdm.write(textwrap.indent(f"{PROMPT}{completion.text}", "    | ", lambda line: True))


def _what_next(run_dir: Path) -> str:
    return f"""
What to try next:
  another prompt         gptrs generate --model {run_dir} --prompt "A class is"
  a longer training      gptrs demo --minutes 10
  text of your own       gptrs train my-notes/
  what a GPT is made of  gptrs params gpt2-124m"""

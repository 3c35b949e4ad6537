"""A run for TensorBoard: `tensorboard --logdir RUN` shows its losses, speed and texts as it goes.

Needs the extra `train`. Steps stand over their number of tokens, as `global_step`, so that runs
with other batch sizes lie over each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptrs.errors import MissingExtraError
from gptrs.training.callbacks import Callback
from gptrs.training.reports.samples import fence_for
from gptrs.training.reports.speed import RunSpeed

if TYPE_CHECKING:
    from gptrs.training.callbacks import Evaluation, RunView, Sample, StepRecord

TENSORBOARD_FOLDER = "tensorboard"


class TensorBoard(Callback):
    """Writes `RUN/tensorboard/`.

    A run that goes on takes back, in TensorBoard's eyes, what was written behind its checkpoint.

    Raises:
        MissingExtraError: TensorBoard is not installed; the message has the pip line.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "tensorboard":
                raise
            raise MissingExtraError(
                'TensorBoard is not installed: pip install "gptrs[train]"', name="tensorboard"
            ) from None
        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._speed: RunSpeed | None = None

    def on_start(self, run: RunView) -> None:
        """Opens the folder."""
        tokens = run.step * run.tokens_per_step
        self._writer = self._make(
            str(run.run_dir / TENSORBOARD_FOLDER), purge_step=tokens + 1 if run.is_resumed else None
        )
        self._speed = RunSpeed.of(run)

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """Loss, gradient norm and learning rate."""
        self._scalars(
            record.tokens,
            {
                "loss/training": record.loss,
                "optimizer/grad_norm": record.grad_norm,
                "optimizer/learning_rate": record.learning_rate,
            },
        )

    def on_evaluation(self, run: RunView, evaluation: Evaluation) -> None:
        """Validation loss, bits per byte, tokens/s and MFU."""
        tokens_per_s = evaluation.tokens_per_s
        mfu = self._speed.mfu(tokens_per_s) if self._speed and tokens_per_s else None
        self._scalars(
            evaluation.tokens_seen,
            {
                "loss/validation": evaluation.val_loss,
                "loss/bits_per_byte": evaluation.bits_per_byte,
                "speed/tokens_per_s": tokens_per_s,
                "speed/mfu": mfu,
            },
        )
        if self._writer is not None:
            self._writer.flush()

    def on_sample(self, run: RunView, sample: Sample) -> None:
        """The text, as it is: TensorBoard takes texts for Markdown."""
        if self._writer is not None:
            text = f"{sample.prompt}{sample.text}"
            fence = fence_for(text)
            tokens = sample.step * run.tokens_per_step
            self._writer.add_text(sample.prompt, f"{fence}\n{text}\n{fence}", tokens)

    def on_end(self, run: RunView, reason: str) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self, tokens: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None and self._writer is not None:
                self._writer.add_scalar(name, value, tokens)

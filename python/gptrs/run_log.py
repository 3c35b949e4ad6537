"""What a run tells as it goes: lines and a progress bar for people, metrics.jsonl for programs."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm


class RunLog:
    """`metrics.jsonl` in `run_dir`, made if missing, and a progress bar; use it in a `with`."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._bar = tqdm(unit="step", desc="training", mininterval=0.5)

    def record(self, event: str, **values: Any) -> None:
        """One line of metrics.jsonl: a JSON object that says which event it is."""
        self._metrics.write(json.dumps({"event": event, **values}) + "\n")
        self._metrics.flush()

    def tell(self, line: str) -> None:
        """A line for whoever watches, above the progress bar."""
        tqdm.write(line)

    def advance(self, *, num_steps: int, loss: float, tokens_per_s: float) -> None:
        """Moves the bar on by a step of, as far as is known, `num_steps`."""
        self._bar.total = num_steps
        self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s", refresh=False)
        self._bar.update()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._metrics.close()

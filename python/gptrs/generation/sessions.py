"""A conversation that keeps its cache: each turn reads its own new tokens only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gptrs.errors import GenerationError
from gptrs.generation.completions import Completion, to_completion
from gptrs.generation.runs import ActiveRuns, Backend, Run
from gptrs.generation.streaming import Stream
from gptrs.sampling.config import check_seed, fresh_seed
from gptrs.sampling.requests import OPTION_NAMES, Options, Request, RequestMaker, check_names

# The draws' counter is the session's: its seed, sequence 0, and the position in all that was said.
_OF_A_TURN = OPTION_NAMES - {"seed", "sequences"}


class Session:
    """Turns of one conversation: what came before is the prompt of what comes next.

    A turn gets the tokens that a call would give for all tokens so far, with the session's seed.
    The tokens of a text do not depend on the turns before it.

    >>> session = gen.session(temperature=0.8, seed=1)
    >>> session.send("Once upon a time", 20).text
    >>> session.send(" But then", 20).text

    Attributes:
        seed: of all its draws.
    """

    def __init__(
        self, backend: Backend, maker: RequestMaker, active: ActiveRuns, options: Options
    ) -> None:
        self._backend = backend
        self._maker = maker
        self._active = active
        self._options = _checked(options, OPTION_NAMES)
        seed = options.get("seed")
        self.seed = fresh_seed() if seed is None else check_seed(seed)
        self._tokens: list[int] = []
        self._run: Run | None = None
        self._turn = threading.Lock()

    @property
    def token_ids(self) -> list[int]:
        """Every token so far, prompts and completions; what stopped a completion is not there."""
        return list(self._tokens)

    def send(self, prompt: Any, max_new_tokens: int, **options: Any) -> Completion:
        """A turn: appends `prompt`, a text or ids, and then what the model goes on with.

        Args:
            options: those of a stream but for seed and sequences, above the session's own.
        Raises:
            GenerationError: another turn is running, or the prompt is empty.
            Anything a call raises; the turn then leaves nothing behind.
        """
        request = self._request(prompt, max_new_tokens, options)
        with self._taking_turn():
            run, _ = self._begin(request)
            [output] = run.run()
            completion = to_completion(request, output, self._maker.tokenizer, run.engine)
            self._tokens = request.ids + completion.token_ids
        return completion

    def stream(self, prompt: Any, max_new_tokens: int, **options: Any) -> Stream[str]:
        """As `send`, piece by piece. Closed early, the turn counts as far as it came."""
        request = self._request(prompt, max_new_tokens, options)
        self._take_turn()
        try:
            run, number = self._begin(request)
        except BaseException:
            self._turn.release()
            raise

        def end(completions: list[Completion] | None) -> None:
            if completions is not None:
                self._tokens = request.ids + completions[0].token_ids
                self._drain(run)
            self._turn.release()

        return Stream(
            run, [request], self._maker.tokenizer, is_single=True, first=number, on_end=end
        )

    def close(self) -> None:
        """Forgets everything said, and frees the cache. A new conversation may begin.

        Raises:
            GenerationError: a turn is running.
        """
        with self._taking_turn():
            self._tokens, self._run = [], None

    def _request(self, prompt: Any, max_new_tokens: int, options: dict[str, Any]) -> Request:
        merged: Any = {**self._options, **_checked(options, _OF_A_TURN), "seed": self.seed}
        ids = self._tokens + self._maker.reader.ids(prompt)
        [request] = self._maker.make([ids], max_new_tokens, merged)
        return request

    def _begin(self, request: Request) -> tuple[Run, int]:
        """The run with the session's cache, and the turn's number there.

        Another run if the model changed since the last turn.
        """
        if self._run is None or not self._run.is_current():
            self._run = None
            self._run = self._active.add(self._backend.start(1))
        return self._run, self._run.submit(request)

    def _drain(self, run: Run) -> None:
        """Takes what a closed stream left of the request that it cancelled."""
        with run.evaluating():
            while run.step() is not None:
                pass

    def _take_turn(self) -> None:
        if not self._turn.acquire(blocking=False):
            raise GenerationError("a turn of this session is running: end or close it first")

    @contextmanager
    def _taking_turn(self) -> Iterator[None]:
        self._take_turn()
        try:
            yield
        finally:
            self._turn.release()


def _checked(options: Any, known: frozenset[str]) -> Options:
    """Options that a session or one of its turns can have."""
    check_names(options, known - {"sequences"}, "a session" if "seed" in known else "a turn")
    checked: Options = options
    return checked

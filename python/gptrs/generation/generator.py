"""`Generator`: completions of prompts of any length: at once, as a stream, from many threads.

    prompts ─► requests ─► Rust sampling loop ◄─► engine (Rust or PyTorch) ; ids ─► text

A call is one call into Rust for all new tokens; a stream is the same loop, a step a call.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

import torch
from tqdm.auto import tqdm

from gptrs.engines.choice import check_engine
from gptrs.engines.vocabulary import vocab_size_of
from gptrs.errors import ConfigError
from gptrs.generation.completions import Completion, CompletionBuilder, to_completion
from gptrs.generation.runs import ActiveRuns, Backend, Run
from gptrs.generation.scoring import Score, score
from gptrs.generation.search import best_of, search_beams
from gptrs.generation.serving import Handle, Worker
from gptrs.generation.sessions import Session
from gptrs.generation.streaming import AsyncStream, Stream
from gptrs.model.facts import context_length_of
from gptrs.sampling.requests import (
    CALL_OPTION_NAMES,
    OPTION_NAMES,
    CallOptions,
    EngineName,
    Options,
    Request,
    RequestMaker,
    check_names,
    count,
)
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.prompts import has_many
from gptrs.weights.pretrained import from_pretrained, tokenizer_beside

if TYPE_CHECKING:
    from gptrs.text.prompts import Prompt

__all__ = ["Completion", "Generator", "Score"]

MAX_BATCH = 64
StreamT = TypeVar("StreamT", Stream[Any], AsyncStream[Any])


class Generator:
    """Continues prompts with a model.

    >>> gen = Generator(model)
    >>> gen("Hello, I am", 20, temperature=0.8, top_k=50, seed=1)[0].text

    Any number of threads may use it at once.

    Args:
        model: a GPTModel, or what `GPTModel.from_pretrained` reads (the folder of a checkpoint or a
            run, or of transformers' GPT-2); a causal language model of transformers; or any
            callable from ids, int64 [B, T], to logits [B, T, V]. All but the last keep a cache
            where that computes the same.
        tokenizer: ours, a `tiktoken.Encoding`, one of transformers', or any object with encode and
            decode. None: the one in the model's folder, else GPT-2's. The model may know more ids
            than the tokenizer (a vocabulary that was padded): those are never drawn.
        engine: what computes the logits. "native": Rust, on the weights of a GPTModel on the CPU,
            with as many threads as PyTorch has (`torch.set_num_threads`), but no more than can run
            at once; a sequence's logits are then the same to the last bit, whatever runs beside
            it. A model that Rust cannot run is refused by the first call. "torch": PyTorch.
            "auto": Rust where it computes what the model does, else PyTorch; `Completion.engine`
            says what it was, and why.
        dtype: what it computes in: a torch dtype, its name, "auto" for what the device likes best;
            None: the model's own. "int8": Rust, with weights of a byte each.
        int8_file: where those bytes are kept: mapped if the file is there, else packed and written
            there (a .safetensors). A file of other weights is refused.
        context_length: most tokens the model sees. None: as many as it was built for, or all where
            it has a memory (`memory_length`). A GPTModel whose positions have no end may be asked
            for more than it was built for, any other model for less. Needed for a callable.
        max_batch: most sequences at once; more wait their turn. None: 64, fewer where there is no
            memory for as many.
        compile: let `torch.compile` translate the model's step, where that is possible.
        max_queue: most submitted prompts that may wait.
    Raises:
        ConfigError: a setting is out of its range, the model does not say its context_length or
            takes fewer tokens than asked or gives another number of logits than it reads ids, or
            the tokenizer has ids that the model does not.
        CheckpointError: the folder has no model, or a damaged one.
        TokenizerError: the folder has a tokenizer that is not supported.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        engine: EngineName = "auto",
        dtype: torch.dtype | str | None = None,
        int8_file: str | Path | None = None,
        context_length: int | None = None,
        max_batch: int | None = None,
        compile: bool = False,  # noqa: A002  # torch's name
        max_queue: int = 1024,
    ) -> None:
        check_engine(engine)
        if isinstance(model, str | Path):
            tokenizer = tokenizer_beside(Path(model)) if tokenizer is None else tokenizer
            model = from_pretrained(model)
        if not callable(model):
            raise ConfigError(
                "a model is a GPTModel, a model of transformers, the folder of either, or a "
                f"function from ids to logits; found {model!r}"
            )
        self.model = model
        self.tokenizer = get_tokenizer("gpt2") if tokenizer is None else tokenizer
        self._settings = {
            "engine": engine,
            "dtype": dtype,
            "int8_file": int8_file,
            "context_length": context_length,
            "max_batch": max_batch,
            "compile": compile,
            "max_queue": max_queue,
        }
        self.context_length = context_length_of(model, context_length)
        self._backend = Backend(
            model,
            self.context_length,
            engine,
            dtype,
            None if int8_file is None else Path(int8_file),
            compile,
            max_batch=MAX_BATCH if max_batch is None else count("max_batch", max_batch, 1),
            is_fixed=max_batch is not None,
        )
        self._maker = RequestMaker(
            self.tokenizer, vocab_size=vocab_size_of(model), context_length=self.context_length
        )
        self._active = ActiveRuns()
        self._worker = Worker(self._backend, self.tokenizer, count("max_queue", max_queue, 1))
        # Also at the end of the program: a thread must not compute while Python goes away.
        self._finalizer = weakref.finalize(self, self._worker.close)

    def __call__(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_new_tokens: int,
        **options: Unpack[CallOptions],
    ) -> list[Completion]:
        """Completions of one prompt or many, `num_samples` each, prompt after prompt.

        Args:
            prompts: a text, a sequence of ids, or a list of these; lengths may differ.
            max_new_tokens: how many tokens a sequence gets at most.
            temperature, top_k, top_p, min_p, typical_p, repetition_penalty, frequency_penalty,
                presence_penalty, no_repeat_ngram_size, logit_bias, bad_words_ids, min_new_tokens,
                eos_token_id: see SamplingConfig. min_new_tokens bans all stop ids, unless
                eos_token_id says which.
            sampling: a SamplingConfig in place of these names, or a list of them, one a prompt.
            seed: one for all, or one a prompt; None: the SamplingConfig's, else fresh entropy,
                which the completion keeps. Sequence number and position go into each draw, so a
                sequence's tokens do not depend on its neighbours.
            sequences: the sequence numbers; None: 0, 1, 2, ... for all samples of all prompts.
            eos_id: ends a sequence. "auto": end-of-text, if the tokenizer has it; None: nothing.
            stop: texts and ids, one or several, that also end it. A text is found wherever it comes
                to stand in the new text, however it falls into tokens, and is not part of it.
            num_samples: sequences a prompt.
            best_of: draw this many a prompt, and return the num_samples whose tokens have the
                largest mean log-probability, the best first.
            num_beams: search instead of drawing, as transformers does: the num_samples best
                sequences a prompt that so many beams find. What shapes draws (temperature, top_k,
                seed, ...) then changes nothing; other settings are refused. length_penalty: scores
                are divided by the length to this power. early_stopping: end with the first
                num_beams finished sequences (True), when a better one is unlikely (False) or
                impossible ("never").
            logprobs: give each token's log-probability, and those of so many of the likeliest.
            choices: the whole new text is one of these texts.
            regex: the whole new text matches this pattern, if max_new_tokens allow it.
            overflow: past the context "slide" shows the model the newest context_length tokens, as
                the book does; "rebase" goes on from the newest half, which costs less; "stop" ends
                the sequence.
            progress: show a bar of the sequences that have ended.
        Raises:
            ConfigError: an option is out of its range, or does not go with another.
            GenerationError: an empty prompt, one that is too long for overflow="stop", no memory
                for the cache, or logits that nothing can be drawn from.
            TokenIdError: a prompt has an id outside the vocabulary.
            Anything the model raises, unchanged. The generator can be used afterwards.
        """
        check_names(options, CALL_OPTION_NAMES, "a call")
        num_samples = count("num_samples", options.get("num_samples", 1), 1)
        progress = bool(options.get("progress", False))
        if options.get("num_beams") is not None:
            return search_beams(
                self._backend, self._maker, prompts, max_new_tokens, options, num_samples
            )
        drawn = _num_drawn(options, num_samples)
        asked = cast(Options, {k: v for k, v in options.items() if k in OPTION_NAMES})
        if drawn > num_samples and asked.get("logprobs") is None:
            asked["logprobs"] = 0  # What the best are chosen by.
        requests = self._maker.make(prompts, max_new_tokens, asked, copies=drawn)
        completions = self._complete(requests, progress=progress)
        if drawn == num_samples:
            return completions
        has_logprobs = options.get("logprobs") is not None
        return best_of(completions, drawn, num_samples, keep_logprobs=has_logprobs)

    @overload
    def stream(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, prompts: str, max_new_tokens: int, **options: Unpack[Options]
    ) -> Stream[str]: ...
    @overload
    def stream(
        self, prompts: Sequence[Prompt] | Prompt, max_new_tokens: int, **options: Unpack[Options]
    ) -> Stream[tuple[int, str]]: ...
    def stream(
        self, prompts: Prompt | Sequence[Prompt], max_new_tokens: int, **options: Unpack[Options]
    ) -> Stream[str] | Stream[tuple[int, str]]:
        """The texts that a call would give, piece by piece, as soon as whole characters are there.

        Yields pieces of text for a single text, (prompt number, piece) otherwise. Options are those
        of a call for one sequence a prompt; they are checked at once. `close()`, from any thread,
        ends the run; `completions` has what there is.
        """
        requests = self._requests(prompts, max_new_tokens, options, "a stream")
        run = self._active.add(self._backend.start_with(requests))
        return Stream(run, requests, self.tokenizer, is_single=isinstance(prompts, str))

    @overload
    def astream(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, prompts: str, max_new_tokens: int, **options: Unpack[Options]
    ) -> AsyncStream[str]: ...
    @overload
    def astream(
        self, prompts: Sequence[Prompt] | Prompt, max_new_tokens: int, **options: Unpack[Options]
    ) -> AsyncStream[tuple[int, str]]: ...
    def astream(
        self, prompts: Prompt | Sequence[Prompt], max_new_tokens: int, **options: Unpack[Options]
    ) -> AsyncStream[str] | AsyncStream[tuple[int, str]]:
        """As `stream`, for `async for`: computed by the thread that `submit` uses, at once.

        Raises:
            QueueFullError: too many submitted prompts wait already.
        """
        requests = self._requests(prompts, max_new_tokens, options, "a stream")
        handles: list[Handle] = []
        try:
            handles += (self._submit(request) for request in requests)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return AsyncStream(handles, is_single=isinstance(prompts, str))

    def submit(self, prompt: Prompt, max_new_tokens: int, **options: Unpack[Options]) -> Handle:
        """Hands a prompt to a thread that continues all that are submitted, in one running batch.

        The result is that of a call with this prompt alone: its sequence number is 0, unless
        `sequences=[number]` says otherwise, and the engine's rounding may differ with the batch.
        The weights must not change while prompts run.

        Raises:
            QueueFullError: max_queue prompts wait already.
            GenerationError: the process was forked after the first prompt.
            As a call besides.
        """
        if has_many(prompt):
            raise ConfigError("submit takes one prompt; found a list of them")
        [request] = self._requests(prompt, max_new_tokens, options, "a submitted prompt")
        return self._submit(request)

    def session(self, **options: Unpack[Options]) -> Session:
        """A conversation that keeps its cache between turns. Options hold for every turn."""
        return Session(self._backend, self._maker, self._active, options)

    def score(self, texts: Prompt | Sequence[Prompt], *, stride: int | None = None) -> list[Score]:
        """How likely the model finds one text or many: log-likelihood, perplexity, bits per byte.

        What comes first in a text is given, and all that follows counts: so a text of one token
        has nothing to score, and with "<|endoftext|>" in front all of a text counts.

        Args:
            texts: a text, a sequence of ids, or a list of these; lengths may differ.
            stride: a text longer than the context is read in windows that begin so many tokens
                apart. A token counts in the first that has it, behind context_length - stride
                others at least. None: half of the context.
        Raises:
            ConfigError: stride is not in 1..context_length.
            GenerationError: a text has no tokens.
            TokenIdError: a text has an id outside the vocabulary.
        """
        return score(self._backend, self._maker.reader, texts, stride=stride)

    def cancel(self) -> None:
        """Ends whatever runs, at its next step, with what it has; from any thread.

        A beam search runs to its end.
        """
        self._active.cancel()
        self._worker.cancel()

    def close(self) -> None:
        """Ends what was submitted, and its thread. Calls and streams still work."""
        self._finalizer()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy is made anew, of a copy of the model: nothing that runs goes with it.
        return _make, (self.model, self.tokenizer, self._settings)

    def _submit(self, request: Request) -> Handle:
        return self._worker.submit(request, self)

    def _requests(
        self, prompts: Any, max_new_tokens: int, options: Options, what: str
    ) -> list[Request]:
        check_names(options, OPTION_NAMES, what)
        return self._maker.make(prompts, max_new_tokens, options)

    def _complete(self, requests: list[Request], *, progress: bool) -> list[Completion]:
        if not requests:
            return []
        run = self._active.add(self._backend.start_with(requests))
        if progress:
            return self._complete_step_by_step(run, requests)
        return [
            to_completion(request, output, self.tokenizer, run.engine)
            for request, output in zip(requests, run.run(), strict=True)
        ]

    def _complete_step_by_step(self, run: Run, requests: list[Request]) -> list[Completion]:
        builders = [CompletionBuilder(request, self.tokenizer, run.engine) for request in requests]
        num_tokens = 0
        with tqdm(total=len(requests), unit=" sequences", delay=0.2) as bar, run.evaluating():
            while (events := run.step()) is not None:
                for event in events:
                    builders[event[0]].take(event)
                    num_tokens += event[1] is not None
                    if event[4] is not None:
                        bar.update()
                bar.set_postfix(tokens=num_tokens, refresh=False)
        return [builder.completion() for builder in builders]


def _make(model: Any, tokenizer: Any, settings: dict[str, Any]) -> Generator:
    return Generator(model, tokenizer, **settings)


def _num_drawn(options: CallOptions, num_samples: int) -> int:
    """How many sequences a prompt gets, before the best are chosen."""
    asked = options.get("best_of")
    if asked is None:
        return num_samples
    if count("best_of", asked, 1) < num_samples:
        raise ConfigError(f"best_of is at least num_samples, {num_samples}; found {asked}")
    return asked

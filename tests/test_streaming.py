"""Streams: what a call writes, piece by piece, in this thread and for asyncio."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
import torch

import gptrs
from gptrs import Generator
from gptrs.errors import QueueFullError
from gptrs.text.stream import BytesStream, DecodedStream

TOKENIZER = gptrs.get_tokenizer("gpt2")
PROMPTS = ["Hello", "The cat sat on the mat and", "a", "one two three " * 9]


def test_a_stream_gives_the_text_of_the_call(gen):
    [whole] = gen("Hello", 30, seed=7)
    pieces = list(gen.stream("Hello", 30, seed=7))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 15


def test_a_stream_of_many_tells_which_prompt_a_piece_belongs_to(gen):
    whole = gen(PROMPTS, 12, seed=9)
    texts = [""] * len(PROMPTS)
    for index, piece in gen.stream(PROMPTS, 12, seed=9):
        texts[index] += piece
    assert texts == [completion.text for completion in whole]


def test_a_stream_can_be_closed_and_the_generator_goes_on(gen):
    stream = gen.stream("Hello", 1000, seed=1)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert gen("Hello", 3, temperature=0)


@pytest.mark.parametrize("seed", range(20))
def test_no_piece_ends_inside_a_character(gen, seed):
    # Random tokens: most characters that are not ASCII come in several.
    bias = dict.fromkeys(range(94, 256), 4.0)
    [whole] = gen("Hello", 40, seed=seed, logit_bias=bias)
    pieces = list(gen.stream("Hello", 40, seed=seed, logit_bias=bias))
    assert "".join(pieces) == whole.text
    written = [piece.encode() for piece in pieces]
    assert all(pieces)
    assert b"".join(written).decode() == whole.text


def answering(token_ids):
    """A model that goes on with these tokens, one after the other, whatever came before."""

    def model(ids):
        logits = torch.zeros(*ids.shape, 50257)
        for column in range(ids.shape[1]):
            place = max(0, column)
            logits[:, column, token_ids[min(place, len(token_ids) - 1)]] = 1e6
        return logits

    return Generator(model, context_length=512)


def test_a_character_of_several_tokens_comes_in_one_piece():
    text = "Hi 🤖, naïve 漢字!"
    ids = TOKENIZER.encode(text)
    gen = answering(ids)
    pieces = list(gen.stream([0], len(ids), temperature=0))
    assert "".join(piece for _, piece in pieces) == text
    assert len(pieces) < len(ids)
    assert not any("\ufffd" in piece for _, piece in pieces)


def test_no_part_of_a_stop_text_is_let_out(gen):
    for seed in range(20):
        [free] = gen("Hello", 30, seed=seed, eos_id=None)
        stop = free.text[len(free.text) // 2 :][:6]
        if "\ufffd" in stop:
            continue
        expected = free.text[: free.text.index(stop)]
        stream = gen.stream("Hello", 30, seed=seed, eos_id=None, stop=stop)
        assert "".join(stream) == expected
        assert stream.completions == gen("Hello", 30, seed=seed, eos_id=None, stop=stop)


def test_what_was_held_back_comes_when_the_stop_text_does_not(gen):
    [free] = gen("Hello", 10, seed=1, eos_id=None)
    never = free.text[-3:] + "\x00"
    assert "".join(gen.stream("Hello", 10, seed=1, eos_id=None, stop=never)) == free.text


def test_a_stream_says_at_its_end_what_a_call_would(gen):
    stream = gen.stream(PROMPTS, 9, seed=4, logprobs=2)
    list(stream)
    assert stream.completions == gen(PROMPTS, 9, seed=4, logprobs=2)


def test_a_stream_closed_from_another_thread_ends_within_a_step(gen):
    stream = gen.stream("Hello", 1_000_000, seed=1, eos_id=None)
    timer = threading.Timer(0.2, stream.close)
    timer.start()
    text = "".join(stream)
    timer.join()
    [completion] = stream.completions
    assert completion.finish_reason == "cancelled"
    assert completion.text.startswith(text)
    [whole] = gen("Hello", 5, seed=1, eos_id=None)
    assert completion.token_ids[:5] == whole.token_ids


def test_a_with_statement_closes_a_stream(gen):
    with gen.stream("Hello", 1_000_000, seed=1) as stream:
        next(stream)
    assert list(stream) == []


def test_cancel_ends_a_stream_and_keeps_what_it_wrote(gen):
    stream = gen.stream("Hello", 1_000_000, seed=1, eos_id=None)
    first = next(stream)
    gen.cancel()
    text = first + "".join(stream)
    [completion] = stream.completions
    assert completion.finish_reason == "cancelled"
    assert completion.text == text


def test_a_dropped_stream_lets_its_cache_go(gen):
    stream = gen.stream("Hello", 100)
    next(stream)
    run = weakref.ref(stream._run)
    del stream
    gc.collect()
    assert run() is None


def collect(stream):
    async def pieces():
        return [piece async for piece in stream()]

    return asyncio.run(pieces())


def test_asyncio_gets_what_a_stream_gives(gen):
    assert "".join(collect(lambda: gen.astream("Hello", 30, seed=7))) == "".join(
        gen.stream("Hello", 30, seed=7)
    )
    texts = [""] * len(PROMPTS)
    for index, piece in collect(lambda: gen.astream(PROMPTS, 12, seed=9)):
        texts[index] += piece
    assert texts == [completion.text for completion in gen(PROMPTS, 12, seed=9)]


def test_many_async_streams_share_the_worker(gen):
    async def text(number):
        stream = gen.astream(PROMPTS[number % 4], 10, seed=number)
        return "".join([piece async for piece in stream])

    async def all_texts():
        return await asyncio.gather(*(text(number) for number in range(20)))

    expected = [gen(PROMPTS[number % 4], 10, seed=number)[0].text for number in range(20)]
    assert asyncio.run(all_texts()) == expected


def test_the_event_loop_goes_on_while_a_stream_is_computed(gen):
    async def count():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        async for _ in gen.astream("Hello", 200, seed=1, eos_id=None):
            pass
        ticker.cancel()
        return ticks

    assert asyncio.run(count()) > 3


def test_a_cancelled_task_ends_its_sequence(gen):
    async def cancelled():
        stream = gen.astream("Hello", 1_000_000, seed=1, eos_id=None)

        async def consume():
            async for _ in stream:
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    stream = asyncio.run(cancelled())
    assert ended(stream).finish_reason == "cancelled"
    assert gen.submit("Hello", 5, seed=1).result(10) == gen("Hello", 5, seed=1)[0]


def ended(stream):
    """A stream's completion, once the worker has heard that it was cancelled."""
    [handle] = stream._handles
    return handle.result(10)


def test_an_async_stream_that_is_closed_or_dropped_ends(gen):
    async def first_of_two():
        stream = gen.astream("Hello", 1_000_000, seed=1, eos_id=None)
        async for _ in stream:
            break
        await stream.aclose()
        assert [piece async for piece in stream] == []
        dropped = gen.astream("Hello", 1_000_000, seed=1, eos_id=None)
        handles = dropped._handles
        async for _ in dropped:
            break
        del dropped
        return stream, handles

    stream, [handle] = asyncio.run(first_of_two())
    assert ended(stream).finish_reason == "cancelled"
    assert handle.result(10).finish_reason == "cancelled"


def test_an_exception_of_the_model_ends_an_async_stream():
    class BrokenError(Exception):
        pass

    calls = []

    def model(ids):
        calls.append(ids.shape)
        if len(calls) == 3:
            raise BrokenError
        return torch.zeros(*ids.shape, 50257)

    gen = Generator(model, context_length=8)
    with pytest.raises(BrokenError):
        collect(lambda: gen.astream("Hello", 9))


def test_a_full_queue_is_said_at_the_call():
    def slow(ids):
        time.sleep(0.02)
        return torch.zeros(*ids.shape, 50257)

    gen = Generator(slow, context_length=8, max_batch=1, max_queue=2)
    handles = [gen.submit("Hello", 1000)]
    with pytest.raises(QueueFullError, match="2 requests wait"):
        gen.astream(["a"] * 8, 1000)
    assert not handles[0].done()
    gen.cancel()
    assert handles[0].result(10).finish_reason == "cancelled"
    gen.close()


def test_a_tokenizer_that_only_decodes_is_streamed_by_what_it_adds():
    class Spaced:
        """Writes a space before every word but the first, and half characters as U+FFFD."""

        words = ("Hello", "world", "\ufffd", "!")

        def decode(self, ids):
            return " ".join(self.words[token] for token in ids).replace(" \ufffd \ufffd", " é")

    stream = DecodedStream(Spaced())
    ids = [0, 1, 2, 2, 3, 1]
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert pieces == ["Hello", " world", "", " é", " !", " world", ""]
    assert "".join(pieces) == Spaced().decode(ids)
    cut = DecodedStream(Spaced())
    assert [cut.push(0), cut.push(2), cut.finish()] == ["Hello", "", " \ufffd"]


def test_bytes_wait_for_the_rest_of_their_character():
    stream = BytesStream()
    assert [stream.push(b"a\xc3"), stream.push(b"\xa9b\xe6"), stream.finish()] == [
        "a",
        "éb",
        "\ufffd",
    ]

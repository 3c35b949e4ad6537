"""Submitted prompts: from many threads, joining and leaving a running batch."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from gptrs import Generator, GPTModel
from gptrs.errors import GenerationError, QueueFullError
from gptrs.generation.runs import Run

PROMPTS = ["Hello", "The cat sat on the mat and", "a", "one two three " * 9]
# Longer than any of these takes, so that a hang is a failure.
PATIENCE_S = 30


@pytest.fixture
def gen(model):
    gen = Generator(model)
    yield gen
    gen.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_submitted_prompt_gets_what_a_call_gives(gen, seed):
    settings = {"temperature": 0.7 + seed / 20, "top_k": 40, "logprobs": 1}
    handle = gen.submit(PROMPTS[seed % 4], 12, seed=seed, sequences=[seed], **settings)
    [expected] = gen(PROMPTS[seed % 4], 12, seed=seed, sequences=[seed], **settings)
    found = handle.result(PATIENCE_S)
    assert found.token_ids == expected.token_ids
    assert (found.text, found.sequence) == (expected.text, seed)
    assert handle.done()


def test_prompts_of_many_threads_share_a_batch(model):
    sizes = []

    class Watched(GPTModel):
        def forward(self, in_idx, **options):
            sizes.append(len(in_idx))
            return super().forward(in_idx, **options)

    watched = Watched(model.cfg).eval()
    watched.load_state_dict(model.state_dict())
    gen = Generator(watched)
    expected = [gen(PROMPTS[n % 4], 30, seed=n, eos_id=None)[0].token_ids for n in range(12)]
    sizes.clear()
    found = {}

    def work(number):
        handle = gen.submit(PROMPTS[number % 4], 30, seed=number, eos_id=None)
        found[number] = handle.result(PATIENCE_S).token_ids

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gen.close()
    assert [found[number] for number in range(12)] == expected
    assert max(sizes) > 1


def test_a_handle_gives_the_text_as_it_is_written(gen):
    [expected] = gen("Hello", 20, seed=5)
    handle = gen.submit("Hello", 20, seed=5)
    pieces = list(handle)
    assert "".join(pieces) == expected.text
    assert len(pieces) > 10
    assert handle.result(0).text == expected.text
    assert list(handle) == []


def test_a_result_that_is_not_there_in_time_is_a_timeout(gen):
    handle = gen.submit("Hello", 10_000_000, eos_id=None)
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
        handle.result(0.05)
    assert not handle.done()
    handle.cancel()
    completion = handle.result(PATIENCE_S)
    assert completion.finish_reason == "cancelled"
    assert completion.token_ids
    handle.cancel()


def test_cancelling_one_leaves_the_others_alone(gen):
    long = gen.submit("Hello", 10_000_000, seed=1, eos_id=None)
    other = gen.submit("Goodbye", 200, seed=2, eos_id=None)
    long.cancel()
    assert (
        other.result(PATIENCE_S).token_ids == gen("Goodbye", 200, seed=2, eos_id=None)[0].token_ids
    )
    assert long.result(PATIENCE_S).finish_reason == "cancelled"


def test_a_waiting_prompt_can_be_cancelled(model):
    gen = Generator(model, max_batch=1)
    first = gen.submit("Hello", 10_000_000, eos_id=None)
    waiting = gen.submit("Hello", 5)
    waiting.cancel()
    completion = waiting.result(PATIENCE_S)
    assert (completion.finish_reason, completion.token_ids) == ("cancelled", [])
    assert not first.done()
    gen.close()


def test_a_full_queue_says_so_and_takes_more_later(model):
    gen = Generator(model, max_batch=1, max_queue=2)
    running = gen.submit("Hello", 10_000_000, eos_id=None)
    next(iter(running))  # It has its place in the batch.
    waiting = [gen.submit("Hello", 3, seed=1) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        gen.submit("Hello", 3)
    running.cancel()
    results = [handle.result(PATIENCE_S) for handle in waiting]
    assert results == gen("Hello", 3, seed=1) * 2
    assert gen.submit("Hello", 3, seed=1).result(PATIENCE_S) == results[0]
    gen.close()


def test_a_models_exception_reaches_everyone_it_concerned():
    class BrokenError(Exception):
        pass

    broken = threading.Event()

    def model(ids):
        time.sleep(0.002)
        if broken.is_set():
            broken.clear()
            raise BrokenError("the model broke")
        return torch.zeros(*ids.shape, 50257)

    gen = Generator(model, context_length=8, max_batch=3)
    handles = [gen.submit("Hello", 10_000_000, eos_id=None) for _ in range(3)]
    for handle in handles:
        next(iter(handle))
    waits = gen.submit("Hello", 4, seed=1, eos_id=None)
    broken.set()
    for handle in handles:
        with pytest.raises(BrokenError, match="the model broke"):
            handle.result(PATIENCE_S)
        with pytest.raises(BrokenError):
            list(handle)
    # Who only waited was not concerned.
    assert len(waits.result(PATIENCE_S).token_ids) == 4
    assert gen.submit("Hello", 2, eos_id=None).result(PATIENCE_S).finish_reason == "length"
    gen.close()


def test_logits_that_nothing_can_be_drawn_from_end_their_own_prompt_alone():
    def model(ids):
        logits = torch.zeros(*ids.shape, 50257)
        logits[(ids == 13).any(-1)] = float("nan")
        return logits

    gen = Generator(model, context_length=8)
    good = gen.submit([5], 200, eos_id=None, logit_bias={13: float("-inf")})
    bad = gen.submit([13], 5)
    with pytest.raises(GenerationError, match="NaN"):
        bad.result(PATIENCE_S)
    assert len(good.result(PATIENCE_S).token_ids) == 200
    gen.close()


def test_changed_weights_are_used_by_the_next_prompt(model, gen):
    before = gen.submit("Hello", 6, temperature=0, eos_id=None).result(PATIENCE_S)
    kept = model.tok_emb.weight.detach().clone()
    with torch.no_grad():
        model.tok_emb.weight.mul_(-1)
    try:
        [expected] = gen("Hello", 6, temperature=0, eos_id=None)
        after = gen.submit("Hello", 6, temperature=0, eos_id=None).result(PATIENCE_S)
    finally:
        with torch.no_grad():
            model.tok_emb.weight.copy_(kept)
    assert after.token_ids == expected.token_ids != before.token_ids


def test_the_worker_is_parked_while_nothing_runs(gen, monkeypatch):
    steps = []
    step = Run.step
    monkeypatch.setattr(Run, "step", lambda run: steps.append(1) or step(run))
    gen.submit("Hello", 3, eos_id=None).result(PATIENCE_S)
    time.sleep(0.1)
    # One a token; and at most one more, which finds that nothing is left.
    assert len(steps) <= 4
    gen.submit("Hello", 3, eos_id=None).result(PATIENCE_S)


def test_a_closed_generator_takes_no_prompts_but_still_answers_calls(model):
    gen = Generator(model)
    running = gen.submit("Hello", 10_000_000, eos_id=None)
    gen.close()
    assert running.done()
    with pytest.raises(GenerationError, match="closed"):
        running.result(PATIENCE_S)
    with pytest.raises(GenerationError, match="the generator is closed"):
        gen.submit("Hello", 3)
    assert gen("Hello", 3)
    gen.close()


def num_workers():
    return sum(thread.name == "gptrs" for thread in threading.enumerate())


def test_the_worker_starts_with_the_first_prompt_and_ends_with_its_generator(model):
    others = num_workers()
    gen = Generator(model)
    gen("Hello", 2)
    assert num_workers() == others
    handle = gen.submit("Hello", 5)
    assert num_workers() == others + 1
    del gen
    # The handle is still somebody's.
    assert handle.result(PATIENCE_S).text
    del handle
    deadline = time.monotonic() + PATIENCE_S
    while num_workers() > others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_workers() == others


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_instead_of_waiting_for_ever(gen):
    gen.submit("Hello", 3).result(PATIENCE_S)
    child = os.fork()
    if child == 0:
        try:
            gen.submit("Hello", 3)
        except GenerationError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert gen.submit("Hello", 3).result(PATIENCE_S)


def test_a_program_may_end_while_prompts_run():
    program = """
import torch
from gptrs import Generator
gen = Generator(lambda ids: torch.zeros(*ids.shape, 50257), context_length=8)
handle = gen.submit("Hello", 10_000_000, eos_id=None)
next(iter(handle))
print("still running")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "still running\n"

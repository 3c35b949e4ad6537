"""Sessions: turns that read only what is new."""

import threading

import pytest
import torch

import gptrs
from gptrs import Generator, GPTModel
from gptrs.errors import GenerationError

TOKENIZER = gptrs.get_tokenizer("gpt2")
CONFIG = {
    "vocab_size": 50257,
    "context_length": 64,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TURNS = ["Hello there", " What is", " and the cat sat on", " a", " the end"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    return GPTModel(CONFIG).eval()


@pytest.fixture(scope="module")
def gen(model):
    return Generator(model)


@pytest.fixture
def num_read(monkeypatch):
    """How many tokens the engines have been given, call after call."""
    import gptrs.generation.runs

    make, counts = gptrs.generation.runs.make_engine, []

    def counting(*arguments, **options):
        options |= {"engine": "torch"}  # Rust calls nobody back.
        engine = make(*arguments, **options)
        step, extend = engine.step, engine.extend
        engine.step = lambda slots: counts.append(slots) or step(slots)
        engine.extend = lambda slots, new, wanted: (
            counts.append(sum(new)) or extend(slots, new, wanted)
        )
        return engine

    monkeypatch.setattr(gptrs.generation.runs, "make_engine", counting)
    return counts


@pytest.mark.parametrize("seed", range(20))
def test_a_turn_gets_what_a_call_gets_for_all_that_was_said(gen, seed):
    session = gen.session(seed=seed, top_k=30)
    said = []
    for number, turn in enumerate(TURNS):
        said += TOKENIZER.encode(turn)
        [expected] = gen([said], 6, seed=seed, top_k=30)
        if number % 2:
            stream = session.stream(turn, 6)
            assert "".join(stream) == expected.text
            [completion] = stream.completions
        else:
            completion = session.send(turn, 6)
        assert completion.token_ids == expected.token_ids
        said += expected.token_ids
        assert session.token_ids == said


def test_a_turn_reads_its_new_tokens_only(gen, num_read):
    session = gen.session(seed=1)
    for number, turn in enumerate(TURNS):
        num_read.clear()
        before = len(session.token_ids)
        session.send(turn, 5, eos_id=None)
        new = len(session.token_ids) - before
        # Its prompt and its first 4 tokens, and the last token of the turn before.
        assert sum(num_read) == new - 1 + (number > 0)
        assert len(num_read) == 5


def test_a_long_session_slides_as_a_call_does(gen):
    session = gen.session(temperature=0, eos_id=None)
    said = []
    for turn in TURNS * 3:
        said += TOKENIZER.encode(turn)
        [expected] = gen([said], 4, temperature=0, eos_id=None)
        assert session.send(turn, 4).token_ids == expected.token_ids
        said += expected.token_ids
    assert len(said) > CONFIG["context_length"]


def test_options_of_a_turn_stand_above_those_of_the_session(gen):
    session = gen.session(temperature=0, eos_id=None, logprobs=1)
    assert len(session.send("Hello", 3).logprobs) == 3
    assert session.send("Hello", 3, logprobs=None).logprobs is None
    with pytest.raises(TypeError, match="a turn has no option 'seed'"):
        session.send("Hello", 3, seed=1)
    with pytest.raises(TypeError, match="a session has no option 'num_beams'"):
        gen.session(num_beams=2)


def test_a_closed_stream_counts_as_far_as_it_came(gen):
    session = gen.session(seed=3, eos_id=None)
    stream = session.stream("Hello", 50)
    next(stream)
    next(stream)
    stream.close()
    [part] = stream.completions
    said = TOKENIZER.encode("Hello") + part.token_ids
    assert session.token_ids == said
    [expected] = gen([said + TOKENIZER.encode(" so")], 5, seed=3, eos_id=None)
    assert session.send(" so", 5).token_ids == expected.token_ids


def test_one_turn_at_a_time(gen):
    session = gen.session()
    stream = session.stream("Hello", 5)
    with pytest.raises(GenerationError, match="a turn of this session is running"):
        session.send("Hello", 5)
    del stream
    assert session.send("Hello", 5)


def test_a_turn_that_fails_leaves_nothing_behind(model):
    class BrokenError(Exception):
        pass

    fails = threading.Event()

    class Fails(GPTModel):
        def forward(self, in_idx, **options):
            if fails.is_set():
                raise BrokenError
            return super().forward(in_idx, **options)

    failing = Fails(CONFIG).eval()
    failing.load_state_dict(model.state_dict())
    gen = Generator(failing)
    session = gen.session(temperature=0, eos_id=None)
    session.send("Hello", 3)
    said = session.token_ids
    fails.set()
    with pytest.raises(BrokenError):
        session.send(" you", 3)
    with pytest.raises(BrokenError):
        list(session.stream(" you", 3))
    with pytest.raises(GenerationError, match="no tokens"):
        session.send("", 3)
    fails.clear()
    assert session.token_ids == said
    [expected] = gen([said + TOKENIZER.encode(" you")], 3, temperature=0, eos_id=None)
    assert session.send(" you", 3).token_ids == expected.token_ids


def test_changed_weights_are_used_by_the_next_turn(model, gen):
    session = gen.session(temperature=0, eos_id=None)
    session.send("Hello", 4)
    said = session.token_ids
    kept = model.tok_emb.weight.detach().clone()
    with torch.no_grad():
        model.tok_emb.weight.mul_(-1)
    try:
        [expected] = gen([said + TOKENIZER.encode(" you")], 4, temperature=0, eos_id=None)
        assert session.send(" you", 4).token_ids == expected.token_ids
    finally:
        with torch.no_grad():
            model.tok_emb.weight.copy_(kept)


def test_a_closed_session_begins_anew(gen):
    session = gen.session(temperature=0, eos_id=None)
    first = session.send("Hello", 4)
    session.close()
    assert session.token_ids == []
    assert session.send("Hello", 4).token_ids == first.token_ids


def test_cancel_ends_a_turn(gen):
    session = gen.session(eos_id=None)
    timer = threading.Timer(0.1, gen.cancel)
    timer.start()
    completion = session.send("Hello", 1_000_000)
    timer.join()
    assert completion.finish_reason == "cancelled"
    assert session.send(" so", 2).finish_reason == "length"

"""Scores of texts, against torch's cross entropy of the model's own logits."""

import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
import transformers

from gptrs import Generator, GPTModel, get_tokenizer
from gptrs.engines.native_engine import NativeEngine
from gptrs.errors import ConfigError, GenerationError, TokenIdError
from gptrs.generation import scoring

TEXTS = ["Every effort moves you forward.", "Grüße, 你好, мир! 🙂🙂", "a", "one two three " * 9]


def make_model(seed=1, **changes):
    torch.manual_seed(seed)
    config = {
        "vocab_size": 50257,
        "context_length": 16,
        "emb_dim": 12,
        "n_heads": 2,
        "n_layers": 1,
        "drop_rate": 0.1,
    }
    return GPTModel(config | changes)


class Ids:
    """A tokenizer of a small vocabulary, in which each id is one letter."""

    n_vocab = 53

    def encode(self, text):
        return [ord(letter) - 65 for letter in text]

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


@torch.no_grad()
def loss_by_hand(model, ids, window, stride):
    """Minus the log-likelihood: each target in the first window that has it."""
    inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    total, counted, first = 0.0, 0, 0
    while counted < len(targets):
        end = min(first + window, len(targets))
        logits = model(inputs[None, first:end])
        logits = getattr(logits, "logits", logits)[0, counted - first :]
        total += F.cross_entropy(logits.float(), targets[counted:end], reduction="sum").item()
        counted, first = end, first + stride
    return total


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("seed", range(20))
def test_log_likelihoods_are_torchs_cross_entropy(seed, engine):
    rng = random.Random(seed)
    kind = ("learned", "rope", "alibi", "sinusoidal", "none")[seed % 5]
    model = make_model(seed, vocab_size=53, pos=kind, context_length=rng.randint(2, 24))
    gen = Generator(model, Ids(), engine=engine)
    lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 7))]
    texts = [[rng.randrange(53) for _ in range(length)] for length in lengths]
    window = model.cfg.context_length
    stride = rng.randint(1, window)
    scores = gen.score(texts, stride=stride)
    model.eval()
    for ids, score in zip(texts, scores, strict=True):
        loss = loss_by_hand(model, ids, window, stride)
        assert score.log_likelihood == pytest.approx(-loss, abs=1e-3)
        assert score.num_tokens == len(ids) - 1
        assert score.engine.startswith(engine)


def test_a_text_that_fits_is_the_books_loss():
    model = make_model()
    gen = Generator(model)
    for text, score in zip(TEXTS, gen.score(TEXTS, stride=16), strict=True):
        ids = get_tokenizer("gpt2").encode(text)
        if 1 < len(ids) <= 17:
            with torch.no_grad():
                logits = model.eval()(torch.tensor([ids[:-1]]))
            loss = F.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[1:]))
            assert score.perplexity == pytest.approx(loss.exp().item(), rel=1e-4)


def test_bits_are_counted_by_the_bytes_that_the_scored_tokens_stand_for():
    model = make_model()
    for tokenizer in (get_tokenizer("gpt2"), get_tokenizer("gpt2").as_tiktoken()):
        for text, score in zip(TEXTS, Generator(model, tokenizer).score(TEXTS), strict=True):
            first = tokenizer.encode(text)[:1]
            num_bytes = len(text.encode()) - len(tokenizer.decode_bytes(first))
            assert score.num_bytes == num_bytes
            if num_bytes:
                bits = -score.log_likelihood / math.log(2) / num_bytes
                assert score.bits_per_byte == pytest.approx(bits)
    with_start = Generator(model).score(f"<|endoftext|>{TEXTS[1]}")
    assert [each.num_bytes for each in with_start] == [len(TEXTS[1].encode())]


def test_tokenizers_that_know_texts_alone_count_the_same_bytes(tmp_path):
    get_tokenizer("gpt2").save(tmp_path / "tokenizer.json")
    file = str(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=file)
    model = make_model()
    # Tokens end in the middle of characters, before and behind the first that counts.
    texts = [*TEXTS, "🙂 x", "你好 there", "a<|endoftext|>b"]
    ids = [get_tokenizer("gpt2").encode(text, allowed_special="all") for text in texts]
    ours = Generator(model).score(ids)
    assert [score.num_bytes for score in Generator(model, theirs).score(ids)] == [
        score.num_bytes for score in ours
    ]


def test_a_text_of_one_token_has_nothing_to_score():
    [score] = Generator(make_model()).score("a")
    assert (score.log_likelihood, score.num_tokens, score.num_bytes) == (0.0, 0, 0)
    assert math.isnan(score.perplexity)
    assert math.isnan(score.bits_per_byte)


def test_one_text_ids_and_none_are_taken_as_a_call_takes_them():
    gen = Generator(make_model())
    [score] = gen.score(TEXTS[0])
    assert gen.score([TEXTS[0]]) == [score]
    assert gen.score(torch.tensor(get_tokenizer("gpt2").encode(TEXTS[0]))) == [score]
    assert gen.score([]) == []


def test_a_likelier_text_has_the_higher_score():
    def always_seven(ids):
        return F.one_hot(torch.full(ids.shape, 7), 53) * 9.0

    gen = Generator(always_seven, Ids(), context_length=8)
    [likely, unlikely] = gen.score([[1, 7, 7], [1, 2, 3]])
    assert likely.perplexity < 1.1 < 1000 < unlikely.perplexity


def test_callables_and_models_of_transformers_are_scored_too():
    model = make_model(3, context_length=12).eval()
    config = transformers.GPT2Config(
        vocab_size=50257, n_positions=12, n_embd=12, n_layer=1, n_head=2
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    tokenizer = get_tokenizer("gpt2")
    for other, settings in ((theirs, {}), (lambda ids: model(ids), {"context_length": 12})):
        scores = Generator(other, **settings).score(TEXTS, stride=5)
        for text, score in zip(TEXTS, scores, strict=True):
            loss = loss_by_hand(other, tokenizer.encode(text), 12, 5)
            assert score.log_likelihood == pytest.approx(-loss, abs=1e-3)


def test_a_long_window_goes_through_in_pieces_and_beside_others():
    model = make_model(4, vocab_size=50257, context_length=600, pos="rope").eval()
    gen = Generator(model, max_batch=3)
    rng = random.Random(1)
    texts = [
        [rng.randrange(50257) for _ in range(length)] for length in (700, 3, 5, 170, 9, 2, 330)
    ]
    for ids, score in zip(texts, gen.score(texts, stride=300), strict=True):
        assert score.log_likelihood == pytest.approx(-loss_by_hand(model, ids, 600, 300), rel=1e-5)


def test_a_memory_of_segments_reads_a_text_without_windows():
    model = make_model(5, vocab_size=53, pos="transformer_xl", memory_length=8).eval()
    ids = [i * 7 % 53 for i in range(50)]
    memory = model.new_cache(1)
    parts = torch.tensor([ids[:-1]]).split(model.cfg.context_length, dim=1)
    logits = torch.cat([model(part, cache=memory) for part in parts], dim=1)[0]
    loss = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    [score] = Generator(model, Ids()).score([ids])
    assert score.log_likelihood == pytest.approx(-loss.item(), rel=1e-5)


def test_scoring_int8_is_near():
    model = make_model(6)
    [plain] = Generator(model).score(TEXTS[3])
    [packed] = Generator(model, dtype="int8").score(TEXTS[3])
    assert packed.engine.startswith("native int8")
    assert packed.log_likelihood == pytest.approx(plain.log_likelihood, rel=0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_forked_child_scores_as_its_parent_does(dtype):
    program = f"""
import os, torch
from gptrs import Generator, GPTModel
torch.set_num_threads(2)
torch.randn(500, 500) @ torch.randn(500, 500)  # PyTorch's threads are there.
torch.randn(10**6).exp()
torch.manual_seed(0)
model = GPTModel({{"vocab_size": 50257, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 1}})
gen = Generator(model, dtype={dtype!r})
texts = [[i * 7919 % 50257 for i in range(n, n + 60)] for n in range(9)]
expected = gen.score(texts)
child = os.fork()
if not child:
    os._exit(gen.score(texts) != expected)
assert os.waitpid(child, 0)[1] == 0
"""  # noqa: E501
    subprocess.run([sys.executable, "-c", program], timeout=100, check=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_is_heard_while_a_long_text_is_read(monkeypatch):
    """Between two calls of the engine, each of which takes a moment only, on any machine."""
    model = make_model(7, vocab_size=53, context_length=4096, pos="rope").eval()
    calls, extend = [], NativeEngine.extend

    def slow(engine, slots, counts, wanted):
        calls.append(sum(counts))
        time.sleep(sum(counts) * 1e-3)  # As a model of a billion weights would take.
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return extend(engine, slots, counts, wanted)

    monkeypatch.setattr(NativeEngine, "extend", slow)
    gen = Generator(model, Ids())
    with pytest.raises(KeyboardInterrupt):
        gen.score([[i % 53 for i in range(4000)]])
    assert len(calls) == 6
    monkeypatch.undo()
    assert gen.score([[1, 2, 3]])[0].num_tokens == 2


def test_calls_are_as_long_as_people_wait_without_noticing(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: clock[0])
    pace = scoring._Pace(64, 2048, is_measured=True)

    def read(num_tokens, seconds):
        with pace.timing(num_tokens):
            clock[0] += seconds
        return pace.most

    assert read(64, 0.001) == 128  # At most twice as long as one that was timed.
    assert read(3, 0.001) == 128  # A short one says nothing.
    assert [read(pace.most, 0.01) for _ in range(6)] == [256, 512, 1024, 2048, 2048, 2048]
    assert read(2048, 0.4) == 1024
    assert read(1024, 100.0) == 32


def test_scoring_leaves_the_model_as_it_was_and_draws_nothing():
    model = make_model()
    state = torch.get_rng_state()
    scores = [Generator(model).score(TEXTS) for _ in range(2)]
    assert scores[0] == scores[1]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_scored_is_refused():
    gen = Generator(make_model(vocab_size=53), Ids())
    for stride in (0, 17, -1, 2.5, "4", True):
        with pytest.raises(ConfigError, match="stride is 1 to the context_length, 16"):
            gen.score([[1, 2]], stride=stride)
    with pytest.raises(TokenIdError, match=r"token id 53 at \[1, 2\] is outside 0..52"):
        gen.score([[1, 2], [1, 2, 53]])
    with pytest.raises(GenerationError, match="prompt 1 has no tokens"):
        gen.score(["AB", ""])
    with pytest.raises(GenerationError, match="prompts are a text"):
        gen.score(5)

"""Generation with every kind of positions: within the window, past it, and without an end."""

import random

import pytest
import torch

from gptrs import Generator, GPTModel, generate_text_simple
from gptrs.errors import ConfigError
from gptrs.generation import runs
from gptrs.model.facts import NO_END

VOCAB, CONTEXT = 53, 12
ENDLESS = ["sinusoidal", "rope", "alibi", "t5", "transformer_xl", "none"]
KINDS = ["learned", "relative_key", "relative_key_query", *ENDLESS]


class Letters:
    """A tokenizer, since a Generator has one; the prompts here are ids."""

    n_vocab = VOCAB

    def encode(self, text):
        return [ord(letter) - 65 for letter in text]

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


def make_model(seed, pos, **changes):
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "emb_dim": 24,
        "n_heads": 3,
        "n_layers": 2,
        "pos": pos,
    }
    model = GPTModel(config | changes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)  # As initialised, some kinds hardly have an effect.
    return model


def make_generator(model, **options):
    """Of PyTorch: what Rust computes has its own tests."""
    return Generator(model, Letters(), engine="torch", **options)


def make_prompts(seed, count=4, longest=9):
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@torch.no_grad()
def greedy(model, prompt, num_new, window, overflow="slide"):
    """The book's loop without a cache, and what past the window is another way to go on."""
    ids, first = list(prompt), max(0, len(prompt) - window)
    for _ in range(num_new):
        if len(ids) - first > window:
            if overflow == "stop":
                break
            first = len(ids) - (window // 2 if overflow == "rebase" else window)
        ids.append(int(model(torch.tensor([ids[first:]]))[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def are_greedy(model, prompts, completions, window):
    """Whether every new token is the likeliest one after the newest `window` that came before it.

    As `greedy` would find, in two passes a prompt.
    """
    for prompt, new in zip(prompts, tokens_of(completions), strict=True):
        ids = prompt + new[:-1]
        likeliest = model(torch.tensor([ids[:window]]))[0].argmax(-1).tolist()
        if len(ids) > window:
            windows = torch.tensor(ids).unfold(0, window, 1)[1:]
            likeliest += model(windows)[:, -1].argmax(-1).tolist()
        if likeliest[len(prompt) - 1 :] != new:
            return False
    return True


@torch.no_grad()
def read_with_memory(model, ids):
    """The likeliest token after each of a text, read segment by segment."""
    memory = model.new_cache(1)
    segments = torch.tensor([ids]).split(model.cfg.context_length, dim=1)
    return torch.cat([model(part, cache=memory) for part in segments], dim=1)[0].argmax(-1).tolist()


def are_greedy_with_memory(model, prompts, completions):
    """Whether every new token is the likeliest one after all that came before it."""
    return all(
        read_with_memory(model, prompt + new[:-1])[len(prompt) - 1 :] == new
        for prompt, new in zip(prompts, tokens_of(completions), strict=True)
    )


def tokens_of(completions):
    return [completion.token_ids for completion in completions]


@pytest.mark.parametrize("pos", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_prompts_get_the_tokens_of_the_books_loop_past_the_window_too(pos, seed, monkeypatch):
    monkeypatch.setattr(runs, "PREFILL_TOKENS", [2048, 5, 1][seed])
    model, prompts = make_model(seed, pos), make_prompts(seed, longest=20)
    completions = make_generator(model, max_batch=3)(prompts, 15, temperature=0)
    assert are_greedy(model, prompts, completions, CONTEXT)
    assert {len(completion.token_ids) for completion in completions} == {15}
    assert {completion.engine for completion in completions} == {"torch"}


@pytest.mark.parametrize("pos", ENDLESS)
@pytest.mark.parametrize("seed", range(4))
def test_positions_without_an_end_may_be_asked_for_a_longer_window(pos, seed, monkeypatch):
    monkeypatch.setattr(runs, "PREFILL_TOKENS", [2048, 7, 2, 1][seed])
    model, prompts = make_model(seed, pos), make_prompts(seed, longest=30)
    gen = make_generator(model, context_length=3 * CONTEXT)
    assert gen.context_length == 3 * CONTEXT
    completions = gen(prompts, 20, temperature=0)
    assert are_greedy(model, prompts, completions, 3 * CONTEXT)
    assert not are_greedy(model, prompts, completions, CONTEXT)


@pytest.mark.parametrize("pos", KINDS)
@pytest.mark.parametrize("overflow", ["slide", "rebase", "stop"])
def test_past_its_window_every_kind_slides_rebases_or_stops(pos, overflow):
    model, prompts = make_model(7, pos), make_prompts(7, count=2)
    window = CONTEXT if pos not in ENDLESS else CONTEXT + 5
    gen = make_generator(model, context_length=window)
    completions = gen(prompts, 25, temperature=0, overflow=overflow)
    expected = [greedy(model, prompt, 25, window, overflow) for prompt in prompts]
    if overflow == "stop":
        # A token is drawn only where there is room to see it.
        expected = [new[: window - len(p)] for new, p in zip(expected, prompts, strict=True)]
    assert tokens_of(completions) == expected


@pytest.mark.parametrize("pos", KINDS)
@pytest.mark.parametrize("compute", [None, "bfloat16"])
def test_samples_of_a_prompt_share_it_and_draw_what_each_draws_alone(pos, compute):
    gen = make_generator(make_model(5, pos), dtype=compute)
    prompts = make_prompts(5, count=2)
    together = gen(prompts, 10, num_samples=3, seed=4, top_k=5)
    assert together[0].engine == ("torch bfloat16" if compute else "torch")
    assert len({tuple(new) for new in tokens_of(together)}) > 2
    if compute is None:
        for number, completion in enumerate(together):
            alone = gen(prompts[number // 3], 10, sequences=[number], seed=4, top_k=5)
            assert tokens_of(alone) == [completion.token_ids]


@pytest.mark.parametrize("pos", KINDS)
def test_beams_find_what_they_find_without_a_cache(pos):
    model, prompts = make_model(6, pos), make_prompts(6, count=2)
    plain = make_generator(lambda ids: model(ids), context_length=CONTEXT)
    expected = plain(prompts, 8, num_beams=3, num_samples=2)
    found = make_generator(model)(prompts, 8, num_beams=3, num_samples=2)
    assert tokens_of(found) == tokens_of(expected)
    assert plain.context_length == CONTEXT


@pytest.mark.parametrize("pos", KINDS)
def test_the_books_function_takes_a_longer_context_where_positions_have_no_end(pos):
    model = make_model(8, pos)
    idx = torch.tensor([make_prompts(8, count=1, longest=1)[0] * 5] * 2)
    window = 2 * CONTEXT if pos in ENDLESS else CONTEXT
    expected = greedy(model, idx[0].tolist(), 25, window)
    assert generate_text_simple(model, idx, 25, 2 * CONTEXT)[:, 5:].tolist() == [expected] * 2


@pytest.mark.parametrize("pos", sorted(set(KINDS) - set(ENDLESS)))
def test_more_tokens_than_a_model_takes_are_refused(pos):
    model = make_model(0, pos)
    message = rf'context_length is 13, but the model takes at most 12 tokens: pos is "{pos}"'
    with pytest.raises(ConfigError, match=message):
        make_generator(model, context_length=CONTEXT + 1)
    assert make_generator(model, context_length=5).context_length == 5


# --- Transformer-XL's memory ---


@pytest.mark.parametrize("seed", range(20))
def test_with_a_memory_generation_has_no_end(seed, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(runs, "PREFILL_TOKENS", rng.choice([2048, 6, 1]))
    lengths = {"context_length": rng.randint(1, 8), "memory_length": rng.randint(1, 9)}
    model = make_model(seed, "transformer_xl", **lengths)
    prompts = make_prompts(seed, count=3, longest=40)
    overflow = rng.choice(["slide", "rebase", "stop"])
    gen = make_generator(model, max_batch=rng.randint(1, 4))
    assert gen.context_length == NO_END
    completions = gen(prompts, 25, temperature=0, overflow=overflow)
    assert are_greedy_with_memory(model, prompts, completions)
    assert {len(completion.token_ids) for completion in completions} == {25}
    assert {completion.finish_reason for completion in completions} == {"length"}


@pytest.fixture(scope="module")
def remembering():
    return make_model(11, "transformer_xl", context_length=4, memory_length=5)


def test_prompts_that_begin_alike_are_continued_though_the_beginning_was_dropped(remembering):
    # The loop would go on from what a slot has read: the beginning is dropped there by then.
    start = make_prompts(1, count=1, longest=1)[0] * 30
    prompts = [[*start[:length], number] for number, length in enumerate([30, 18, 25, 30, 17])]
    with_one_slot = make_generator(remembering, max_batch=1)(prompts, 12, temperature=0)
    assert are_greedy_with_memory(remembering, prompts, with_one_slot)


@pytest.mark.parametrize("max_batch", [1, 3])
def test_streams_submitted_prompts_and_sessions_have_a_memory_too(remembering, max_batch):
    prompts = make_prompts(2, longest=15)
    gen = make_generator(remembering, max_batch=max_batch)
    stream = gen.stream(prompts, 30, temperature=0)
    assert len(list(stream)) == 4 * 30
    assert are_greedy_with_memory(remembering, prompts, stream.completions)
    handles = [gen.submit(prompt, 30, temperature=0) for prompt in prompts]
    results = [handle.result(60) for handle in handles]
    assert tokens_of(results) == tokens_of(stream.completions)
    session = gen.session(temperature=0)
    for prompt in prompts:
        said = session.token_ids + prompt
        assert are_greedy_with_memory(remembering, [said], [session.send(prompt, 9)])
    gen.close()


def test_beams_remember(remembering):
    prompts = make_prompts(3, count=2, longest=20)

    def call(ids):
        memory = remembering.new_cache(len(ids))
        return torch.cat([remembering(part, cache=memory) for part in ids.split(4, dim=1)], dim=1)

    expected = make_generator(call, context_length=100)(prompts, 15, num_beams=3)
    assert tokens_of(make_generator(remembering)(prompts, 15, num_beams=3)) == tokens_of(expected)


def test_a_memory_in_bfloat16_is_near_the_exact_one(remembering):
    prompt = make_prompts(4, count=1)[0] * 5
    exact, near = (
        make_generator(remembering, dtype=dtype)(prompt, 1, temperature=0, logprobs=3)[0]
        for dtype in (None, "bfloat16")
    )
    assert near.engine == "torch bfloat16"
    assert near.logprobs[0].chosen == pytest.approx(exact.logprobs[0].chosen, abs=0.1)


def test_a_window_may_be_asked_for_and_then_slides(remembering):
    prompt = make_prompts(5, count=1)[0]
    gen = make_generator(remembering, context_length=10)
    ids = list(prompt)
    for _ in range(20):
        ids.append(read_with_memory(remembering, ids[-10:])[-1])
    assert gen(prompt, 20, temperature=0)[0].token_ids == ids[len(prompt) :]


def test_without_a_cache_there_is_a_window_of_one_segment(remembering):
    model = make_model(11, "transformer_xl", context_length=4, memory_length=5)
    model.register_forward_hook(lambda module, args, output: output)
    [completion] = make_generator(model)([1, 2, 3], 10, temperature=0)
    assert completion.engine == "torch, no cache: hooks wait on the model"
    assert completion.token_ids == greedy(model, [1, 2, 3], 10, window=4)

"""With a cache and without it, the model says the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptrs.errors import ConfigError, GenerationError
from gptrs.model.gpt import GPTModel

CONTEXT = 16


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(123)
    cfg = {"vocab_size": 61, "context_length": CONTEXT, "emb_dim": 24, "n_heads": 3, "n_layers": 2}
    return GPTModel(cfg).eval()


def tokens(*shape):
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(sum(shape)))


def greedy(step, idx, num_new):
    for _ in range(num_new):
        idx = torch.cat([idx, step(idx)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return idx


@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 3),
    chunks=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda c: 0 < sum(c) <= 16),
)
def test_however_the_tokens_are_cut_the_logits_are_those_of_one_pass(model, batch, chunks):
    idx = tokens(batch, sum(chunks))
    cache = model.new_cache(batch)
    logits = torch.cat([model(chunk, cache=cache) for chunk in idx.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(idx), atol=1e-5, rtol=1e-5)
    assert cache.lengths == [sum(chunks)] * batch


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(0, 10), min_size=2, max_size=4),
    num_new=st.integers(1, 6),
    collect=st.booleans(),
)
def test_rows_of_different_lengths_each_go_on_as_if_alone(model, lengths, num_new, collect):
    cache = model.new_cache(len(lengths))
    model(tokens(len(lengths), 10), cache=cache)
    cache.lengths[:] = lengths
    new = tokens(len(lengths), num_new)
    logits = model(new, cache=cache, return_attention=collect)
    logits = logits.logits if collect else logits
    for row, length in enumerate(lengths):
        whole = torch.cat([tokens(len(lengths), 10)[row, :length], new[row]])[None]
        alone = model(whole)[0, length:]
        torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=1e-5)
        assert cache.lengths[row] == length + num_new


@pytest.mark.parametrize("batch", [1, 3])
def test_cached_and_uncached_greedy_tokens_agree_to_the_last_slot(model, batch):
    idx = tokens(batch, 4)
    cache = model.new_cache(batch)
    uncached = greedy(model, idx, CONTEXT - 4)
    assert uncached.shape == (batch, CONTEXT)
    cached = greedy(lambda all_: model(all_[:, cache.lengths[0] :], cache=cache), idx, CONTEXT - 4)
    assert cached.tolist() == uncached.tolist()


def test_a_lowered_length_is_forgotten(model):
    idx = tokens(1, 12)
    cache = model.new_cache(1)
    model(idx, cache=cache)
    cache.lengths[0] = 5
    other = tokens(1, 3)
    expected = model(torch.cat([idx[:, :5], other], dim=1))[:, 5:]
    torch.testing.assert_close(model(other, cache=cache), expected, atol=1e-5, rtol=1e-5)


def test_a_view_of_the_first_rows_reads_and_writes_its_parent(model):
    idx = tokens(3, 8)
    cache = model.new_cache(3)
    view = cache.rows(0, 2)
    model(idx[:2, :5], cache=view)
    assert cache.lengths == [5, 5, 0]
    assert view.batch_size == 2
    cache.lengths[0] = 3
    logits = model(idx[:2, 5:6], cache=view)
    assert cache.lengths == [4, 6, 0]
    cut = torch.cat([idx[:1, :3], idx[:1, 5:6]], dim=1)
    torch.testing.assert_close(logits[0, -1], model(cut)[0, -1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1, -1], model(idx[1:2, :6])[0, -1], atol=1e-5, rtol=1e-5)


def test_a_view_of_rows_further_down_is_those_rows(model):
    idx = tokens(4, 8)
    cache = model.new_cache(4)
    model(idx, cache=cache)
    cache.lengths[:] = [1, 2, 3, 4]
    view = cache.rows(1, 4).rows(1, 3)  # rows 2 and 3
    view.copy_row(1, 0, 4)
    assert cache.lengths == [1, 2, 4, 4]
    logits = model(idx[:2, :3], cache=view)
    assert cache.lengths == [1, 2, 7, 7]
    for row in (0, 1):
        whole = torch.cat([idx[3, :4], idx[row, :3]])[None]
        torch.testing.assert_close(logits[row], model(whole)[0, 4:], atol=1e-5, rtol=1e-5)
    untouched = model(torch.cat([idx[1, :2], idx[0, :1]])[None])[0, 2:]
    logits = model(idx[:1, :1], cache=cache.rows(1, 2))
    torch.testing.assert_close(logits[0], untouched, atol=1e-5, rtol=1e-5)


def test_a_copied_row_goes_on_from_the_shared_prefix(model):
    idx = tokens(1, 8)
    cache = model.new_cache(2)
    model(idx, cache=cache.rows(0, 1))
    cache.copy_row(0, 1, 6)
    assert cache.lengths == [8, 6]
    new = tokens(2, 2)
    logits = model(new, cache=cache)
    alone = model(torch.cat([idx[0, :6], new[1]])[None])[0, 6:]
    torch.testing.assert_close(logits[1], alone, atol=1e-5, rtol=1e-5)


def test_hidden_states_and_attention_come_with_a_cache_too(model):
    idx = tokens(2, 9)
    cache = model.new_cache(2)
    whole = model(idx, return_hidden=True, return_attention=True)
    model(idx[:, :6], cache=cache)
    out = model(idx[:, 6:], cache=cache, return_hidden=True, return_attention=True)
    for part, full in zip(out.hidden, whole.hidden, strict=True):
        torch.testing.assert_close(part, full[:, 6:], atol=1e-5, rtol=1e-5)
    for part, full in zip(out.attention, whole.attention, strict=True):
        torch.testing.assert_close(part, full[:, :, 6:], atol=1e-5, rtol=1e-5)


def test_an_outgrown_row_is_refused_before_anything_is_written(model):
    cache = model.new_cache(2)
    model(tokens(2, 12), cache=cache)
    cache.lengths[0] = 3
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    with pytest.raises(GenerationError) as error:
        model(tokens(2, 5), cache=cache)
    assert str(error.value) == (
        "row 1 of the cache holds 12 tokens, and 5 more exceed context_length 16"
    )
    assert cache.lengths == [3, 12]
    assert all(map(torch.equal, before, (*cache.keys, *cache.values)))


def test_a_bad_token_id_leaves_the_cache_as_it_was(model):
    cache = model.new_cache(1)
    model(tokens(1, 4), cache=cache)
    with pytest.raises(IndexError, match=r"token id 61 at \[0, 1\] is outside 0..60"):
        model(torch.tensor([[1, 61]]), cache=cache)
    assert cache.lengths == [4]


@pytest.mark.parametrize("batch", [1, 3])
def test_another_batch_size_than_the_caches_is_refused(model, batch):
    with pytest.raises(GenerationError, match=f"the input has {batch} rows, its cache has 2"):
        model(tokens(batch, 2), cache=model.new_cache(2))


def test_rows_and_copies_that_do_not_exist_are_refused(model):
    cache = model.new_cache(2)
    model(tokens(2, 4), cache=cache)
    with pytest.raises(GenerationError, match=r"rows 0..3 were asked for; the cache has 0..2"):
        cache.rows(0, 3)
    with pytest.raises(GenerationError, match=r"row 2 is outside 0..1"):
        cache.copy_row(0, 2, 1)
    with pytest.raises(GenerationError, match="5 tokens of row 0 were asked for; it holds 4"):
        cache.copy_row(0, 1, 5)


def test_a_cache_and_documents_exclude_each_other(model):
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ConfigError, match="not both"):
        model(tokens(1, 4), cache=model.new_cache(1), cu_seqlens=bounds)


def test_a_pass_with_a_cache_records_no_gradient(model):
    cache = model.new_cache(1)
    assert not model(tokens(1, 4), cache=cache).requires_grad
    assert not model.hidden_states(tokens(1, 4), cache=cache).requires_grad
    assert not any(tensor.requires_grad for tensor in (*cache.keys, *cache.values))


def test_a_cache_made_in_inference_mode_can_be_used_outside_it(model):
    with torch.inference_mode():
        cache = model.new_cache(1)
        model(tokens(1, 3), cache=cache)
    model(tokens(1, 3), cache=cache)
    assert cache.lengths == [6]


@pytest.mark.parametrize("lengths", [[4, 4], [4, 2]])
def test_a_cache_works_under_autocast(model, lengths):
    idx = tokens(2, 4)
    cache = model.new_cache(2)
    with torch.autocast("cpu", torch.bfloat16):
        model(idx, cache=cache)
        cache.lengths[:] = lengths
        logits = model(idx[:, :2], cache=cache)
    expected = model(torch.cat([idx[:1], idx[:1, :2]], dim=1))[:, 4:]
    torch.testing.assert_close(logits[:1].float(), expected, atol=0.1, rtol=0.1)


def test_a_bfloat16_model_has_a_bfloat16_cache():
    cfg = {"vocab_size": 61, "context_length": 8, "emb_dim": 24, "n_heads": 3, "n_layers": 1}
    model = GPTModel(cfg).eval().to(torch.bfloat16)
    cache = model.new_cache(1)
    assert cache.keys[0].dtype == torch.bfloat16
    assert cache.keys[0].shape == (1, 3, 8, 8)
    assert model(tokens(1, 4), cache=cache).dtype == torch.bfloat16

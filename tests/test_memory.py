"""Room for large tensors: ordinary tensors, wherever their memory comes from."""

import copy
import gc
import io

import pytest
import torch
from safetensors.torch import load, save

from gptrs import GPTModel
from gptrs.errors import CheckpointError
from gptrs.memory import ALIGNMENT, LARGE_BYTES, empty
from gptrs.weights import filled_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_bytes", [0, 8, LARGE_BYTES - 8, LARGE_BYTES, 3 * LARGE_BYTES + 8])
def test_room_has_its_shape_and_dtype_begins_where_a_line_does_and_keeps_numbers(dtype, num_bytes):
    shape = (2, num_bytes // dtype.itemsize // 2)
    room = empty(shape, dtype, CPU)
    assert (tuple(room.shape), room.dtype, room.is_contiguous()) == (shape, dtype, True)
    assert num_bytes == 0 or room.data_ptr() % ALIGNMENT == 0
    torch.manual_seed(0)
    numbers = torch.randn(shape).to(dtype)
    room.copy_(numbers)
    if num_bytes == LARGE_BYTES:  # It takes half a second.
        gc.collect()
    assert torch.equal(room, numbers)


def test_a_model_loaded_into_it_is_copied_saved_converted_and_trained_like_any_other(tmp_path):
    cfg = {"vocab_size": 20_000, "context_length": 8, "emb_dim": 64, "n_heads": 2, "n_layers": 1}
    torch.manual_seed(0)
    made = GPTModel(cfg)
    assert made.tok_emb.weight.nbytes >= LARGE_BYTES
    made.save_pretrained(tmp_path)
    model = GPTModel.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    expected = made.eval()(ids)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    stored = [torch.load(file, weights_only=True), load(save(model.state_dict()))]
    for state in stored:
        other = GPTModel(cfg).eval()
        other.load_state_dict(state)
        assert torch.equal(other(ids), expected)
    assert torch.equal(copy.deepcopy(model)(ids), expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(ids).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.eval()(ids), expected)
    assert model.to(torch.float64)(ids).dtype == torch.float64


@pytest.mark.parametrize("format_", ["gptrs", "hf", "book"])
@pytest.mark.parametrize("most_bytes", [1, 100, 1000, 10_000])
def test_large_tensors_are_loaded_some_rows_after_the_others(
    tmp_path, monkeypatch, format_, most_bytes
):
    monkeypatch.setattr(filled_model, "_LARGE_BYTES", most_bytes)
    torch.manual_seed(most_bytes)
    cfg = {"vocab_size": 67, "context_length": 9, "emb_dim": 12, "n_heads": 3, "n_layers": 2}
    made = GPTModel(cfg)
    made.save_pretrained(tmp_path, format=format_)
    (path,) = tmp_path.glob("*.pth") if format_ == "book" else [tmp_path]
    loaded = GPTModel.from_pretrained(path, cfg=cfg if format_ == "book" else None)
    for name, tensor in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_number_that_is_none_is_found_in_any_row_and_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(filled_model, "_LARGE_BYTES", 100)
    cfg = {"vocab_size": 67, "context_length": 9, "emb_dim": 12, "n_heads": 3, "n_layers": 1}
    made = GPTModel(cfg)
    with torch.no_grad():
        made.tok_emb.weight[[5, 66]] = torch.nan
    made.save_pretrained(tmp_path, format="hf")
    with pytest.raises(CheckpointError, match="not finite") as refused:
        GPTModel.from_pretrained(tmp_path)
    assert str(refused.value).count("tok_emb.weight") == 1

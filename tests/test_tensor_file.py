"""Tensors written past the page cache: byte for byte what safetensors writes."""

import errno
import os
import random

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from gptrs import _core, tensor_file
from gptrs.files import digest
from gptrs.tensor_file import save_tensors

DTYPES = list(tensor_file._DTYPES)
CHUNK, BLOCK = tensor_file._CHUNK_BYTES, tensor_file._BLOCK_BYTES


def random_tensors(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tensors = {}
    for _ in range(rng.randint(0, 12)):
        shape = [rng.choice([0, 1, 2, 3, 7, 64]) for _ in range(rng.randint(0, 3))]
        name = "".join(rng.choice('ab.Z_é"\\ 中') for _ in range(rng.randint(1, 9)))
        tensors[name] = (torch.randn(shape) * 100).to(rng.choice(DTYPES))
    return tensors


@pytest.fixture(params=["past the cache", "through it"])
def way(request, monkeypatch):
    """Files of any size past the page cache, or none."""
    is_direct = request.param == "past the cache"
    monkeypatch.setattr(tensor_file, "DIRECT_BYTES", 0 if is_direct else 1 << 60)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("seed", range(24))
def test_the_file_is_safetensors_own(tmp_path, seed, metadata):
    tensors = random_tensors(seed)
    found = save_tensors(tensors, tmp_path / "ours", metadata)
    save_file(tensors, tmp_path / "theirs", metadata)
    content = (tmp_path / "theirs").read_bytes()
    assert (tmp_path / "ours").read_bytes() == content
    assert found == digest(tmp_path / "ours") == xxhash.xxh3_64_hexdigest(content)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(24))
def test_rows_in_parts_are_put_together_in_the_file(tmp_path, seed):
    tensors = random_tensors(seed)
    parts = {n: list(t.split(2)) if t.ndim and seed % 3 else [t] for n, t in tensors.items()}
    found = save_tensors(parts, tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert found == digest(tmp_path / "ours")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("past", [-BLOCK - 1, -BLOCK, -1, 0, 1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("chunks", [1, 3])
def test_chunks_and_blocks_end_anywhere(tmp_path, past, chunks):
    file = tmp_path / "file"
    header = len(tensor_file._header([("a", [torch.zeros(CHUNK, dtype=torch.uint8)])], None))
    count = chunks * CHUNK + past - header
    tensors = {"a": torch.arange(count).to(torch.uint8)}
    found = save_tensors(tensors, file)
    assert torch.equal(load_file(file)["a"], tensors["a"])
    assert found == digest(file)


def test_an_older_longer_file_leaves_nothing_behind(tmp_path):
    file = tmp_path / "file"
    save_tensors({"a": torch.ones(5000)}, file)
    save_tensors({"a": torch.ones(50)}, file)
    assert torch.equal(load_file(file)["a"], torch.ones(50))


def test_strided_and_shared_tensors_are_written_as_they_read(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"turned": whole.T, "part": whole[:, 1], "same": whole, "learns": whole.clone()}
    tensors["learns"].requires_grad_()
    save_tensors(tensors, tmp_path / "file")
    for name, tensor in load_file(tmp_path / "file").items():
        assert torch.equal(tensor, tensors[name]), name


def test_a_dtype_that_no_checkpoint_has_is_named_and_nothing_is_opened(tmp_path):
    with pytest.raises(TypeError, match=r"odd is torch\.complex64; a checkpoint has I64, F64"):
        save_tensors({"odd": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the system has no such thing")
@pytest.mark.parametrize("refused", ["open", "write"])
def test_where_the_disk_wants_the_cache_it_gets_it(tmp_path, monkeypatch, refused):
    """Some file systems refuse to be asked, others the first write."""
    monkeypatch.setattr(tensor_file, "DIRECT_BYTES", 0)
    real_open, real_write, calls = os.open, os.write, []

    def open_(path, flags, *mode, **others):
        if refused == "open" and flags & os.O_DIRECT:
            calls.append("refused")
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *mode, **others)

    def write(descriptor, part):
        if refused == "write" and not calls:
            calls.append("refused")
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, part)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "write", write)
    tensors = {"a": torch.randn(CHUNK)}
    found = save_tensors(tensors, tmp_path / "file")
    assert calls == ["refused"]
    assert torch.equal(load_file(tmp_path / "file")["a"], tensors["a"])
    assert found == digest(tmp_path / "file")


@pytest.mark.usefixtures("way")
def test_a_disk_that_takes_a_part_only_gets_the_rest(tmp_path, monkeypatch):
    real_write, rng = os.write, random.Random(0)
    monkeypatch.setattr(
        os,
        "write",
        lambda descriptor, part: real_write(
            descriptor, part[: rng.choice([len(part), BLOCK, 3 * BLOCK, 777])]
        ),
    )
    tensors = {"a": torch.randn(CHUNK)}
    found = save_tensors(tensors, tmp_path / "file")
    assert torch.equal(load_file(tmp_path / "file")["a"], tensors["a"])
    assert found == digest(tmp_path / "file")


@pytest.mark.usefixtures("way")
def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def write(_descriptor, _part):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"a": torch.zeros(9)}, tmp_path / "file")


@pytest.mark.parametrize("seed", range(20))
def test_a_digest_in_parts_is_that_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    content = rng.integers(0, 256, int(rng.integers(0, 5000)), dtype=np.uint8)
    cuts = np.sort(rng.integers(0, len(content) + 1, 5))
    found = _core.Digest()
    for part in np.split(content, cuts):
        found.update(part)
    assert found.hexdigest() == xxhash.xxh3_64_hexdigest(content.tobytes())


def test_a_digest_refuses_what_does_not_lie_in_one_piece():
    with pytest.raises(ValueError, match="not contiguous"):
        _core.Digest().update(np.zeros(9, dtype=np.uint8)[::2])
    with pytest.raises((TypeError, BufferError)):
        _core.Digest().update("text")

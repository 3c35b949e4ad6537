"""int8 weights in a file: what the engine packed, no more and no less, and of this model alone."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gptrs import Generator, GPTModel, _core
from gptrs.engines import native_engine
from gptrs.engines.native_engine import NativeEngine
from gptrs.errors import CheckpointError, ConfigError

SEEDS = range(20)
KERNELS = _core.NativeModel.available_kernels()


class Letters:
    n_vocab = 97

    def encode(self, text):
        return [ord(letter) - 65 for letter in text]

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


def make_model(seed, **changes):
    """A random model; its sizes are multiples of nothing, so that matrices are filled up."""
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 3, 5])
    config = {
        "vocab_size": 97,
        "context_length": 24,
        "emb_dim": heads * rng.choice([2, 6, 16, 34]),
        "n_heads": heads,
        "n_layers": rng.randint(1, 3),
        "qkv_bias": rng.random() < 0.5,
        "tie_embeddings": rng.random() < 0.5,
        "init": "gpt2",
    }
    torch.manual_seed(seed)
    model = GPTModel(config | changes).eval()
    return model.to(rng.choice([torch.float32, torch.bfloat16]))


def copy_of(model):
    """The same weights, of which no engine knows anything yet."""
    copy = GPTModel(model.cfg).eval().to(model.tok_emb.weight.dtype)
    copy.load_state_dict(model.state_dict())
    return copy


def make_native(model, **options):
    return NativeEngine(
        model, slots=2, context_size=24, prefill_tokens=64, int8=True, threads=2, **options
    )


def read(engine, prompt):
    engine.tokens[: len(prompt)] = torch.tensor(prompt)
    engine.starts[0] = 0
    return engine.extend([0], [len(prompt)], [len(prompt)])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_engine_that_maps_the_file_gives_the_logits_of_one_that_packs(tmp_path, seed, kernels):
    model, file = make_model(seed), tmp_path / "model.safetensors"
    prompt = [random.Random(seed).randrange(97) for _ in range(17)]
    packed = read(make_native(model, int8_file=file, kernels=kernels), prompt)
    before = file.stat()
    mapped = read(make_native(copy_of(model), int8_file=file, kernels=kernels), prompt)
    assert torch.equal(packed, mapped)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_file_has_every_weight_to_half_a_step_of_its_row(tmp_path, seed):
    model, file = make_model(seed), tmp_path / "model.safetensors"
    make_native(model, int8_file=file)
    arrays = load_file(file)
    weights = {
        name: weight.float().numpy()
        for name, weight in model.state_dict().items()
        if name.endswith("weight") and "emb" not in name and "norm" not in name
    }
    assert {name for name in arrays if name.endswith(".int8")} == {f"{n}.int8" for n in weights}
    for name, weight in weights.items():
        packed, scales = arrays[f"{name}.int8"], arrays[f"{name}.scales"]
        rows, columns = packed.shape
        assert (rows % 16, columns % 64, len(scales)) == (0, 0, rows)
        blocks = packed.reshape(rows // 16, columns // 4, 16, 4)
        plain = blocks.transpose(0, 2, 1, 3).reshape(rows, columns).astype(np.float32) - 128
        found = (plain * scales[:, None])[: weight.shape[0], : weight.shape[1]]
        half = scales[: weight.shape[0], None] * 0.5001
        assert np.all(np.abs(found - weight) <= half), name


def test_weights_of_another_model_are_refused_and_left_as_they_are(tmp_path):
    file = tmp_path / "model.safetensors"
    model = make_model(1)
    make_native(model, int8_file=file)
    content = file.read_bytes()
    taught = copy_of(model)
    with torch.no_grad():
        taught.trf_blocks[0].ff.layers[0].weight.mul_(1.01)
    wider = make_model(1, emb_dim=model.cfg.emb_dim * 2)
    deeper = make_model(1, n_layers=model.cfg.n_layers + 1)
    for other in (taught, wider, deeper):
        with pytest.raises(CheckpointError, match=r"another model|does not contain tensor"):
            make_native(other, int8_file=file)
    assert file.read_bytes() == content


def test_weights_that_change_while_an_engine_runs_are_packed_anew(tmp_path):
    file = tmp_path / "model.safetensors"
    model = make_model(2)
    make_native(model, int8_file=file)
    model = copy_of(model)
    engine = make_native(model, int8_file=file)
    content = file.read_bytes()
    with torch.no_grad():
        model.trf_blocks[0].att.W_query.weight.mul_(2)
        model.out_head.weight.add_(0.1)
    changed = read(engine, [1, 2, 3])
    assert torch.equal(changed, read(make_native(copy_of(model)), [1, 2, 3]))
    assert file.read_bytes() == content


def test_a_file_of_weights_from_before_a_row_was_changed_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    model = make_model(3)
    make_native(model, int8_file=file)
    for name, parameter in copy_of(model).named_parameters():
        changed = copy_of(model)
        with torch.no_grad():
            changed.get_parameter(name)[len(parameter) // 2] += 0.5
        with pytest.raises(CheckpointError, match="of this one before it changed"):
            make_native(changed, int8_file=file)


def test_a_file_counts_also_where_the_model_was_packed_before(tmp_path):
    models, file = [make_model(seed) for seed in (3, 4)], tmp_path / "model.safetensors"
    make_native(models[0], int8_file=file)
    make_native(models[1])
    with pytest.raises(CheckpointError, match="another model"):
        make_native(models[1], int8_file=file)
    file.write_bytes(b"no file of ours")
    for model in models:
        with pytest.raises(CheckpointError, match="cannot be read"):
            make_native(model, int8_file=file)


def test_a_folder_in_the_place_of_a_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="not a file"):
        make_native(make_model(3), int8_file=tmp_path)


def test_numbers_that_are_none_do_not_make_it_another_model(tmp_path):
    file = tmp_path / "model.safetensors"
    model = make_model(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    make_native(model, int8_file=file)
    make_native(copy_of(model), int8_file=file)


def with_tensors(change):
    """A damage: the file with other tensors in it, or another header."""

    def damage(file):
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata()
        arrays = load_file(file)
        change(arrays, metadata)
        save_file(arrays, file, metadata=metadata)

    return damage


def first(arrays, ending):
    return next(name for name in arrays if name.endswith(ending))


DAMAGES = {
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:-9]), "cannot be read"),
    "empty": (lambda file: file.write_bytes(b""), "cannot be read"),
    "text": (lambda file: file.write_text(json.dumps([1] * 99)), "cannot be read"),
    "foreign": (with_tensors(lambda _, metadata: metadata.clear()), "not a file of int8 weights"),
    "newer": (
        with_tensors(lambda _, metadata: metadata.update(format_version="3")),
        "version '3'; this gptrs reads version '2'",
    ),
    "fewer": (
        with_tensors(lambda arrays, _: arrays.pop(first(arrays, ".scales"))),
        "another model",
    ),
    "more": (with_tensors(lambda arrays, _: arrays.update(x=np.zeros(1))), "another model"),
    "shorter": (
        with_tensors(
            lambda arrays, _: arrays.update({(n := first(arrays, ".int8")): arrays[n][:-16]})
        ),
        "damaged: a matrix of",
    ),
    "fewer scales": (
        with_tensors(
            lambda arrays, _: arrays.update({(n := first(arrays, ".scales")): arrays[n][:-1]})
        ),
        "damaged: a matrix of",
    ),
    "turned round": (
        with_tensors(
            lambda arrays, _: arrays.update({(n := first(arrays, ".int8")): arrays[n][::-1].copy()})
        ),
        "damaged: its digest is",
    ),
    "odd samples": (
        with_tensors(lambda arrays, _: arrays.update(samples=np.zeros(3, dtype=np.uint8))),
        "another model",
    ),
    "wider": (
        with_tensors(
            lambda arrays, _: arrays.update(
                {(n := first(arrays, ".int8")): arrays[n].astype(np.int16)}
            )
        ),
        "damaged",
    ),
    "other scales": (
        with_tensors(
            lambda arrays, _: arrays.update(
                {(n := first(arrays, ".scales")): arrays[n].astype(np.float64)}
            )
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, name):
    damage, message = DAMAGES[name]
    whole, file = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    model = make_model(4)
    make_native(model, int8_file=whole)
    shutil.copyfile(whole, file)
    damage(file)
    with pytest.raises(CheckpointError, match=message) as refused:
        make_native(copy_of(model), int8_file=file)
    assert str(file) in str(refused.value)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written"):
        make_native(make_model(5), int8_file=tmp_path / "no folder" / "model.safetensors")


def test_a_generator_writes_it_once_and_then_reads_it(tmp_path, monkeypatch):
    model, file = make_model(6, context_length=64), tmp_path / "model.safetensors"
    options = {"temperature": 0.8, "seed": 3}
    packs = Generator(model, Letters(), dtype="int8", int8_file=file)
    expected = packs("HELLO", 20, **options)[0].token_ids
    assert file.exists()
    monkeypatch.setattr(native_engine, "write_int8", None)  # It would fail if it were called.
    maps = Generator(copy_of(model), Letters(), dtype="int8", int8_file=str(file))
    assert maps("HELLO", 20, **options)[0].token_ids == expected
    with pytest.raises(ConfigError, match=r'int8_file is for dtype="int8", found dtype=None'):
        Generator(model, Letters(), int8_file=file)("HELLO", 5)

"""`gptrs.weights.checkpoint`: whole or not at all, and never wrong weights."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import tiktoken
import tokenizers
import torch
from safetensors.torch import load_file

from gptrs import files
from gptrs.config import GPTConfig
from gptrs.errors import CheckpointError, ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.model.lora import add_lora, merge_lora
from gptrs.tensor_file import save_tensors
from gptrs.text.named_tokenizers import get_tokenizer
from gptrs.text.tokenizer_training import train_tokenizer
from gptrs.weights import checkpoint
from gptrs.weights.checkpoint import load_checkpoint, load_metadata, load_tokenizer, save_checkpoint


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"vocab_size": 40, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 2}
    return GPTModel(GPTConfig.of(shape | changes))


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Trained tokenizers by their letters, small enough for the tiny model."""
    folder = tmp_path_factory.mktemp("letters")

    def train(text, **options):
        (folder / "text.txt").write_text(text)
        return train_tokenizer(folder / "text.txt", None, kind="char", **options)

    return train


def assert_same_weights(one, other):
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def weights_file(directory):
    (file,) = directory.glob("model-*.safetensors")
    return file


def replace_weights(directory, tensors):
    """Puts a sound safetensors file of `tensors` in the place of the checkpoint's."""
    weights_file(directory).unlink()
    new = files.write_by_content(
        directory / "model-{}.safetensors", lambda path: save_tensors(tensors, path)
    )
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"weights_file": new.name}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True, "init": "gpt2"}, {"qkv_bias": True}]
)
def test_a_model_comes_back_bit_for_bit(tmp_path, changes, dtype):
    model = tiny_model(**changes).to(dtype)
    save_checkpoint(model, tmp_path / "new" / "folder")
    loaded, tokenizer = load_checkpoint(tmp_path / "new" / "folder")
    assert_same_weights(loaded, model)
    assert loaded.cfg == model.cfg
    assert loaded.tok_emb.weight.dtype == dtype
    assert (loaded.out_head.weight is loaded.tok_emb.weight) == model.cfg.tie_embeddings
    assert not loaded.training
    assert tokenizer is None


def test_the_weights_are_plain_safetensors_under_the_books_names(tmp_path):
    save_checkpoint(tiny_model(), tmp_path)
    assert load_file(weights_file(tmp_path)).keys() == tiny_model().state_dict().keys()


def test_loading_leaves_torchs_generator_alone(tmp_path):
    save_checkpoint(tiny_model(), tmp_path)
    before = torch.get_rng_state()
    load_checkpoint(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_a_tokenizer_travels_along_in_the_format_that_hugging_face_reads(tmp_path, letters, kind):
    text = "Hello, wörld"
    tokenizer = get_tokenizer("gpt2") if kind == "gpt2" else letters(text)
    if kind == "bpe":
        (tmp_path / "text.txt").write_text(text * 9, "utf-8")
        tokenizer = train_tokenizer(tmp_path / "text.txt", 262)
    model = tiny_model(vocab_size=tokenizer.n_vocab)
    save_checkpoint(model, tmp_path / "model", tokenizer=tokenizer)
    assert load_tokenizer(tmp_path / "model") == load_checkpoint(tmp_path / "model")[1] == tokenizer
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert theirs.encode(text).ids == tokenizer.encode(text)


def test_a_tiktoken_encoding_of_gpt2_is_saved_as_ours_and_any_other_object_refused(
    tmp_path, letters
):
    gpt2 = get_tokenizer("gpt2")
    model = tiny_model(vocab_size=gpt2.n_vocab)
    save_checkpoint(model, tmp_path / "a", tokenizer=gpt2.as_tiktoken())
    assert load_tokenizer(tmp_path / "a") is gpt2
    foreign = {"pat_str": ".", "mergeable_ranks": {b"a": 0}, "special_tokens": {}}
    for other in (
        object(),
        tiktoken.Encoding("gpt2", **foreign),
        tiktoken.Encoding("x", **foreign),
    ):
        with pytest.raises(ConfigError, match="expected a gptrs tokenizer or tiktoken's gpt2"):
            save_checkpoint(model, tmp_path / "b", tokenizer=other)
    assert not (tmp_path / "b").exists()


def test_a_model_knows_all_of_its_tokenizers_ids(tmp_path, letters):
    tokenizer = letters("abc", special_tokens=())
    with pytest.raises(ConfigError, match="the model has vocab_size 2, and the tokenizer needs 3"):
        save_checkpoint(tiny_model(vocab_size=2), tmp_path / "a", tokenizer=tokenizer)
    assert not (tmp_path / "a").exists()
    save_checkpoint(tiny_model(vocab_size=3), tmp_path / "a", tokenizer=tokenizer)
    save_checkpoint(tiny_model(vocab_size=4), tmp_path / "b", tokenizer=tokenizer)


def test_another_tokenizer_is_refused_before_anything_is_written(tmp_path, letters):
    save_checkpoint(tiny_model(seed=0), tmp_path, tokenizer=letters("abc"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"tokenizer\.json has another tokenizer, .*char-4"):
        save_checkpoint(tiny_model(seed=1), tmp_path, tokenizer=letters("abcd"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_checkpoint(tiny_model(seed=1), tmp_path, tokenizer=letters("cab"))
    assert_same_weights(load_checkpoint(tmp_path)[0], tiny_model(seed=1))
    assert load_tokenizer(tmp_path) == letters("abc")


def test_a_tokenizer_file_that_cannot_be_read_is_not_overwritten(tmp_path, letters):
    (tmp_path / "tokenizer.json").write_text("another's")
    with pytest.raises(ConfigError, match=r"only over the same one: .*tokenizer\.json"):
        save_checkpoint(tiny_model(), tmp_path, tokenizer=letters("abc"))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    save_checkpoint(tiny_model(), tmp_path)
    assert load_tokenizer(tmp_path) is None


def test_metadata_comes_back_and_must_be_json(tmp_path):
    save_checkpoint(tiny_model(), tmp_path, metadata={"step": 3, "loss": 1.5})
    assert load_metadata(tmp_path) == {"step": 3, "loss": 1.5}
    with pytest.raises(ConfigError, match="metadata must be JSON"):
        save_checkpoint(tiny_model(seed=1), tmp_path, metadata={"model": object()})
    assert_same_weights(load_checkpoint(tmp_path)[0], tiny_model())


def test_a_new_checkpoint_replaces_the_old_and_touches_no_other_file(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_checkpoint(tiny_model(seed=0), tmp_path)
    save_checkpoint(tiny_model(seed=1), tmp_path)
    assert_same_weights(load_checkpoint(tmp_path)[0], tiny_model(seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["config.json", weights_file(tmp_path).name, "notes.txt"]
    )


@pytest.mark.parametrize("num_renames", [0, 1, 2])
def test_a_save_killed_between_any_two_steps_leaves_a_whole_checkpoint(tmp_path, num_renames):
    save_checkpoint(tiny_model(seed=0), tmp_path, metadata={"seed": 0})
    program = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_checkpoint import save_checkpoint, tiny_model
        rename, renames = os.replace, []
        def counted_replace(*args):
            if len(renames) == {num_renames}:
                os.kill(os.getpid(), signal.SIGKILL)
            renames.append(rename(*args))
        os.replace = counted_replace
        save_checkpoint(tiny_model(seed=1), {str(tmp_path)!r}, metadata={{"seed": 1}})
    """)
    result = subprocess.run([sys.executable, "-c", program], check=False)
    assert result.returncode == (0 if num_renames == 2 else -signal.SIGKILL)
    survivor = load_metadata(tmp_path)["seed"]
    assert survivor == (1 if num_renames == 2 else 0)
    assert_same_weights(load_checkpoint(tmp_path)[0], tiny_model(seed=survivor))
    save_checkpoint(tiny_model(seed=2), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "leftovers of the killed save are still there"


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tiny_model(seed=0), tmp_path)

    def disk_full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", disk_full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        save_checkpoint(tiny_model(seed=1), tmp_path)
    assert_same_weights(load_checkpoint(tmp_path)[0], tiny_model(seed=0))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("position", [0, 100, -1])
def test_every_changed_byte_is_noticed(tmp_path, position):
    save_checkpoint(tiny_model(), tmp_path)
    content = bytearray(weights_file(tmp_path).read_bytes())
    content[position] ^= 1
    weights_file(tmp_path).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model-.*\.safetensors: damaged"):
        load_checkpoint(tmp_path)


def test_a_missing_or_cut_weights_file_is_named(tmp_path):
    save_checkpoint(tiny_model(), tmp_path)
    file = weights_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{file.name}: damaged"):
        load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name}: cannot be read: No such file"):
        load_checkpoint(tmp_path)


def test_every_tensor_that_does_not_fit_is_named_in_one_error(tmp_path):
    model = tiny_model()
    save_checkpoint(model, tmp_path)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del tensors["final_norm.scale"]
    tensors["pos_emb.weight"] = torch.zeros(9, 8)
    tensors["lm_head.bias"] = torch.zeros(3)
    replace_weights(tmp_path, tensors)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path)
    for part in (
        "final_norm.scale has nothing to load",
        "pos_emb.weight is [8, 8], pos_emb.weight of [9, 8] gives [9, 8]",
        "lm_head.bias is unexpected",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no checkpoint here: there is no config\.json"),
        ("{", r"config\.json: not JSON"),
        ("\x80", r"config\.json: not JSON"),
        ("[]", "not a gptrs checkpoint"),
        ('{"architectures": ["GPT2LMHeadModel"]}', "not a gptrs checkpoint"),
        ({"format_version": 3}, "format version 3; this gptrs reads version 2"),
        ({"model": {"emb_dim": 7, "n_heads": 2}}, "damaged: emb_dim 7"),
        ({"model": {"sizes": 7}}, "damaged: .*sizes"),
        ({"weights_file": "../elsewhere.safetensors"}, "damaged: .*elsewhere"),
        ({"weights_file": None}, "damaged: None"),
    ],
)
def test_a_missing_foreign_newer_or_damaged_config_is_named(tmp_path, content, message):
    save_checkpoint(tiny_model(), tmp_path)
    path = tmp_path / "config.json"
    if content is None:
        path.unlink()
    elif isinstance(content, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | content))
    else:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_a_config_that_lacks_a_key_is_damaged(tmp_path):
    save_checkpoint(tiny_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("model", "weights_file", "has_tokenizer", "metadata"):
        without = {name: value for name, value in config.items() if name != key}
        (tmp_path / "config.json").write_text(json.dumps(without))
        with pytest.raises(CheckpointError, match=f"damaged: there is no '{key}'"):
            load_checkpoint(tmp_path)


def test_a_damaged_tokenizer_is_the_checkpoints_error(tmp_path, letters):
    save_checkpoint(tiny_model(), tmp_path, tokenizer=letters("abc"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"damaged: .*tokenizer\.json"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_holds_nothing_that_is_pickled(tmp_path, letters):
    save_checkpoint(tiny_model(), tmp_path, tokenizer=letters("abc"), metadata={"a": 1})
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_model_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    cfg = {"vocab_size": 9, "context_length": 4, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    adapted, headed = GPTModel(cfg), GPTModel(cfg)
    add_lora(adapted, 2, 4)
    headed.out_head = torch.nn.Linear(8, 2)
    for model, name in ((adapted, "att.W_query.lora_A"), (headed, "out_head.bias")):
        with pytest.raises(ConfigError, match=name):
            save_checkpoint(model, tmp_path / "it")
    assert not (tmp_path / "it").exists()
    merge_lora(adapted)
    save_checkpoint(adapted, tmp_path / "it")
    assert load_checkpoint(tmp_path / "it")[0].cfg == adapted.cfg

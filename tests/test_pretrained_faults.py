"""Weights that do not fit, and files that hold none: one error says all that is wrong."""

import json
from dataclasses import replace

import pytest
import torch
from random_models import (
    SHAPE,
    assert_same_logits,
    assert_same_weights,
    random_gpt2,
    random_ours,
    refused,
)
from safetensors.torch import load_file, save_file

from gptrs.errors import ConfigError
from gptrs.model.gpt import GPTModel
from gptrs.weights.pretrained import config_of_pretrained

load = GPTModel.from_pretrained


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.h.0.mlp.c_fc.bias"] = torch.zeros(3)
    tensors["transformer.h.1.ln_1.bias"] = torch.zeros(128, dtype=torch.int8)
    tensors["score.weight"] = torch.zeros(2, 128)
    save_file(tensors, file)
    head, *problems = refused(tmp_path)
    assert head == f"{file}: the weights do not fit the model:"
    assert sorted(map(str.strip, problems)) == [
        "final_norm.shift has nothing to load",
        "score.weight is unexpected",
        "transformer.h.1.ln_1.bias has dtype I8; it must be floating point",
        "trf_blocks.0.ff.layers.0.bias is [512], transformer.h.0.mlp.c_fc.bias of [3] gives [3]",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    random_gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.wpe.weight"][3, 5] = value
    tensors["transformer.h.1.attn.c_attn.weight"][7, 200] = value
    save_file(tensors, tmp_path / "model.safetensors")
    _, *problems = refused(tmp_path)
    assert len(problems) == 2
    assert "transformer.wpe.weight: pos_emb.weight has values that are not finite" in "".join(
        problems
    )
    assert "trf_blocks.1.att.W_key.weight has values" in "".join(problems)


def test_missing_extra_and_wrong_tensors_are_listed_together(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    tensors["transformer.h.0.ln_1.bias"] = torch.full((3,), float("nan"))
    tensors["transformer.wpe.weight"][3, 5] = float("nan")
    tensors["transformer.h.1.mlp.c_fc.bias"][9] = 1e6
    tensors["score.weight"] = torch.full((2, 128), float("nan"))
    save_file(tensors, tmp_path / "model.safetensors")
    _, *problems = refused(tmp_path, dtype="float16")
    assert sorted(map(str.strip, problems)) == [
        "final_norm.shift has nothing to load",
        "score.weight is unexpected",
        "transformer.h.1.mlp.c_fc.bias: trf_blocks.1.ff.layers.0.bias has values that are not "
        "finite in torch.float16",
        "transformer.wpe.weight: pos_emb.weight has values that are not finite in torch.float16",
        "trf_blocks.0.norm1.shift is [128], transformer.h.0.ln_1.bias of [3] gives [3]",
    ]


def test_a_file_in_which_nothing_fits_is_refused_by_every_tensor(tmp_path):
    state = random_ours().state_dict()
    torch.save({name: tensor.int() for name, tensor in state.items()}, tmp_path / "a.pth")
    _, *problems = refused(tmp_path / "a.pth", cfg={"n_heads": 2})
    assert len(problems) == len(state)
    assert all(line.endswith("it must be floating point") for line in problems)


def test_a_dtype_that_cannot_hold_the_values_is_refused(tmp_path):
    model = random_gpt2()
    model.transformer.wte.weight.data[0, 0] = 1e9
    model.save_pretrained(tmp_path)
    _, problem = refused(tmp_path, dtype=torch.float16)
    assert problem.endswith("tok_emb.weight has values that are not finite in torch.float16")


def test_a_config_that_does_not_fit_lists_every_field(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    changes = {"n_layers": 3, "n_heads": 4, "qkv_bias": False, "vocab_size": 62, "drop_rate": 0.7}
    head, *problems = refused(tmp_path, ConfigError, cfg={**SHAPE, **changes})
    assert head == "cfg does not fit the weights:"
    fields = [problem.split()[0] for problem in problems]
    assert fields == ["vocab_size", "n_heads", "n_layers", "qkv_bias"]


def test_a_config_of_another_architecture_lists_what_is_different(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    changes = {"activation_function": "relu", "layer_norm_epsilon": 1e-6, "n_inner": 99}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    head, *problems = refused(tmp_path)
    assert "config.json: not a model that GPTModel can be" in head
    assert [problem.split()[0] for problem in problems] == [
        "activation_function",
        "layer_norm_epsilon",
        "n_inner",
    ]


def test_a_head_that_differs_from_a_tied_embedding_is_not_dropped(tmp_path):
    random_gpt2(tie_word_embeddings=False).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    _, problem = refused(tmp_path)
    assert problem.strip().startswith("lm_head.weight is not transformer.wte.weight")
    assert load(tmp_path, cfg={"tie_embeddings": False}).cfg.tie_embeddings is False


def test_an_untied_model_without_its_head_is_refused(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}))
    _, problem = refused(tmp_path)
    assert problem.strip() == "out_head.weight has nothing to load"


def test_a_config_that_the_tensors_contradict_lists_every_field(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    changes = {"n_layer": 10**9, "n_positions": 15}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    _, *problems = refused(tmp_path)
    assert [problem.strip() for problem in problems] == [
        "context_length is 15 in its config, and the tensors give 16",
        "n_layers is 1000000000 in its config, and the tensors give 2",
    ]


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    random_gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"wpe.weight": torch.zeros(16, 128)}, tmp_path / "model.safetensors")
    _, problem = refused(tmp_path)
    assert problem.strip() == "wpe.weight is unexpected"


def test_a_foreign_config_beside_a_file_is_not_asked(tmp_path):
    ours = random_ours()
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    (tmp_path / "config.json").write_text('{"editor": "vi"}')
    assert_same_weights(load(tmp_path / "a.pth", cfg={"n_heads": 2}), ours)


def test_heads_of_another_width_need_a_config(tmp_path):
    ours = random_ours(emb_dim=24, n_heads=3)
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    assert "the weights do not say n_heads" in refused(tmp_path / "a.pth")[0]
    again = load(tmp_path / "a.pth", cfg={**SHAPE, "emb_dim": 24, "n_heads": 3})
    assert_same_logits(again, ours)


def test_a_guessed_number_of_heads_is_said(tmp_path):
    ours = random_ours(n_heads=4)
    torch.save(ours.state_dict(), tmp_path / "a.pth")
    message = r"a\.pth: the weights do not say how many heads .* n_heads=2 is a guess.*cfg={"
    with pytest.warns(UserWarning, match=message) as warned:
        guessed = load(tmp_path / "a.pth")
    assert [warning.filename for warning in warned] == [__file__]
    assert guessed.cfg.n_heads == 2
    with pytest.raises(AssertionError):
        assert_same_logits(guessed, ours)
    with pytest.warns(UserWarning, match=message):
        config_of_pretrained(tmp_path / "a.pth")
    # What the message says to write, either way; pytest makes an error of any further warning.
    assert_same_logits(load(tmp_path / "a.pth", cfg={"n_heads": 4}), ours)
    (tmp_path / "config.json").write_text('{"emb_dim": 128, "n_heads": 4}')
    assert_same_logits(load(tmp_path / "a.pth"), ours)


def test_a_mapping_says_only_what_it_has(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path)
    expected = replace(load(tmp_path).cfg, drop_rate=0.3)
    assert load(tmp_path, cfg={"drop_rate": 0.3}).cfg == expected
    assert load(tmp_path, cfg={}).cfg == load(tmp_path).cfg
    _, *problems = refused(tmp_path, ConfigError, cfg={"n_heads": 4, "drop_rate": 0.3})
    assert [problem.split(" in cfg")[0].strip() for problem in problems] == ["n_heads is 4"]
    (message,) = refused(tmp_path, ConfigError, cfg={"n_head": 2})
    assert "did you mean 'n_heads'?" in message
    # A whole config means all of its fields, a preset too.
    with pytest.raises(ConfigError, match="does not fit the weights") as error:
        load(tmp_path, cfg="gpt2-124m")
    assert len(str(error.value).splitlines()) == 6


class Bomb:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_pickled_objects_are_refused_and_not_run(tmp_path, capsys):
    torch.save({"model": Bomb()}, tmp_path / "a.pth")
    (message,) = refused(tmp_path / "a.pth")
    assert "holds other pickled objects, which could run code" in message
    # torch's own text says how to run them, in bold.
    assert message.endswith("(found print). Save the model's state_dict() instead")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_whole_model_that_was_pickled_is_refused_by_its_class(tmp_path, is_zip):
    torch.save(random_ours(), tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    (message,) = refused(tmp_path / "a.pth")
    assert message.endswith(
        "(found gptrs.model.gpt.GPTModel). Save the model's state_dict() instead"
    )
    assert message.isprintable()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x80\x02", bytes(99)])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.safetensors.index.json", "a.txt"])
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refused(tmp_path / name)[0]


def test_other_models_say_what_was_found(tmp_path):
    save_file({"bert.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert "it has bert.weight" in refused(tmp_path / "a.safetensors")[0]
    torch.save([torch.zeros(2)], tmp_path / "a.pth")
    assert "a dict of tensors by name; found a list" in refused(tmp_path / "a.pth")[0]
    assert "there is no model.safetensors or" in refused(tmp_path)[0]


@pytest.mark.parametrize("name", ["gpt2-small-124M.pth", "a.pt", "a.safetensors", "sharded"])
def test_a_folders_only_weights_need_no_usual_name(tmp_path, name):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB" if name == "sharded" else "5GB")
    if name == "sharded":
        index = tmp_path / "model.safetensors.index.json"
        index.rename(tmp_path / "other.safetensors.index.json")
        for shard in tmp_path.glob("model-*"):
            shard.rename(tmp_path / shard.name.replace("model", "other"))
        renamed = index.with_name("other.safetensors.index.json")
        renamed.write_text(renamed.read_text().replace("model-", "other-"))
    elif name == "a.safetensors":
        (tmp_path / "model.safetensors").rename(tmp_path / name)
    else:
        torch.save(theirs.state_dict(), tmp_path / name)
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / "train.bin").touch()
    assert_same_logits(load(tmp_path), theirs)


def test_several_files_of_weights_are_named(tmp_path):
    for name in ("b.pth", "a.safetensors", ".hidden.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert "several other files of weights: a.safetensors, b.pth. Name the" in refused(tmp_path)[0]


def test_a_shard_by_itself_points_to_its_index(tmp_path):
    random_gpt2().save_pretrained(tmp_path, max_shard_size="1MB")
    shard, *others = sorted(tmp_path.glob("model-*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    text = f"{shard}: one of {1 + len(others)} shards of a model: "
    assert len(others) > 0
    assert refused(shard) == [f"{text}open {index}"]
    index.unlink()
    assert refused(shard) == [f"{text}{index.name}, which joins them, is missing"]


def test_a_model_that_is_its_only_shard_is_read(tmp_path):
    theirs = random_gpt2()
    theirs.save_pretrained(tmp_path)
    shard = tmp_path / "model-00001-of-00001.safetensors"
    (tmp_path / "model.safetensors").rename(shard)
    for path in (shard, tmp_path):
        assert_same_logits(load(path), theirs)


def test_an_index_opens_nothing_outside_its_folder(tmp_path):
    (tmp_path / "a").mkdir()
    random_gpt2().save_pretrained(tmp_path)
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../model.safetensors"}}))
    assert "is not the name of a file beside it" in refused(index)[0]


def test_a_shard_without_a_promised_tensor_is_noticed(tmp_path):
    random_gpt2().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = max(tmp_path.glob("model-*.safetensors"))
    tensors = load_file(shard)
    del tensors["transformer.ln_f.weight"]
    save_file(tensors, shard)
    assert "final_norm.scale has nothing to load" in refused(tmp_path)[1]

"""LoRA against its own formula in float64, on every kind of position, under the Generator."""

import json
import random
from typing import get_args

import pytest
import torch
from llms_from_scratch import appendix_e, ch04, ch05
from safetensors import safe_open
from torch import nn

import gptrs
from gptrs.config import Pos
from gptrs.errors import CheckpointError, ConfigError
from gptrs.model.lora import (
    LoRALinear,
    add_lora,
    base_fingerprint,
    has_lora,
    load_lora,
    load_lora_state_dict,
    lora_state_dict,
    merge_lora,
    merged_copy,
    save_lora,
)

SEEDS = range(20)
SHAPE = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 32,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
TARGETS = ("W_query", "W_key", "W_value", "out_proj", "ff.layers.0", "ff.layers.2", "out_head")


def gpt(seed=0, **changes):
    torch.manual_seed(seed)
    return gptrs.GPTModel(SHAPE | changes).eval()


def adapted(seed=0, rank=4, alpha=8, targets=("W_query", "W_value"), dropout=0.0, **changes):
    """A model whose adapters have learned something."""
    model = gpt(seed, **changes)
    add_lora(model, rank, alpha, targets, dropout)
    for tensor in lora_state_dict(model).values():
        tensor.normal_(std=0.1)
    return model


def random_case(seed):
    draw = random.Random(seed)
    return {
        "seed": seed,
        "rank": draw.randrange(1, 9),
        "alpha": draw.choice([1, 8, 0.5, 32.0]),
        "targets": draw.sample(TARGETS, draw.randrange(1, len(TARGETS))),
        "pos": get_args(Pos)[seed % len(get_args(Pos))],
        "qkv_bias": draw.choice([True, False]),
    }


def logits(model, **options):
    ids = torch.randint(0, 61, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids, **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_layer_computes_the_papers_formula(seed):
    draw = random.Random(seed)
    d_in, d_out, rank = (draw.randrange(1, 20) for _ in range(3))
    torch.manual_seed(seed)
    linear = nn.Linear(d_in, d_out, bias=draw.choice([True, False])).double()
    layer = LoRALinear(linear, rank, alpha=draw.choice([1, 7.5]))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 5, d_in, dtype=torch.float64)
    delta = torch.einsum("or,ri->oi", layer.lora_B, layer.lora_A) * layer.alpha / rank
    expected = torch.einsum("bti,oi->bto", x, linear.weight + delta)
    expected = expected if linear.bias is None else expected + linear.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_changes_before_the_first_step_and_only_adapters_learn(seed):
    case = random_case(seed)
    rank, targets = case.pop("rank"), case.pop("targets")
    alpha = case.pop("alpha")
    model = gpt(**case)
    before = logits(model)
    shapes = [tuple(m.weight.shape) for n, m in model.named_modules()
              if isinstance(m, nn.Linear) and n.endswith(tuple(targets))]  # fmt: skip
    names = add_lora(model, rank, alpha, targets)
    assert len(names) == len(shapes)
    assert torch.equal(logits(model), before)
    learning = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == sum(rank * (o + i) for o, i in shapes)
    assert {id(p) for p in learning} == {
        id(p) for n, p in model.named_parameters() if n.endswith(("lora_A", "lora_B"))
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_merged_model_is_plain_and_computes_the_same(seed):
    model = adapted(**random_case(seed))
    before, plain = logits(model), logits(gpt(seed, pos=model.cfg.pos, qkv_bias=model.cfg.qkv_bias))
    merge_lora(model)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert [type(m) for m in model.modules()] == [
        type(m) for m in gptrs.GPTModel(model.cfg).modules()
    ]
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, plain, rtol=1e-3, atol=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_saved_is_the_adapters_alone_and_fits_the_same_model_only(tmp_path, seed):
    case = random_case(seed)
    model = adapted(**case)
    save_lora(model, tmp_path)
    described = json.loads((tmp_path / "lora.json").read_text())
    with safe_open(tmp_path / described["tensors"], "pt") as file:
        assert {*file.keys()} == {*lora_state_dict(model)}
    shape = {"pos": case["pos"], "qkv_bias": case["qkv_bias"]}
    same, other = gpt(seed, **shape), gpt(seed + 1, **shape)
    load_lora(same, tmp_path)
    assert torch.equal(logits(same), logits(model))
    with pytest.raises(CheckpointError, match=r"another model's adapters:\n.*trained beside"):
        load_lora(other, tmp_path)
    assert not has_lora(other)
    assert all(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("name", ["tok_emb.weight", "final_norm.shift", "trf_blocks.1.norm2.scale"])
def test_adapters_are_refused_by_a_base_with_one_bit_changed_anywhere(tmp_path, name):
    save_lora(adapted(), tmp_path)
    other = gpt()
    with torch.no_grad():
        other.get_parameter(name).view(torch.int32).view(-1)[-1].bitwise_xor_(1)
    with pytest.raises(CheckpointError, match=r"the weights have SHA-256 \w{16}\.\.\., and those"):
        load_lora(other, tmp_path)
    assert not has_lora(other)


def test_a_fingerprint_is_of_the_base_alone_and_of_all_of_it():
    model = gpt()
    found = base_fingerprint(model)
    add_lora(model, 4, 8, TARGETS)
    for tensor in lora_state_dict(model).values():
        tensor.normal_()
    assert base_fingerprint(model) == found
    assert base_fingerprint(nn.ModuleDict({"_orig_mod": model})) == found  # A compiled one.
    assert base_fingerprint(model.to(torch.bfloat16)) != found
    assert base_fingerprint(gpt(1)) != found
    # A tied matrix counts once, under whichever name.
    tied = gpt(tie_embeddings=True, init="gpt2")
    assert base_fingerprint(tied) == base_fingerprint(gpt(tie_embeddings=True, init="gpt2"))


def test_a_fingerprint_that_is_known_is_saved_as_it_is(tmp_path):
    model = adapted()
    save_lora(model, tmp_path / "one")
    save_lora(model, tmp_path / "other", fingerprint=base_fingerprint(gpt()))
    one, other = (json.loads((tmp_path / x / "lora.json").read_text()) for x in ("one", "other"))
    assert one == other


def test_adapters_beside_a_head_that_learned_too_load_before_it_is_there(tmp_path):
    model = adapted()
    model.out_head.requires_grad_(True)
    torch.nn.init.normal_(model.out_head.weight)
    save_lora(model, tmp_path)
    fresh = gpt()
    load_lora(fresh, tmp_path)
    assert all(map(torch.equal, lora_state_dict(fresh).values(), lora_state_dict(model).values()))


def test_adapters_saved_before_there_were_fingerprints_still_load(tmp_path):
    save_lora(adapted(), tmp_path)
    file = tmp_path / "lora.json"
    content = json.loads(file.read_text())
    del content["base"]["sha256"], content["base"]["dtype"]
    file.write_text(json.dumps(content))
    load_lora(gpt(), tmp_path)
    with pytest.raises(CheckpointError, match="trained beside"):
        load_lora(gpt(1), tmp_path)


def test_a_state_dict_of_adapters_goes_back_into_the_same_adapters_only():
    model, same = adapted(), adapted(seed=3)
    load_lora_state_dict(same, lora_state_dict(model))
    assert all(map(torch.equal, lora_state_dict(same).values(), lora_state_dict(model).values()))
    before = [tensor.clone() for tensor in lora_state_dict(same).values()]
    wrong = {**lora_state_dict(adapted(rank=2)), "tok_emb.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_lora_state_dict(same, wrong)
    assert "W_query.lora_A is [2, 32], and the model needs [4, 32]" in str(caught.value)
    assert "tok_emb.weight is not the model's" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"W_value.lora_B is missing, and the model needs"):
        load_lora_state_dict(same, lora_state_dict(adapted(targets="W_query")))
    assert all(map(torch.equal, lora_state_dict(same).values(), before))
    with pytest.raises(ConfigError, match="has no LoRA layers"):
        load_lora_state_dict(gpt(), {})


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_a_merged_copy_can_be_saved_and_read_while_the_model_learns_on(tmp_path, seed):
    case = random_case(seed)
    model = adapted(**case)
    before, generator = logits(model), torch.get_rng_state()
    plain = merged_copy(model)
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(logits(plain), before, rtol=1e-4, atol=1e-5)
    plain.save_pretrained(tmp_path)
    read = gptrs.GPTModel.from_pretrained(tmp_path)
    assert torch.equal(logits(read), logits(plain))
    # The model itself is what it was, and only its adapters learn.
    assert has_lora(model)
    assert torch.equal(logits(model), before)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {*lora_state_dict(model)}


def test_a_merged_copy_takes_memory_for_the_adapted_layers_only():
    model = adapted(tie_embeddings=True, init="gpt2")
    shared = {p.data_ptr() for p in model.parameters()}
    plain = merged_copy(model)
    own = [n for n, p in plain.named_parameters() if p.data_ptr() not in shared]
    adapted_names = {name.rpartition(".")[0] + ".weight" for name in lora_state_dict(model)}
    assert {*own} == adapted_names
    assert plain.out_head.weight is plain.tok_emb.weight
    with pytest.raises(ConfigError, match="has no LoRA layers"):
        merged_copy(gpt())


def test_adapters_load_into_the_same_model_in_bfloat16(tmp_path):
    save_lora(adapted(), tmp_path)
    model = gpt().to(torch.bfloat16)
    load_lora(model, tmp_path)
    assert {tensor.dtype for tensor in lora_state_dict(model).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emb_dim": 16}, r"trf_blocks.0.att.W_query.lora_A is \[4, 32\], and the model needs"),
        ({"n_layers": 1}, "the model has no nn.Linear trf_blocks.1.att.W_query"),
    ],
)
def test_adapters_of_another_shape_are_refused_and_all_that_differs_is_said(
    tmp_path, changes, message
):
    save_lora(adapted(), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_lora(gpt(**changes), tmp_path)


def test_a_damaged_or_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"lora\.json: no such file"):
        load_lora(gpt(), tmp_path)
    save_lora(adapted(), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="damaged: its content changed"):
        load_lora(gpt(), tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_lora(gpt(), tmp_path)
    for content in ("{", "[]", "{}", '{"format": "gptrs-lora", "version": 9}'):
        (tmp_path / "lora.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"lora\.json"):
            load_lora(gpt(), tmp_path)


def test_a_second_save_replaces_the_first_and_leaves_nothing_of_it(tmp_path):
    save_lora(adapted(rank=2), tmp_path)
    model = adapted(rank=3)
    save_lora(model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    same = gpt()
    load_lora(same, tmp_path)
    assert torch.equal(logits(same), logits(model))


def test_the_books_names_stay_and_a_book_checkpoint_still_loads():
    model, other = adapted(), gpt(5)
    assert {*gpt().state_dict()} <= {*model.state_dict()}
    result = model.load_state_dict(other.state_dict(), strict=False)
    assert {name.rsplit(".", 1)[1] for name in result.missing_keys} == {"lora_A", "lora_B"}
    assert torch.equal(
        model.trf_blocks[0].att.W_query.weight, other.trf_blocks[0].att.W_query.weight
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("W_q",), "target 'W_q' is no nn.Linear of this model; there are att.W_query, att.W_key, "
                   "att.W_value, att.out_proj, ff.layers.0, ff.layers.2, out_head"),
        (("W_query", "tok_emb"), "target 'tok_emb' is no nn.Linear"),
        ((), "targets name no layer"),
    ],
)  # fmt: skip
def test_a_target_that_is_not_there_is_refused_with_those_that_are(targets, message):
    model = gpt()
    with pytest.raises(ConfigError, match=message):
        add_lora(model, 4, 8, targets)
    assert not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"rank": 1.5}, {"alpha": 0}, {"alpha": float("inf")}, {"dropout": 1.0}]
)
def test_an_impossible_number_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        add_lora(gpt(), **({"rank": 4, "alpha": 8} | wrong))


def test_one_block_or_one_layer_can_be_meant():
    assert add_lora(gpt(), 2, 2, "trf_blocks.1.att.W_key") == ["trf_blocks.1.att.W_key"]
    assert add_lora(gpt(), 2, 2, "out_head") == ["out_head"]


def test_all_means_every_linear_layer_and_none_that_shares_its_weight():
    linears = [name for name, module in gpt().named_modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 6 * SHAPE["n_layers"] + 1
    assert add_lora(gpt(), 2, 2, "all") == add_lora(gpt(), 2, 2, ["W_key", "all"]) == linears
    with pytest.raises(ConfigError, match="out_head shares its weight with tok_emb"):
        add_lora(gpt(tie_embeddings=True, init="gpt2"), 2, 2, "all")
    with pytest.raises(ConfigError, match="targets name no layer; there are none"):
        add_lora(nn.Sequential(nn.ReLU()), 2, 2, "all")


def with_the_books_adapters(seed, rank, alpha):
    """Appendix E's recipe, with adapters that have learned something."""
    model = spam_classifier(seed)
    for parameter in model.parameters():
        parameter.requires_grad = False
    appendix_e.replace_linear_with_lora(model, rank, alpha)
    for name, parameter in model.named_parameters():
        if name.endswith("lora.B"):
            nn.init.normal_(parameter, std=0.1)
    return model.double()


def spam_classifier(seed):
    model = gpt(seed, qkv_bias=True)
    model.out_head = nn.Linear(SHAPE["emb_dim"], 2)
    return model.double()


@pytest.mark.parametrize("seed", SEEDS)
def test_with_all_targets_and_alpha_times_rank_it_computes_what_the_books_lora_does(seed):
    draw = random.Random(seed)
    rank, alpha = draw.randrange(1, 9), draw.choice([1, 16, 0.5])
    theirs, ours = with_the_books_adapters(seed, rank, alpha), spam_classifier(seed)
    names = add_lora(ours, rank, alpha * rank, targets="all")
    pairs = [(ours.get_submodule(n).adapters, theirs.get_submodule(n).lora) for n in names]
    with torch.no_grad():
        ours.out_head.weight.copy_(theirs.out_head.linear.weight)
        ours.out_head.bias.copy_(theirs.out_head.linear.bias)
        for (lora_A, lora_B), lora in pairs:
            lora_A.copy_(lora.A.T)
            lora_B.copy_(lora.B.T)
    torch.testing.assert_close(logits(ours), logits(theirs))
    learning = [[p for p in model.parameters() if p.requires_grad] for model in (ours, theirs)]
    assert len(learning[0]) == len(learning[1]) == 2 * len(names)
    assert sum(p.numel() for p in learning[0]) == sum(p.numel() for p in learning[1])
    ids, labels = torch.randint(0, 61, (4, 9)), torch.randint(0, 2, (4,))
    for model in (ours, theirs):
        nn.functional.cross_entropy(model(ids)[:, -1, :], labels).backward()
    for (lora_A, lora_B), lora in pairs:
        torch.testing.assert_close(lora_A.grad, lora.A.grad.T)
        torch.testing.assert_close(lora_B.grad, lora.B.grad.T)


def test_the_books_own_lora_works_with_our_model():
    theirs, ours = ch04.GPTModel(SHAPE).eval(), gpt()
    theirs.load_state_dict(ours.state_dict(), strict=False)  # It has masks besides.
    for model in (theirs, ours):
        model.requires_grad_(False)
        torch.manual_seed(1)
        appendix_e.replace_linear_with_lora(model, 4, 8)
        for name, parameter in model.named_parameters():
            if name.endswith("lora.B"):
                nn.init.normal_(parameter, std=0.1)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)
    ids = torch.randint(0, 61, (2, 9))
    assert torch.equal(gptrs.generate(ours, ids[:1], 6, 16), ch05.generate(theirs, ids[:1], 6, 16))
    losses = [gptrs.calc_loss_batch(ids, ids, m, "cpu") for m in (ours, theirs)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    for loss in losses:
        loss.backward()
    for mine, true in zip(ours.parameters(), theirs.parameters(), strict=True):
        if true.requires_grad:
            torch.testing.assert_close(mine.grad, true.grad, rtol=1e-3, atol=1e-4)


def test_adapters_twice_none_at_all_or_on_a_tied_head_are_refused():
    with pytest.raises(ConfigError, match="has LoRA layers already"):
        add_lora(adapted(), 2, 2)
    with pytest.raises(ConfigError, match="has no LoRA layers"):
        merge_lora(gpt())
    with pytest.raises(ConfigError, match="out_head shares its weight with tok_emb"):
        add_lora(gpt(tie_embeddings=True, init="gpt2"), 2, 2, "out_head")


def test_dropout_works_while_training_only():
    model = adapted(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


def test_it_learns_what_the_frozen_model_does_not_know():
    model = gpt()
    add_lora(model, 8, 16, TARGETS)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(16).repeat(4, 1)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize("pos", get_args(Pos))
def test_the_generator_writes_the_same_with_adapters_and_with_them_merged(pos):
    model = adapted(targets=TARGETS, pos=pos)
    options = {"temperature": 0.0, "eos_id": None}
    with_adapters = gptrs.Generator(model, Numbers())([1, 2, 3], 9, **options)
    merge_lora(model)
    merged = gptrs.Generator(model, Numbers())([1, 2, 3], 9, **options)
    plain = gptrs.Generator(gpt(pos=pos), Numbers())([1, 2, 3], 9, **options)
    assert with_adapters[0].token_ids == merged[0].token_ids != plain[0].token_ids


def test_a_generator_notices_adapters_that_come_learn_and_are_merged():
    model = gpt()
    gen, options = gptrs.Generator(model, Numbers()), {"temperature": 0.0, "eos_id": None}
    written = [gen([1, 2, 3], 9, **options)[0].token_ids]
    add_lora(model, 4, 8, TARGETS)
    written.append(gen([1, 2, 3], 9, **options)[0].token_ids)
    for tensor in lora_state_dict(model).values():
        tensor.normal_(std=0.1)
    written.append(gen([1, 2, 3], 9, **options)[0].token_ids)
    merge_lora(model)
    written.append(gen([1, 2, 3], 9, **options)[0].token_ids)
    assert written[0] == written[1] != written[2] == written[3]


class Numbers:
    """A tokenizer whose texts are the ids themselves."""

    def encode(self, text):
        return [int(number) for number in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

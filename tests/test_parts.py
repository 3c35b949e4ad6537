from torch import nn

from gptrs import GPTModel
from gptrs.model.parts import modules_of, parameters_of

SHAPE = {"vocab_size": 61, "context_length": 24, "emb_dim": 32, "n_heads": 2, "n_layers": 2}


def test_walks_find_what_pytorchs_find_and_everything_once():
    model = GPTModel(SHAPE | {"drop_rate": 0.1, "qkv_bias": True})
    model.out_head.weight = model.tok_emb.weight
    model.trf_blocks[1].ff = model.trf_blocks[0].ff
    model.register_module("nothing", None)
    model.trf_blocks[0].register_parameter("none", None)
    model.child = nn.ModuleList([model.trf_blocks[0], nn.Linear(2, 3)])
    for found, expected in [
        (modules_of(model), list(model.modules())),
        (parameters_of(model), list(model.parameters())),
    ]:
        assert len(found) == len(expected)
        assert {id(each) for each in found} == {id(each) for each in expected}
    assert modules_of(model)[0] is model

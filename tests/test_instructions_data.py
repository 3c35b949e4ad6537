"""Instructions as `gptrs.train` takes them."""

import pytest

import gptrs
from gptrs.config import GPTConfig
from gptrs.errors import ConfigError, DataError, TokenIdError
from gptrs.training.config import TrainingConfig
from gptrs.training.instructions.data import instruction_data

CFG = GPTConfig(context_length=128, emb_dim=16, n_heads=2, n_layers=1)
CONFIG = TrainingConfig(batch_tokens=4 * 128, micro_batch=3, device="cpu", seed=3)
TOKENIZER = gptrs.get_tokenizer("gpt2")


def entries(count, first=0):
    return [
        {"instruction": "Say it.", "input": str(number), "output": f"It is {number}."}
        for number in range(first, first + count)
    ]


def made(data, **options):
    return instruction_data(data, TOKENIZER, CFG, CONFIG, **options)


def test_the_sizes_are_the_training_configs():
    data = made(entries(50))
    assert data.source.num_tokens_per_step == 4 * 128
    assert [len(batch.inputs) for batch in data.source.micro_batches(0)] == [4]
    assert [len(batch.inputs) for batch in data.source.cut(3).micro_batches(0)] == [3, 1]
    assert {len(batch.inputs) for batch in data.validation[:-1]} <= {3}
    assert "to train on: 45 instructions" in data.description
    assert "held out: 5 instructions" in data.description


def test_what_is_validated_on_can_be_given_and_is_no_more_than_the_config_says():
    data = made(entries(9), validation=entries(400, first=1000))
    assert "to train on: 9 instructions" in data.description
    few = TrainingConfig(batch_tokens=512, device="cpu", max_validation_tokens=5 * 128)
    some = instruction_data(entries(9), TOKENIZER, CFG, few, validation=entries(400, first=1000))
    assert sum(len(batch.inputs) for batch in data.validation) > 100
    assert sum(len(batch.inputs) for batch in some.validation) == 5


def test_a_resume_notices_other_entries_also_among_those_held_out():
    described = made(entries(50)).source.describe()
    assert made(entries(50)).source.describe() == described
    for number in range(50):
        changed = entries(50)
        changed[number]["output"] = "It is not."
        assert made(changed).source.describe() != described


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, DataError, "the list of entries is empty"),
        ([{"instruction": "a"}], {}, DataError, "entry 0 has no 'output'"),
        (entries(1), {}, DataError, "two instructions at least, found 1"),
        (entries(2), {"loss_on": "prompts"}, ConfigError, "loss_on is one of response, all"),
        (
            [{"instruction": "long " * 200, "output": "b"}] * 2,
            {},
            DataError,
            "all 1 instructions are longer than 128 tokens: the shortest has 2",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused_before_any_compute(data, options, error, message):
    with pytest.raises(error, match=message):
        made(data, **options)


def test_an_id_that_the_model_does_not_know_is_refused():
    small = GPTConfig(**CFG.to_dict() | {"vocab_size": 1000})
    with pytest.raises(TokenIdError, match=r"outside 0\.\.999"):
        instruction_data(entries(9), TOKENIZER, small, CONFIG)

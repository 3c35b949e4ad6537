"""A tiny GPT learns to answer, alone or through adapters, and what it learns can be resumed."""

import json
import signal

import pytest
import torch
from torch.nn import functional as F

import gptrs
from gptrs.model.lora import add_lora
from gptrs.training.callbacks import Callback
from gptrs.training.config import TrainingConfig
from gptrs.training.instructions.data import instruction_data
from gptrs.training.instructions.template import format_prompt
from gptrs.training.instructions.tokens import hold_out
from gptrs.training.precision import MicroBatch
from gptrs.training.step import StepLoss
from gptrs.training.trainer import train

ANIMALS = {
    "dog": ("barks", "four"), "duck": ("quacks", "two"), "cow": ("moos", "four"),
    "bee": ("buzzes", "six"), "snake": ("hisses", "no"), "cat": ("meows", "four"),
    "owl": ("hoots", "two"), "horse": ("neighs", "four"), "fly": ("hums", "six"),
    "pig": ("grunts", "four"), "crow": ("caws", "two"), "ant": ("is silent", "six"),
}  # fmt: skip
SOUND = ("What does it say?", "Name the sound of the animal.", "Which noise does it make?")
LEGS = ("How many legs has it?", "Count the legs of the animal.", "On how many legs does it walk?")
LENGTH = 128


def entries():
    """Three ways to ask two things about each animal."""
    asked = [(question, animal) for animal in ANIMALS for question in (*SOUND, *LEGS)]
    return [
        {
            "instruction": question,
            "input": animal,
            "output": f"The {animal} {ANIMALS[animal][0]}."
            if question in SOUND
            else f"The {animal} has {ANIMALS[animal][1]} legs.",
        }
        for question, animal in asked
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n".join(format_prompt(entry) + entry["output"] for entry in entries()))
    return gptrs.train_tokenizer(file, vocab_size=400)


def gpt(tokenizer):
    torch.manual_seed(0)
    return gptrs.GPTModel(
        {
            "vocab_size": tokenizer.n_vocab,
            "context_length": LENGTH,
            "emb_dim": 64,
            "n_heads": 4,
            "n_layers": 2,
            "drop_rate": 0.0,
            "qkv_bias": False,
            "init": "gpt2",
            "tie_embeddings": True,
        }
    )


def config(**changes):
    settings = {
        "steps": 160,
        "learning_rate": 1e-2,
        "warmup_steps": 10,
        "schedule": "cosine",
        "batch_tokens": 6 * LENGTH,
        "num_evaluations": 1,
        "validation_fraction": 0.15,
        "device": "cpu",
        "dtype": "float32",
    }
    return TrainingConfig(**settings | changes)


def learn(model, tokenizer, run_dir, config, **options):
    data = instruction_data(entries(), tokenizer, model.cfg, config)
    return train(
        model,
        data.source,
        config,
        run_dir=run_dir,
        tokenizer=tokenizer,
        validation=data.validation,
        **options,
    )


class StopAt(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run, record):
        if record.step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_the_loss_on_responses_falls_and_questions_that_were_held_out_are_answered(
    tokenizer, tmp_path
):
    model, settings = gpt(tokenizer), config()
    result = learn(model, tokenizer, tmp_path / "run", settings)
    first, last = result.evaluations[0], result.last
    assert first.val_loss > 5
    assert last.val_loss < first.val_loss / 5
    assert result.step_losses[-1] < 0.1
    gen = gptrs.Generator(tmp_path / "run")
    seen, unseen = hold_out(entries(), settings.validation_fraction, settings.seed)
    assert share_right(gen, seen) > 0.95
    assert share_right(gen, unseen) > 0.5


def share_right(gen, asked):
    """Of the answers, those that are whole, and end by themselves."""
    answers = gen([format_prompt(entry) for entry in asked], 20, temperature=0.0)
    right = [
        (answer.text, answer.finish_reason) == (entry["output"], "stop")
        for answer, entry in zip(answers, asked, strict=True)
    ]
    return sum(right) / len(right)


def test_adapters_learn_and_a_run_that_was_stopped_ends_as_an_unbroken_one(tokenizer, tmp_path):
    targets = ("W_query", "W_value", "ff.layers.0", "ff.layers.2")
    few = config(steps=30)

    def begin():
        model = gpt(tokenizer)
        add_lora(model, 8, 16, targets)
        return model

    unbroken = begin()
    result = learn(unbroken, tokenizer, tmp_path / "unbroken", few)
    assert result.step_losses[-1] < result.step_losses[0] - 0.3
    assert all(
        torch.equal(parameter, gpt(tokenizer).get_parameter(name))
        for name, parameter in unbroken.named_parameters()
        if not parameter.requires_grad
    )

    stopped = tmp_path / "stopped"
    assert learn(begin(), tokenizer, stopped, few, callbacks=[StopAt(11)]).interrupted
    again = begin()
    resumed = learn(again, tokenizer, stopped, few, resume=True)
    assert resumed.step_losses == result.step_losses
    both = zip(again.state_dict().values(), unbroken.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)


def test_how_many_rows_go_through_the_model_at_once_is_told_and_kept(
    tokenizer, tmp_path, monkeypatch, capsys
):
    few = config(steps=6)
    unbroken = learn(gpt(tokenizer), tokenizer, tmp_path / "unbroken", few)
    stopped = tmp_path / "stopped"
    learn(gpt(tokenizer), tokenizer, stopped, few, callbacks=[StopAt(2)])
    assert "768 tokens a step, 6 windows at once: the whole step fits" in capsys.readouterr().out
    # As on a machine with less memory.
    monkeypatch.setattr(
        "gptrs.training.parts.choose_micro_batch", lambda *args, **options: MicroBatch(1, "less")
    )
    resumed = learn(gpt(tokenizer), tokenizer, stopped, few, resume=True)
    assert resumed.step_losses == unbroken.step_losses
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    (again,) = [line for line in lines if line["event"] == "resumed"]
    assert (lines[0]["micro_batch"], again["changed"]) == (6, {})


@pytest.mark.parametrize("kind", ["tied", "head of its own", "adapters on the head", "hooked"])
def test_loss_and_gradients_are_torchs_though_most_positions_do_not_count(tokenizer, kind):
    model = gpt(tokenizer)
    if kind == "head of its own":
        model.out_head = torch.nn.Linear(64, tokenizer.n_vocab, bias=True)
    elif kind == "adapters on the head":
        model = gptrs.GPTModel(model.cfg.to_dict() | {"tie_embeddings": False})
        add_lora(model, 4, 8, ("W_query", "out_head"))
    elif kind == "hooked":
        model.register_forward_hook(lambda module, args, output: None)
    made = instruction_data(entries(), tokenizer, model.cfg, config())
    batch = next(made.source.micro_batches(0))
    assert batch.num_targets < batch.targets.numel() / 4
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = StepLoss(model)(*batch)
    logits = model(batch.inputs, cu_seqlens=batch.cu_seqlens).flatten(0, 1)
    torchs = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(ours, torchs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, learning), torch.autograd.grad(torchs, learning)
    )

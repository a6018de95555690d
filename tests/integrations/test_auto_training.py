"""Models for Auto classes in other people's training loops: Trainer, PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from helpers.auto_models import build, labels, result, tokens
from packaging import version

pytest.importorskip("accelerate")

NAMES = [
    "HyenaForCausalLM",
    "HyenaForMaskedLM",
    "HyenaForSequenceClassification",
    "HyenaForTokenClassification",
    "HyenaDNAForCausalLM",
    "HyenaDNAForSequenceClassification",
]


def rows(name: str) -> list[dict[str, torch.Tensor]]:
    ids = tokens(name, rows=6)
    return [
        {"input_ids": row, "labels": label, "attention_mask": torch.ones_like(row)}
        for row, label in zip(ids, labels(name, ids), strict=True)
    ]


def arguments(folder: Path, **changes: Any) -> Any:
    fixed = {
        "max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "report_to": [], "save_steps": 2,
        "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    return transformers.TrainingArguments(str(folder), **fixed | changes)


@pytest.mark.parametrize("name", NAMES)
def test_trainer(name: str, tmp_path: Path):
    """It learns, evaluates, saves, and goes on from a checkpoint to the same weights."""
    model = build(name, torch.float32)
    trainer = transformers.Trainer(model, arguments(tmp_path), train_dataset=rows(name), eval_dataset=rows(name))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    ids = tokens(name)
    model.eval()
    with torch.no_grad():
        want = result(model(ids))
        trainer.save_model(str(tmp_path / "last"))
        assert torch.equal(result(type(model).from_pretrained(tmp_path / "last")(ids)), want)
    second = transformers.Trainer(build(name, torch.float32), arguments(tmp_path / "again"), train_dataset=rows(name))
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with torch.no_grad():
        torch.testing.assert_close(result(second.model.eval()(ids)), want, rtol=1e-4, atol=1e-4)


def test_trainer_with_all_its_switches(tmp_path: Path):
    """Checkpointing of activations, accumulation, bfloat16, padding by the collator."""
    name = "HyenaForCausalLM"
    model = build(name, torch.float32)
    data = [{"input_ids": tokens()[0, : 5 + i]} for i in range(6)]

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        given = [row["input_ids"] for row in batch]
        ids = torch.nn.utils.rnn.pad_sequence(given, batch_first=True, padding_value=2)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in given], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    switches = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "bf16": True}
    trainer = transformers.Trainer(
        model, arguments(tmp_path, per_device_train_batch_size=2, **switches), train_dataset=data, data_collator=collate
    )
    assert trainer.train().training_loss > 0
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_loss_of_accumulated_batches_is_the_loss_of_one(tmp_path: Path):
    """What Trainer counts, the loss is divided by."""
    grads = []
    for size, steps in ((6, 1), (2, 3)):
        model = build("HyenaForCausalLM", torch.float32)
        trainer = transformers.Trainer(
            model,
            arguments(
                tmp_path / str(size), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
                learning_rate=0.1, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant",
            ),
            train_dataset=rows("HyenaForCausalLM"),
        )  # fmt: skip
        trainer.train()
        grads.append(model.model.blocks[0].mixer.in_proj.weight.detach().clone())
    torch.testing.assert_close(*grads)
    assert not torch.allclose(grads[0], build("HyenaForCausalLM", torch.float32).model.blocks[0].mixer.in_proj.weight)


@pytest.mark.parametrize("name", NAMES)
def test_lora_by_default(name: str, tmp_path: Path):
    """Without target_modules: the projections around the mixing; saved, loaded, merged."""
    peft = pytest.importorskip("peft")
    model = build(name, torch.float32)
    state = {key: t.clone() for key, t in model.state_dict().items()}
    tuned = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False))
    adapted = {key for key, part in tuned.named_modules() if isinstance(part, peft.tuners.lora.LoraLayer)}
    assert {key.split("model.", 1)[-1].split("blocks.")[-1] for key in adapted} == {
        f"{i}.mixer.{part}" for i in range(2) for part in ("in_proj", "out_proj")
    }
    ids = tokens(name)
    optimizer = torch.optim.SGD(tuned.parameters(), 1e-2)
    tuned.train()
    tuned(input_ids=ids, labels=labels(name, ids)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in tuned.parameters() if p.requires_grad)
    optimizer.step()
    tuned.eval()
    with torch.no_grad():
        want = result(tuned(input_ids=ids))
        tuned.save_pretrained(tmp_path / "adapter")
        base = build(name, torch.float32)
        base.load_state_dict(state)
        again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(result(again(input_ids=ids)), want)
        if "CausalLM" in name:
            how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
            text = tuned.generate(input_ids=ids, use_cache=False, **how)
            assert torch.equal(tuned.generate(input_ids=ids, **how), text)
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(result(merged(ids)), want, rtol=1e-4, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(result(type(merged).from_pretrained(tmp_path / "merged")(ids)), result(merged(ids)))


def test_adapters_of_transformers_itself(tmp_path: Path):
    peft = pytest.importorskip("peft")
    from transformers.integrations.peft import MIN_PEFT_VERSION

    if version.parse(peft.__version__) < version.parse(MIN_PEFT_VERSION):
        pytest.skip(f"this transformers wants PEFT {MIN_PEFT_VERSION} or later, here is {peft.__version__}")
    model = build("HyenaDNAForCausalLM", torch.float32)
    model.save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.add_adapter(peft.LoraConfig(init_lora_weights=False))
    ids = tokens("HyenaDNAForCausalLM")
    model.save_pretrained(tmp_path / "adapter")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = again(ids).logits
    again.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert not torch.allclose(again(ids).logits, plain)

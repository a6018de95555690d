"""Replaced models of transformers in other people's training loops: Trainer, accelerate, PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.attention_models import operators
from helpers.transformers_models import KINDS, tokens
from hyena.integrations import load_pretrained, replace_attention

accelerate = pytest.importorskip("accelerate")


def hyena_gpt2() -> nn.Module:
    model = KINDS["gpt2"].make().float()
    replace_attention(model)
    return model.train()


def rows() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tokens()]


def test_trainer(tmp_path: Path):
    import transformers

    model = hyena_gpt2()
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=3, learning_rate=1e-2, report_to=[], save_steps=2,
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    before = [op.in_proj.weight.clone() for op in operators(model)]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows())
    trainer.train()
    assert all(not torch.equal(a, op.in_proj.weight) for a, op in zip(before, operators(model), strict=True))
    trainer.save_model(str(tmp_path / "last"))
    model.eval()
    with torch.no_grad():
        want = model(tokens()).logits
        torch.testing.assert_close(load_pretrained(tmp_path / "last")(tokens()).logits, want)
    again = transformers.Trainer(hyena_gpt2(), arguments, train_dataset=rows())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(again.model.eval()(tokens()).logits, want, rtol=1e-3, atol=1e-4)


def test_accelerate(tmp_path: Path):
    accelerator = accelerate.Accelerator(cpu=True)
    model = hyena_gpt2()
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2))
    losses = []
    for _ in range(4):
        loss = prepared(tokens(), labels=tokens()).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    accelerator.save_state(str(tmp_path))
    want = prepared.eval()(tokens()).logits
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    accelerator.load_state(str(tmp_path))
    torch.testing.assert_close(prepared(tokens()).logits, want)


def test_lora(tmp_path: Path):
    peft = pytest.importorskip("peft")
    base = hyena_gpt2()
    state = {k: v.clone() for k, v in base.state_dict().items()}
    settings = peft.LoraConfig(target_modules=["in_proj", "out_proj"], init_lora_weights=False, lora_dropout=0.0)
    model = peft.get_peft_model(base, settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    first = model(tokens(), labels=tokens()).loss
    first.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    optimizer.step()
    model.eval()
    with torch.no_grad():
        want = model(tokens(), use_cache=False).logits
        settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 2}
        text = model.generate(input_ids=tokens(), use_cache=False, **settings)
        assert torch.equal(model.generate(input_ids=tokens(), **settings), text)
        model.save_pretrained(tmp_path)
        twin = hyena_gpt2()
        twin.load_state_dict(state)
        loaded = peft.PeftModel.from_pretrained(twin, tmp_path).eval()
        torch.testing.assert_close(loaded(tokens()).logits, want)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(tokens()).logits, want, rtol=1e-4, atol=1e-4)

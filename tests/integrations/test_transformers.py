"""Hugging Face's Trainer takes the steps of a plain loop, also for a model of PEFT."""

from __future__ import annotations

import copy

import pytest
import torch
from integrations.loops import METHODS, Run, each, needs, watch, windows

needs("transformers")
needs("accelerate")

import transformers  # noqa: E402

from momo.integrations.transformers import RecordLoss, Trainer  # noqa: E402


def make_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def make_data():
    """Texts whose first tokens don't count, more in some than in others, so that micro-batches weigh differently."""
    generator = torch.Generator().manual_seed(1)
    data = []
    for i in range(32):
        tokens = torch.randint(32, (12,), generator=generator)
        labels = tokens.clone()
        labels[: i % 9] = -100
        data.append({"input_ids": tokens, "labels": labels})
    return data


def token_losses(model, batch):
    """The sum over the tokens that count."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def divided(model, batch):
    return token_losses(model, batch) / batch["num_items_in_batch"]


def trained(method, folder, *, trainer=Trainer, model=None, resume=None, **options):
    """A trainer after training, which has the steps' diagnostics as ``seen`` and the micro-batches as ``batches``."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no",
        per_device_train_batch_size=4, lr_scheduler_type="constant",
        **{"num_train_epochs": 1, "max_grad_norm": 0.0, "save_strategy": "no", **options},
    )  # fmt: skip
    model = make_model() if model is None else model
    done = trainer(model=model, args=arguments, train_dataset=make_data(), optimizer_cls_and_kwargs=method)
    done.batches = []
    done.seen = watch(done.create_optimizer())

    def spied(module, args, kwargs):
        done.batches.append({k: v.clone() if torch.is_tensor(v) else v for k, v in kwargs.items()})

    handle = model.register_forward_pre_hook(spied, with_kwargs=True)
    done.train(resume_from_checkpoint=resume)
    handle.remove()
    return done


@each
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(
    "options, plain",
    [({}, {}), ({"max_grad_norm": 0.5}, {"clip": 0.5}), ({"bf16": True}, {"autocast": torch.bfloat16})],
    ids=["plain", "clipped", "bf16"],
)
def test_trainer(method, length, options, plain, tmp_path):
    done = trained(method, tmp_path, gradient_accumulation_steps=length, **options)
    assert len(done.batches) == 8
    Run(method, windows(length, done.batches), model=make_model(), loss_of=divided, **plain).check(
        done.seen, done.model
    )


@each
def test_before_a_trainer_that_computes_its_own_loss(method, tmp_path):
    class Doubled(transformers.Trainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.model_accepts_loss_kwargs = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return 2 * token_losses(model, inputs) / inputs["labels"].numel()

    class Recorded(RecordLoss, Doubled):
        pass

    def loss_of(model, batch):
        return 2 * token_losses(model, batch) / batch["labels"].numel() / batch["micro_batches"]

    done = trained(method, tmp_path, trainer=Recorded, gradient_accumulation_steps=3)
    batches = list(torch.utils.data.DataLoader(make_data(), batch_size=4, sampler=order(done)))
    steps = windows(3, batches)
    for step in steps:
        for batch in step:
            batch["micro_batches"] = len(step)
    Run(method, steps, model=make_model(), loss_of=loss_of).check(done.seen, done.model)


def order(done):
    """The indices of the texts as they were drawn: each text is another one."""
    texts = [x["input_ids"].tolist() for x in make_data()]
    return [texts.index(x.tolist()) for batch in done.batches for x in batch["input_ids"]]


@each
def test_resumed(method, tmp_path):
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = trained(method, tmp_path / "whole", **options)
    resumed = trained(method, tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-2"), **options)
    assert len(whole.seen) == 6 and len(resumed.seen) == 4
    for got, expected in zip(resumed.seen, whole.seen[2:]):
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert all(torch.equal(p, q) for p, q in zip(resumed.model.parameters(), whole.model.parameters()))


@pytest.mark.parametrize("method", METHODS[:1])
def test_their_own_trainer_is_refused(method, tmp_path):
    with pytest.raises(RuntimeError, match=r"momo\.integrations\.transformers\.Trainer"):
        trained(method, tmp_path, trainer=transformers.Trainer)


def test_another_optimizer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="needs an optimizer of momo"):
        trained((torch.optim.SGD, {"lr": 0.1}), tmp_path)


@each
@pytest.mark.parametrize("length", [1, 3])
def test_peft(method, length, tmp_path):
    needs("peft")
    import peft

    config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights="gaussian")
    start = peft.get_peft_model(make_model(), config)
    model = copy.deepcopy(start)
    done = trained(method, tmp_path, model=model, gradient_accumulation_steps=length)
    frozen = [(p, q) for p, q in zip(model.parameters(), start.parameters()) if not q.requires_grad]
    assert frozen and all(torch.equal(p, q) for p, q in frozen)
    Run(method, windows(length, done.batches), model=start, loss_of=divided).check(done.seen, done.model)

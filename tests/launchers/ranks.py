"""One process of training runs under a launcher, or all of them alone: ranks.py CASES.json, a list of cases.

A case: name, student (folder), teachers (folders by name), out (folder), adapters (null, "lora" or "lora and head"),
bf16, processes, rate, and what more the configuration says. Rollouts are recorded, so that they do not depend on who
makes them, and every process has prompts of its own. Writes OUT/NAME.pt with the gradients, losses and weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPTS = [f"{'so ' * (a % 3)}{a} + {a} =" for a in range(12)]
ACCUMULATION = 2
BATCH = 2
DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
SHARDED = DEEPSPEED or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def main(cases: str) -> None:
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        let_accelerate_shard_on_a_cpu()
    for case in json.loads(Path(cases).read_text()):
        run(case)


def let_accelerate_shard_on_a_cpu() -> None:
    """accelerate asks for FSDP only where processes have devices of their own. All that it then does runs on a CPU."""
    from accelerate.utils import DistributedType
    from accelerate.state import PartialState

    made = PartialState.__init__

    def several(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = several


def run(case: dict[str, Any]) -> None:
    trainer = make(case)
    recorder, first = record(trainer), {name: weight.detach().clone() for name, weight in trained(trainer.model)}
    trainer.train()
    found = {"gradients": recorder.gradients, "losses": losses(trainer), "weights": weights(trainer)}
    found |= {"first": first, "evaluated": trainer.evaluate()["eval_loss"]}
    trainer.save_model()
    if case.get("resume"):
        again = make({**case, "out": case["out"], "resumed": True})
        again.train(resume_from_checkpoint=str(Path(case["out"], case["name"], "checkpoint-1")))
        found["resumed"] = weights(again)
    found["elements"] = sum(weight.numel() for _, weight in trained(trainer.model))
    if trainer.is_world_process_zero():
        torch.save(found, Path(case["out"], case["name"] + ".pt"))


def make(case: dict[str, Any]) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    from vopd import VOPDConfig, VOPDTrainer

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = VOPDConfig(
        output_dir=str(Path(case["out"], case["name"] + ("-resumed" if case.get("resumed") else ""))),
        per_device_train_batch_size=BATCH // processes,
        per_device_eval_batch_size=BATCH // processes,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=2,
        max_completion_length=4,
        optim="adamw_torch" if case.get("resume") else "sgd",  # without a state torch cannot resume under FSDP2
        lr_scheduler_type="constant",
        max_grad_norm=0,
        learning_rate=case["rate"],
        shuffle_dataset=False,
        save_strategy="steps",
        save_steps=1,
        use_cpu=True,
        ddp_backend="gloo" if processes > 1 else None,
        bf16=case["bf16"],
        **case.get("options", {}),
    )
    if args.deepspeed_plugin is not None:  # or weights as small as these would be whole everywhere under ZeRO-3
        args.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    names = list(case["teachers"])
    rows = {"prompt": PROMPTS, "teacher": [names[place] for place in case.get("routes", [0] * len(PROMPTS))]}
    adapters = None
    if case["adapters"] is not None:
        head = ["lm_head"] if case["adapters"] == "lora and head" else None
        adapters = LoraConfig(
            r=2, target_modules=["q_proj", "down_proj"], modules_to_save=head, init_lora_weights=False, lora_dropout=0.0
        )
    torch.manual_seed(5)  # of the adapters
    student = AutoModelForCausalLM.from_pretrained(case["student"])
    data = Dataset.from_dict(rows)
    teacher = case["teachers"][names[0]] if len(names) == 1 else None
    teachers = None if len(names) == 1 else case["teachers"]
    trainer = VOPDTrainer(student, teacher, args, data, data.select(range(4)), peft_config=adapters, teachers=teachers)
    if case["bf16"] and not SHARDED:
        as_fsdp_computes(trainer)
    trainer._generate_single_turn = lambda prompts, *rest, **named: [recorded(ids) for ids in prompts]
    return trainer


def as_fsdp_computes(trainer: Any) -> None:
    """Weights of both models in bf16 wherever they are used, and in float32 where the optimizer holds them."""

    class Masters(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for part in trained_weights:
                part.master -= self.param_groups[0]["lr"] * part.grad.float()
                part.data.copy_(part.master)

    trained_weights = [weight for _, weight in trained(trainer.model)]
    for weight in trained_weights:
        weight.master = weight.detach().clone()
    for weight in (*trainer.model.parameters(), *trainer.teacher_model.parameters()):  # but no buffers, as of positions
        weight.data = weight.data.bfloat16()
    trainer.optimizer = Masters(trained_weights, lr=trainer.args.learning_rate)


def recorded(prompt_ids: list[int]) -> list[int]:
    """A fixed completion of 1 to 4 tokens for each prompt."""
    length = 1 + sum(prompt_ids) % 4
    return [2 + (17 * sum(prompt_ids) + 29 * place) % 298 for place in range(length)]


def record(trainer: Any) -> Any:
    """Keeps the gradient of every step before it is taken, all of it."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.gradients: list[dict[str, Tensor]] = []

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            if not DEEPSPEED:
                self.keep(model)

        def keep(self, model: Any) -> None:
            self.gradients.append({name: whole_gradient(part) for name, part in trained(model)})

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            if hasattr(trainer.model_wrapped, "zero_optimization_stage"):  # DeepSpeed's backward pass takes the step
                engine = trainer.model_wrapped
                step = engine.step

                def recording(*args: Any, **kwargs: Any) -> Any:
                    if engine.is_gradient_accumulation_boundary():
                        self.keep(engine.module)
                    return step(*args, **kwargs)

                engine.step = recording

    recorder = Recorder()
    trainer.add_callback(recorder)
    return recorder


def trained(model: Any) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def whole_gradient(weight: Any) -> Tensor:
    if DEEPSPEED:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(weight).float().clone()
    grad = weight.grad
    return (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).detach().clone()


def weights(trainer: Any) -> dict[str, Tensor]:
    """Those that are trained, whole, as the optimizer holds them."""
    return {name: whole_weight(weight) for name, weight in trained(trainer.model)}


def whole_weight(weight: Any) -> Tensor:
    weight = getattr(weight, "master", weight)
    if DEEPSPEED:
        from deepspeed.utils import safe_get_full_fp32_param

        found = safe_get_full_fp32_param(weight)
        return found.clone() if found is not None else weight.detach().clone()
    return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach().clone()


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main(sys.argv[1])

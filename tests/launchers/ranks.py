"""One process of training runs under a launcher, or all of a run alone: ranks.py CASES.json, a list of cases.

Rollouts are recorded, so that they do not depend on who makes them, and every process has prompts of its own. Each case
leaves OUT/NAME.pt: losses, the gradients of every step, and the weights before and after, all of them whole.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROMPTS = [f"{'so ' * (a % 3)}{a} + {a} =" for a in range(12)]
HINTS = [f"{prompt} {2 * a}. Again: {prompt}" for a, prompt in enumerate(PROMPTS)]
# In steps of four in this order: some have no row of the second teacher in one of two processes, some in none.
SECOND = [2, 3, 8, 10]
ROWS = 2
"""In a micro-batch, over all processes."""
DEEPSPEED = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
SHARDED = DEEPSPEED or os.environ.get("ACCELERATE_USE_FSDP") == "true"


@dataclass(frozen=True)
class Case:
    """A training run.

    Attributes:
        name: of what it leaves.
        student, teachers: folders; or the student itself, "self:...". The second teacher has the rows of `SECOND`.
        adapters: LoRA, "with head" for a head that is trained whole beside it; None trains everything.
        rate: of learning; with the one given, two steps move the weights by at least 1 %.
        resumes: trains with AdamW instead of SGD, and a second time from the first step's checkpoint.
        bf16: as accelerate's FSDP and DeepSpeed do it, with float32 weights in the optimizer.
        poisoned: one process loses a loss of the first micro-batch to a NaN, and the run is to end before its step.
    """

    name: str
    student: str
    teachers: list[str]
    adapters: str | None = None
    rate: float = 0.1
    resumes: bool = False
    bf16: bool = False
    poisoned: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def write_cases(cases: list[Case], out: Path) -> Path:
    """What this program is to be started with."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cases.json"
    path.write_text(json.dumps({"out": str(out), "cases": [asdict(case) for case in cases]}))
    return path


def main(path: str) -> None:
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        from on_a_cpu import let_accelerate_shard

        let_accelerate_shard()
    given = json.loads(Path(path).read_text())
    for case in given["cases"]:
        run(Case(**case), Path(given["out"]))


def run(case: Case, out: Path) -> None:
    trainer = make(case, out / case.name)
    found = {"before": weights(trainer), **(spoilt(trainer) if case.poisoned else compared(trainer, case, out))}
    if trainer.is_world_process_zero():
        torch.save(found, out / f"{case.name}.pt")


def compared(trainer: Any, case: Case, out: Path) -> dict[str, Any]:
    """What training comes to; then an evaluation, the model saved, and the second step once more."""
    found: dict[str, Any] = {"gradients": record_gradients(trainer)}
    placement, last = trainer.placement, trainer.args.world_size - 1
    assert placement.most(trainer.args.process_index) == (last if placement.divided else trainer.args.process_index)
    trainer.train()
    found["after"] = weights(trainer)
    found["elements"] = sum(weight.numel() for _, weight in trained(trainer.model))
    found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found["losses"].append(trainer.evaluate()["eval_loss"])
    trainer.save_model()
    if case.resumes:
        resumed = make(case, out / f"{case.name}-resumed")
        resumed.train(resume_from_checkpoint=str(out / case.name / "checkpoint-1"))
        found["resumed"] = weights(resumed)
    return found


def spoilt(trainer: Any) -> dict[str, Any]:
    """What an evaluation before training says, and how a run ends in which the last process loses its first loss to a
    NaN."""
    from vopd.errors import ConfigurationError, NonFiniteError

    early = "none"
    try:
        trainer.evaluate()
    except ConfigurationError as error:
        early = str(error)
    token_loss = trainer.token_loss

    def with_nan(*given: Any) -> Tensor:
        spoils = trainer._reading == 1 and trainer.args.process_index == trainer.args.world_size - 1
        return token_loss(*given) * (float("nan") if spoils else 1.0)

    trainer.token_loss = with_nan
    try:
        trainer.train()
    except NonFiniteError as error:
        return {"early": early, "error": str(error), "after": weights(trainer)}
    return {"early": early, "error": "none", "after": weights(trainer)}


def make(case: Case, folder: Path) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from vopd import VOPDTrainer

    args = config(case, folder)
    if args.deepspeed_plugin is not None:  # or weights as small as these would be whole everywhere under ZeRO-3
        args.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    names = [str(int(place in SECOND)) for place in range(len(PROMPTS))]
    data = Dataset.from_dict({"prompt": PROMPTS, "hint": HINTS, "teacher": names})
    several = {str(place): teacher for place, teacher in enumerate(case.teachers)}
    trainer = VOPDTrainer(
        AutoModelForCausalLM.from_pretrained(case.student),
        case.teachers[0] if len(case.teachers) == 1 else None,
        args,
        data,
        data.select(range(4)),
        peft_config=adapters(case),
        teachers=several if len(case.teachers) > 1 else None,
    )
    if case.bf16:
        prepare_bf16(trainer)
    trainer._generate_single_turn = lambda prompts, *rest, **named: [recorded(ids) for ids in prompts]
    return trainer


def config(case: Case, folder: Path) -> Any:
    from vopd import VOPDConfig

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # In bf16 the shape of a product decides how it is rounded: one row in each, also alone.
    rows = 1 if case.bf16 else ROWS // processes
    return VOPDConfig(
        output_dir=str(folder),
        estimator="vopd",
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=2 * ROWS // (processes * rows),
        max_steps=2,
        max_completion_length=4,
        # torch cannot resume SGD under FSDP2: it has no state to be divided.
        optim="adamw_torch" if case.resumes else "sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        learning_rate=case.rate,
        shuffle_dataset=False,
        save_strategy="steps" if case.resumes else "no",
        save_steps=1,
        use_cpu=True,
        ddp_backend="gloo" if processes > 1 else None,
        ddp_find_unused_parameters=False,
        bf16=case.bf16,
        **case.options,
    )


def adapters(case: Case) -> Any:
    from peft import LoraConfig

    if case.adapters is None:
        return None
    torch.manual_seed(5)
    head = ["lm_head"] if case.adapters == "with head" else None
    return LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=head, init_lora_weights=False)


def recorded(prompt_ids: list[int]) -> list[int]:
    """A fixed completion of 1 to 4 tokens for each prompt."""
    length = 1 + sum(prompt_ids) % 4
    return [2 + (17 * sum(prompt_ids) + 29 * place) % 298 for place in range(length)]


# ---- bf16 -----------------------------------------------------------------------------------------------------------


def prepare_bf16(trainer: Any) -> None:
    """Weights that bf16 can hold, and, where no launcher does it, bf16 weights for all but the optimizer."""
    for _, weight in trained(trainer.model):
        with gathered(weight):
            weight.data.copy_(weight.data.bfloat16())
    if SHARDED:
        return
    trainer.optimizer = Masters([weight for _, weight in trained(trainer.model)], lr=trainer.args.learning_rate)
    for weight in (*trainer.model.parameters(), *trainer.teacher_model.parameters()):  # no buffers, as of positions
        weight.data = weight.data.bfloat16()


class Masters(torch.optim.SGD):
    """SGD on float32 copies of bf16 weights."""

    def __init__(self, parts: list[Any], lr: float) -> None:
        super().__init__(parts, lr=lr)
        for part in parts:
            part.master = part.detach().clone()

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for part in group["params"]:
                part.master -= group["lr"] * part.grad.float()
                part.data.copy_(part.master)


# ---- weights and gradients, whole -----------------------------------------------------------------------------------


def trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: whole(weight) for name, weight in trained(trainer.model)}


def whole(weight: Any) -> Tensor:
    """As the optimizer holds it."""
    if hasattr(weight, "_hp_mapping") or hasattr(weight, "_z3_optimizer"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(weight).clone()
    with gathered(weight):
        weight = getattr(weight, "master", weight).detach()
        return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).clone()


def gathered(weight: Any) -> Any:
    from contextlib import nullcontext

    if not hasattr(weight, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight], modifier_rank=0)


def record_gradients(trainer: Any) -> list[dict[str, Tensor]]:
    """A list that gets the gradient of every step before it is taken."""
    from transformers import TrainerCallback

    seen: list[dict[str, Tensor]] = []

    class Recorder(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if DEEPSPEED:
                self.watch(trainer.model_wrapped)

        def watch(self, engine: Any) -> None:  # whose backward pass takes the step as well
            from deepspeed.utils import safe_get_full_grad

            step = engine.step

            def recording(*args: Any, **kwargs: Any) -> Any:
                seen.append({name: safe_get_full_grad(part).float().clone() for name, part in trained(engine.module)})
                return step(*args, **kwargs)

            engine.step = recording

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            if not DEEPSPEED:
                seen.append({name: whole(part.grad) for name, part in trained(model)})

    trainer.add_callback(Recorder())
    return seen


if __name__ == "__main__":
    from vopd.run.exit_codes import leave

    main(sys.argv[1])
    leave(0)

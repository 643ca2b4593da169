"""What the options of `vopd train` that are not in VOPDConfig are called in Python."""

from __future__ import annotations

from collections.abc import Iterable

from vopd.errors import did_you_mean

_TRAINER, _LORA = "pass it to VOPDTrainer", "pass peft_config=LoraConfig(...) to VOPDTrainer"
_DATA = "vopd train prepares its prompts with it; pass a finished train_dataset to VOPDTrainer"
_MEASURED = "vopd train measures accuracy with it; set eval_benchmarks"
# Options of vopd train: what does the same in Python.
_OF_COMMANDS = {
    **dict.fromkeys(("model", "teacher_model", "teachers", "reward_funcs"), _TRAINER),
    **dict.fromkeys(("lora_rank", "lora_alpha", "lora_target_modules"), _LORA),
    **dict.fromkeys(("dtype", "model_revision"), "set it in model_init_kwargs"),
    "teacher_dtype": "set it in teacher_model_init_kwargs",
    "quantization": "pass quantization_config to VOPDTrainer",
    "teacher_quantization": "pass the loaded teacher to VOPDTrainer",
    "dataset": "pass train_dataset to VOPDTrainer",
    **dict.fromkeys(("dataset_split", "dataset_revision", "dataset_options", "max_prompts", "prompt_template"), _DATA),
    "teacher_prompt_template": _DATA,
    **{f"eval_{name}": _MEASURED for name in ("task", "data", "kind", "count", "task_options", "template", "seed")},
    "eval_max_new_tokens": _MEASURED,
    "resume": "call train(resume_from_checkpoint=True)",
    "dry_run": "it is an option of vopd train only",
}


def elsewhere(name: str, known: Iterable[str]) -> str:
    """What to use in Python in place of `name`, which is not one of the fields of VOPDConfig, `known`."""
    return _OF_COMMANDS.get(name) or did_you_mean(name, known, "remove it")

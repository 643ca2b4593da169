"""Every option of TRL's DistillationConfig and transformers' TrainingArguments: what it does here, and its values."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accelerate.utils import DynamoBackend
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from vopd.errors import ConfigurationError
from vopd.estimators.exact import FULL_RKL

FINITE = sys.float_info.max
FOLLOWING = ("reduce_lr_on_plateau", "greedy")
"""The schedules that follow a metric: their learning rate depends on the evaluations so far."""


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; None is always accepted.

    Attributes:
        above, below: whether the ends themselves are excluded.
        also: values outside of it that stand for something, such as -1 for no limit.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False
    also: tuple[Any, ...] = ()

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'at least'} {self.least}"
        most = {math.inf: "", FINITE: "finite"}.get(self.most, f"{'below' if self.below else 'at most'} {self.most}")
        return " or ".join([" and ".join(filter(None, (least, most))), *map(str, self.also)])

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigurationError unless the option `name` may have this value."""
        if value is None or value in self.also:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError(f"{name} must be a number {self}, not {value!r}")
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        if not (low and high):  # NaN fails every comparison
            raise ConfigurationError(f"{name} must be {self}, got {value}")


@dataclass(frozen=True)
class Works:
    """An option that does here what its own documentation says.

    Attributes:
        test: the test that shows it: its file below tests/, and its name.
        values: a Range, or all choices.
        needs: OPTION or OPTION=VALUE, each of which it has no effect without.
        in_python: why the commands refuse it, and what to use there instead.
    """

    test: str
    values: Range | Iterable[Any] | None = None
    needs: tuple[str, ...] = ()
    in_python: str = ""


@dataclass(frozen=True)
class Refused:
    """An option that may only have its default.

    Attributes:
        why: the reason, and what to use instead.
        effect: False if it would change nothing.
        neutral: other values that stand for the default.
    """

    why: str
    effect: bool = True
    neutral: tuple[Any, ...] = ()


def _without_effect(why: str, *neutral: Any) -> Refused:
    return Refused(why, effect=False, neutral=neutral)


_HERE = "training/test_inherited.py::"
_OPTIMIZER, _BATCHES = _HERE + "test_optimizer_and_schedule", _HERE + "test_batches"
_PRECISION, _CHECKPOINTING = _HERE + "test_precision", _HERE + "test_activation_checkpointing"
_LOADER, _ORDER, _LOGS = _HERE + "test_loading_of_rows", _HERE + "test_order", _HERE + "test_logs"
_TRACKER, _SAVES, _BEST = _HERE + "test_trackers", _HERE + "test_checkpoints", _HERE + "test_best_model"
_BETTER = _HERE + "test_the_best_model_is_the_one_with_the_better_metric"
_EVALUATION, _MODELS, _DDP = _HERE + "test_evaluation", _HERE + "test_models", _HERE + "test_ddp"
_SAMPLING, _VLLM, _HUB = _HERE + "test_sampling", _HERE + "test_vllm", _HERE + "test_hub"
_COMPILED, _TOOLS = _HERE + "test_compilation", _HERE + "test_tools"

_FRACTION, _COUNT, _POSITIVE = Range(0, 1), Range(1), Range(0, FINITE, above=True)
_PORT = Range(1, 65535)
_AT_LEAST_0 = Range(0, FINITE)
_LEVELS = tuple(trainer_log_levels)

_NO_LABELS = "the loss compares distributions and has no labels; remove it"
_NO_PREDICTIONS = "an evaluation measures the loss and collects no predictions; remove it"
_SCRIPTS = "only scripts read it; remove it, and call"
_LAUNCHED = "start the processes with accelerate launch --config_file, as in configs/accelerate"
_NODES = "vopd is not tested with files on each machine; put output_dir where all machines see it"
_NO_PROMPTS = "vopd train has no evaluation prompts; measure accuracy with eval_benchmarks"
_MODEL_ONLY = "push_to_hub uploads the trained model once, at the end"
TOP_K = "it would truncate sampling; did you mean loss_top_k={value}, the k of the estimator? Otherwise remove it"

INHERITED: dict[str, Works | Refused] = {
    # ---- steps, optimizer, schedule
    "per_device_train_batch_size": Works(_BATCHES, _COUNT),
    "gradient_accumulation_steps": Works(_BATCHES, _COUNT),
    "num_train_epochs": Works(_BATCHES, _POSITIVE),
    "max_steps": Works(_BATCHES, Range(1, also=(-1,))),
    "learning_rate": Works(_OPTIMIZER, _AT_LEAST_0),
    "lr_scheduler_type": Works(_OPTIMIZER, SchedulerType),
    "lr_scheduler_kwargs": Works(_OPTIMIZER),
    "warmup_steps": Works(_OPTIMIZER, _AT_LEAST_0),
    "optim": Works(_OPTIMIZER, OptimizerNames),
    "optim_args": Works(_OPTIMIZER),
    "optim_target_modules": Refused("the optimizers that read it are not supported; train LoRA to save memory"),
    "weight_decay": Works(_OPTIMIZER, _AT_LEAST_0),
    "adam_beta1": Works(_OPTIMIZER, Range(0, 1, below=True)),
    "adam_beta2": Works(_OPTIMIZER, Range(0, 1, below=True)),
    "adam_epsilon": Works(_OPTIMIZER, _AT_LEAST_0),
    "max_grad_norm": Works(_OPTIMIZER, Range(0)),
    "auto_find_batch_size": Refused(
        "it would train on a part of every generation batch; set per_device_train_batch_size and "
        "gradient_accumulation_steps: vopd train --dry-run estimates their memory"
    ),
    "average_tokens_across_devices": _without_effect(
        "the loss is averaged over the tokens of all devices in any case; set loss_normalizer for another average"
    ),
    "label_smoothing_factor": _without_effect(_NO_LABELS),
    "label_names": _without_effect(_NO_LABELS),
    "neftune_noise_alpha": Refused(
        "the noise is in the passes of the loss but not in the rollouts, whose tokens would then come from another "
        "distribution than the loss sees; remove it"
    ),
    "beta": _without_effect(f"the estimator chooses the objective; set estimator ({FULL_RKL.name!r} is TRL's beta=1)"),
    # ---- precision, memory, speed
    "bf16": Works(_PRECISION),
    "fp16": Works(
        "training/test_finite.py::test_finite_steps_pass_and_overflows_of_loss_scaling_are_left_to_the_scaler"
    ),
    "tf32": Works(_PRECISION),
    "bf16_full_eval": Refused("an evaluation must see the weights that are trained; set bf16 for both"),
    "fp16_full_eval": Refused("an evaluation must see the weights that are trained; set bf16 for both"),
    "gradient_checkpointing": Works(_CHECKPOINTING),
    "gradient_checkpointing_kwargs": Works(_CHECKPOINTING),
    "activation_checkpointing": Works(_CHECKPOINTING),
    "activation_checkpointing_kwargs": Works(_CHECKPOINTING),
    "torch_compile": Works(_COMPILED),
    "torch_compile_backend": Works(_COMPILED, tuple(name.lower() for name in DynamoBackend.list())),
    "torch_compile_mode": Works(
        _COMPILED, ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    ),
    "torch_empty_cache_steps": Works(_PRECISION, _COUNT),
    "use_liger_kernel": Refused("vopd is not tested with it; remove it: the loss has kernels of its own"),
    "liger_kernel_config": Refused("vopd is not tested with Liger; remove it: the loss has kernels of its own"),
    "use_cache": _without_effect("rollouts always use the cache, and the passes of the loss never do; remove it"),
    "disable_dropout": Works(_MODELS),
    # ---- devices
    "use_cpu": Works(_PRECISION),
    "local_rank": _without_effect("the launcher says which process this is; remove it"),
    "ddp_backend": Works(_DDP, ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl")),
    "ddp_find_unused_parameters": Works(_DDP),
    "ddp_bucket_cap_mb": Works(_DDP, _COUNT),
    "ddp_broadcast_buffers": Works(_DDP),
    "ddp_static_graph": Refused("torch fails with it where gradients of micro-batches are added up; remove it"),
    "ddp_timeout": Works(_DDP, _COUNT),
    "fsdp": Refused(_LAUNCHED),
    "fsdp_config": Refused(_LAUNCHED, neutral=({},)),
    "deepspeed": Refused(_LAUNCHED),
    "ds3_gather_for_generation": Refused("vopd is not tested without it; use vLLM if a model does not fit"),
    "parallelism_config": Refused(f"only data parallelism is supported; {_LAUNCHED}"),
    "accelerator_config": Refused(
        "rows must be divided as vopd generates them; remove it", neutral=({}, AcceleratorConfig())
    ),
    # ---- rows
    "seed": Works(_ORDER, Range(0, 2**32 - 1)),
    "data_seed": _without_effect("seed decides the order of the prompts; set seed"),
    "full_determinism": Works(_ORDER),
    "shuffle_dataset": Works(_ORDER),
    "train_sampling_strategy": _without_effect("set shuffle_dataset=false to keep the order of the dataset"),
    "length_column_name": _without_effect("prompts are not grouped by length; remove it"),
    "ignore_data_skip": Refused("a resumed run would train on the same prompts again; remove it"),
    "remove_unused_columns": Refused("rewards, teachers and the order of rows need the other columns; remove it"),
    "dataloader_num_workers": Works(_LOADER, Range(0)),
    "dataloader_pin_memory": Works(_LOADER),
    "dataloader_prefetch_factor": Works(_LOADER, _COUNT, needs=("dataloader_num_workers",)),
    "dataloader_persistent_workers": Works(_LOADER, needs=("dataloader_num_workers",)),
    "dataloader_multiprocessing_context": Works(
        _LOADER, ("fork", "spawn", "forkserver"), needs=("dataloader_num_workers",)
    ),
    "dataloader_drop_last": Refused("it would leave the last rows out of every evaluation; remove it"),
    "dataloader_in_order": Refused("a resumed run could not repeat the order of the prompts; remove it"),
    # ---- evaluation
    "eval_strategy": Works(_EVALUATION, IntervalStrategy, in_python=_NO_PROMPTS),
    "eval_steps": Works(_EVALUATION, _POSITIVE, needs=("eval_strategy",), in_python=_NO_PROMPTS),
    "eval_delay": Works(_EVALUATION, _AT_LEAST_0, needs=("eval_strategy",), in_python=_NO_PROMPTS),
    "eval_on_start": Works(_EVALUATION, in_python=_NO_PROMPTS),
    "per_device_eval_batch_size": Works(_EVALUATION, _COUNT),
    "load_best_model_at_end": Works(_BEST, needs=("eval_strategy",), in_python=_NO_PROMPTS),
    "metric_for_best_model": Works(_BEST, needs=("eval_strategy",), in_python=_NO_PROMPTS),
    "greater_is_better": Works(_BETTER, needs=("eval_strategy",), in_python=_NO_PROMPTS),
    "do_train": _without_effect(f"{_SCRIPTS} train()"),
    "do_eval": Works(_EVALUATION, needs=("eval_strategy",), in_python=_NO_PROMPTS),
    "do_predict": _without_effect(f"{_SCRIPTS} predict()"),
    "prediction_loss_only": _without_effect(_NO_PREDICTIONS),
    "eval_accumulation_steps": _without_effect(_NO_PREDICTIONS),
    "eval_do_concat_batches": _without_effect(_NO_PREDICTIONS),
    "eval_use_gather_object": _without_effect(_NO_PREDICTIONS),
    "batch_eval_metrics": _without_effect(_NO_PREDICTIONS),
    "include_for_metrics": _without_effect(_NO_PREDICTIONS),
    # ---- logs
    "logging_strategy": Works(_LOGS, IntervalStrategy),
    "logging_steps": Works(_LOGS, _POSITIVE),
    "logging_first_step": Works(_LOGS),
    "logging_nan_inf_filter": Refused("it would hide a loss that is not finite; remove it"),
    "log_level": Works(_LOGS, _LEVELS),
    "log_level_replica": Works(_LOGS, _LEVELS),
    "log_on_each_node": Refused("only the first process of a run writes its logs; remove it"),
    "disable_tqdm": _without_effect("vopd has a step line instead of progress bars; remove it", None),
    "include_num_input_tokens_seen": Works(_LOGS, (True, False, "all", "non_padding", "no")),
    "skip_memory_metrics": Works(_LOGS),
    "debug": Refused(
        "a loss or gradient that is not finite ends the run and names its rows in any case; remove it",
        neutral=(None, []),
    ),
    "log_completions": Refused(
        "it prints model output to the terminal unescaped; set show_samples, which prints completions safely, and "
        "samples_per_step, which writes them to samples.jsonl"
    ),
    "num_completions_to_print": _without_effect("set show_samples, which prints completions"),
    "log_unique_prompts": _without_effect("set samples_per_step, which writes prompts to samples.jsonl"),
    "report_to": Works(_TRACKER),
    "run_name": Works(_TRACKER),
    "project": Works(_TRACKER, needs=("report_to=trackio",)),
    "trackio_space_id": Works(_TRACKER, needs=("report_to=trackio",)),
    "trackio_bucket_id": Works(_TRACKER, needs=("report_to=trackio",)),
    "trackio_static_space_id": Works(_TRACKER, needs=("report_to=trackio",)),
    # ---- files
    "output_dir": Works(_SAVES),
    "save_strategy": Works(_SAVES, SaveStrategy),
    "save_steps": Works(_SAVES, _POSITIVE),
    "save_total_limit": Works(_SAVES, _COUNT),
    "save_only_model": Works(_SAVES),
    "save_on_each_node": Refused(_NODES),
    "enable_jit_checkpoint": Refused("SIGTERM saves a checkpoint and ends the run in any case; remove it"),
    "resume_from_checkpoint": _without_effect(
        "set resume in vopd train, or call train(resume_from_checkpoint=True), which finds the newest checkpoint"
    ),
    "restore_callback_states_from_checkpoint": Works(_BEST),
    "push_to_hub": Works(_HUB),
    "hub_model_id": Works(_HUB),
    "hub_private_repo": Works(_HUB),
    "hub_token": Works(_HUB, in_python="others could read it in the list of processes; set HF_TOKEN, or hf auth login"),
    "hub_strategy": Works(_HUB, HubStrategy, in_python=_MODEL_ONLY),
    "hub_always_push": Works(_HUB, in_python=_MODEL_ONLY),
    "hub_revision": Works(_HUB, in_python=_MODEL_ONLY),
    # ---- models
    "model_init_kwargs": Works(_MODELS, in_python="set dtype and model_revision"),
    "teacher_model_init_kwargs": Works(_MODELS, in_python="set teacher_dtype and teacher_model_revision"),
    "teacher_model_revision": Works(_MODELS),
    "teacher_model_name_or_path": _without_effect("set teacher_model in vopd train, or pass it to VOPDTrainer"),
    "trust_remote_code": Works(_MODELS, in_python="vopd never runs code from a model repository"),
    # ---- rollouts
    "max_completion_length": Works(_SAMPLING, _COUNT),
    "temperature": Works(_SAMPLING, _POSITIVE),
    "top_p": Works(_SAMPLING, Range(0, 1, above=True)),
    "top_k": Refused(TOP_K),
    "min_p": Works(_SAMPLING, _FRACTION),
    "repetition_penalty": Works(_SAMPLING, _POSITIVE),
    "generation_kwargs": Works(_SAMPLING),
    "chat_template_kwargs": Works(
        "training/test_benchmark_runs.py::test_questions_of_chat_data_go_through_the_template"
    ),
    "cache_implementation": Works(_SAMPLING),
    "pad_to_multiple_of": Works(_SAMPLING, Range(1, also=("auto",))),
    "max_tool_calling_iterations": Works(_TOOLS, Range(0), in_python="vopd train has no tools; pass them in Python"),
    "use_vllm": Works(_VLLM),
    "vllm_mode": Works(_VLLM, ("colocate", "server"), needs=("use_vllm",)),
    "vllm_model_impl": Works(_VLLM, ("vllm", "transformers", "auto"), needs=("use_vllm", "vllm_mode=colocate")),
    "vllm_enable_sleep_mode": Works(_VLLM, needs=("use_vllm", "vllm_mode=colocate")),
    "vllm_structured_outputs_regex": Works(_VLLM, needs=("use_vllm",)),
    "vllm_gpu_memory_utilization": Works(_VLLM, Range(0, 1, above=True), needs=("use_vllm", "vllm_mode=colocate")),
    "vllm_max_model_length": Works(_VLLM, _COUNT, needs=("use_vllm", "vllm_mode=colocate")),
    "vllm_tensor_parallel_size": Works(_VLLM, _COUNT, needs=("use_vllm", "vllm_mode=colocate")),
    "vllm_server_base_url": Works(_VLLM, needs=("vllm_mode=server",)),
    "vllm_server_host": Works(_VLLM, needs=("vllm_mode=server",)),
    "vllm_server_port": Works(_VLLM, _PORT, needs=("vllm_mode=server",)),
    "vllm_server_timeout": Works(_VLLM, _POSITIVE, needs=("vllm_mode=server",)),
    "vllm_group_port": Works(_VLLM, _PORT, needs=("vllm_mode=server",)),
}
# Fields that only some of the supported versions of transformers have.
OF_SOME_VERSIONS = {"activation_checkpointing", "activation_checkpointing_kwargs"}

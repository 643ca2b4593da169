"""What a resumed run may change: every setting is refused, told or free, and what settings name is compared by content.

One table for `vopd train`, `VOPDTrainer` and `vopd compare`. A checkpoint's manifest.json has the settings that it was
trained with; `differences` compares them with those that are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vopd.errors import ConfigurationError
from vopd.estimators import ESTIMATORS, Estimator
from vopd.secrets import without_passwords
from vopd.teachers.columns import DEFAULT
from vopd.user_code import source_digest

if TYPE_CHECKING:
    from ..config import VOPDConfig

REFUSED, CONTENT, TOLD, FREE = "refused", "content", "told", "free"

_SORTED = {
    # The objective, the data, or what the saved optimizer belongs to: another value is another run.
    REFUSED: """
        estimator loss_top_k loss_normalizer importance_sampling importance_cap reward_funcs reward_weights
        reward_column teacher_column teacher_prompt_column teacher_decay teacher_server_model teacher_model_init_kwargs
        model_init_kwargs quantization teacher_quantization lora_rank lora_alpha lora_target_modules
        temperature top_p top_k min_p repetition_penalty generation_kwargs vllm_structured_outputs_regex
        num_generations max_completion_length max_tool_calling_iterations
        prompt_template teacher_prompt_template chat_template thinking system_prompt last_assistant_turn
        chat_template_kwargs
        seed data_seed shuffle_dataset train_sampling_strategy ignore_data_skip
        optim optim_args optim_target_modules label_smoothing_factor neftune_noise_alpha disable_dropout beta
    """,
    # What they name is compared instead of the name: a moved file is the same data, an edited one is not.
    CONTENT: """
        model model_revision teacher_model teacher_model_name_or_path teacher_model_revision teachers
        dataset dataset_split dataset_revision dataset_options max_prompts max_prompt_length
    """,
    # The course of the same training, and how exactly it computes.
    TOLD: """
        learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps max_steps num_train_epochs
        weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
        per_device_train_batch_size gradient_accumulation_steps max_tokens_per_micro_batch
        average_tokens_across_devices auto_find_batch_size
        dtype teacher_dtype bf16 fp16 tf32 loss_backend use_cpu full_determinism use_liger_kernel liger_kernel_config
        torch_compile torch_compile_backend torch_compile_mode
        teacher_server_url teacher_server_payload teacher_server_dtype teacher_failure
        use_vllm vllm_mode vllm_model_impl
    """,
    # What is written, measured and watched, and where the same numbers are computed.
    FREE: """
        output_dir run_name resume dry_run resume_from_checkpoint do_train do_eval do_predict
        push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
        save_steps save_strategy save_total_limit save_only_model save_on_each_node enable_jit_checkpoint
        restore_callback_states_from_checkpoint load_best_model_at_end metric_for_best_model greater_is_better
        logging_steps logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter log_level
        log_level_replica include_num_input_tokens_seen disable_tqdm report_to project trackio_space_id
        trackio_bucket_id trackio_static_space_id telemetry debug skip_memory_metrics
        log_completions num_completions_to_print log_unique_prompts metrics_every samples_per_step show_samples
        eval_task eval_data eval_kind eval_count eval_task_options eval_template eval_max_new_tokens eval_seed
        eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches
        eval_use_gather_object per_device_eval_batch_size prediction_loss_only include_for_metrics batch_eval_metrics
        bf16_full_eval fp16_full_eval
        eval_benchmarks eval_benchmark_steps eval_benchmark_samples eval_benchmark_limit eval_benchmark_max_new_tokens
        eval_benchmark_template eval_benchmark_chat_template eval_benchmark_kind
        guard_reverse_kl guard_truncation guard_length guard_logprobs guard_logprobs_stop guard_same_teacher
        guard_no_signal guard_zero_spread guard_stop guard_window teacher_drop_limit
        teacher_server_key_env teacher_server_concurrency teacher_server_timeout teacher_server_deadline
        teacher_server_retries teacher_offload teacher_scoring
        gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
        use_cache cache_implementation pad_to_multiple_of torch_empty_cache_steps trust_remote_code
        vllm_enable_sleep_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
        vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size
        accelerator_config parallelism_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed ds3_gather_for_generation local_rank
        dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns
        label_names length_column_name
    """,
}  # fmt: skip
RULES: Mapping[str, str] = {name: rule for rule, names in _SORTED.items() for name in names.split()}
"""The rule of every setting of `vopd train` and `VOPDConfig`."""

SCHEDULE = {
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
}
NEW_RUN = "start a new run: another --run_name (in Python, another output_dir)"


@dataclass(frozen=True)
class Change:
    """A setting with the value of the checkpoint and the one that is asked for; `step` is the checkpoint's."""

    name: str
    old: Any
    new: Any
    step: int = 0

    @property
    def refused(self) -> bool:
        """Whether a run cannot resume with it."""
        return _rule(self.name) in (REFUSED, CONTENT)

    def __str__(self) -> str:
        only = self.name == "teachers" and {*self.old, *self.new} == {DEFAULT}
        return f"{'teacher_model' if only else self.name} {_shown(self.old)} -> {_shown(self.new)}"

    def remark(self) -> str:
        """For the value in force: what it was before."""
        return f"{_shown(self.old)} up to step {self.step}"


def settings_of(
    config: VOPDConfig,
    *,
    model: Mapping[str, Any],
    teachers: Mapping[str, Mapping[str, Any]],
    dataset: Mapping[str, Any],
    rewards: Iterable[Any] = (),
    adapter: Any = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All of a run that `differences` compares, as plain values.

    Args:
        config: of the trainer.
        model: the student before training, from `contents_of_model`.
        teachers: the teachers by name, likewise.
        dataset: the prompts with token ids, from `contents_of_rows`.
        rewards: the reward functions.
        adapter: the PEFT configuration, if an adapter is trained.
        options: of `vopd train`.
    """
    given = {**config.to_dict(), **(options or {})}
    found = {name: value for name, value in given.items() if _rule(name) in (REFUSED, TOLD)}
    found |= {
        "estimator": contents_of_estimator(config.chosen_estimator, found["estimator"]),
        "reward_funcs": [{"name": one.name, "content": source_digest(one.scorer.function)} for one in rewards],
        "model": model,
        "teachers": teachers,
        "dataset": dataset,
        "lora_rank": getattr(adapter, "r", 0),
        "lora_alpha": getattr(adapter, "lora_alpha", None),
        "lora_target_modules": _modules(getattr(adapter, "target_modules", None)),
    }
    plain: dict[str, Any] = json.loads(without_passwords(json.dumps(found, default=str)))
    return plain


def contents_of_estimator(estimator: Estimator, spelling: str) -> dict[str, Any]:
    """The name of an estimator; for one outside the package, also a digest of its code."""
    if estimator.name in ESTIMATORS:
        return {"name": estimator.name}
    fields = (estimator.support, estimator.needs, estimator.samples)
    return {"name": spelling, "content": source_digest(estimator.estimate, *fields)}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], step: int = 0) -> list[Change]:
    """What differs, of what both have."""
    both = [name for name in now if name in saved]
    return [Change(name, saved[name], now[name], step) for name in both if not _same(saved[name], now[name])]


def refuse(changes: Iterable[Change], what: str, more: str = "") -> None:
    """Raises ConfigurationError that says `what` is wrong and names the changes, if there are any."""
    named = "; ".join(map(str, changes))
    if named:
        raise ConfigurationError(f"{what}: {named}; {more}{NEW_RUN}")


def as_records(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Changes for a JSON file; ``Change(**record)`` reads one."""
    return [asdict(change) for change in changes]


def _rule(name: str) -> str:
    """The rule of a setting; one that a newer transformers added is told."""
    return RULES.get(name, TOLD)


def _modules(targets: Any) -> Any:
    return sorted(targets) if isinstance(targets, list | tuple | set) else targets


def _same(old: Any, new: Any) -> bool:
    """Whether two values are equal; what has a content is compared by it, whatever it is called."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "name" in old and "name" in new:
            by = "content" if old.get("content") and new.get("content") else "name"
            return bool(old[by] == new[by])
        return old.keys() == new.keys() and all(_same(old[name], new[name]) for name in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    return bool(old == new)


def _shown(value: Any) -> str:
    """A value as a user would type it; a content after its name."""
    if isinstance(value, dict) and "name" in value:
        return f"{value['name']} ({value['content']})" if value.get("content") else str(value["name"])
    if isinstance(value, dict):
        shown = [_shown(entry) if name == DEFAULT else f"{name}: {_shown(entry)}" for name, entry in value.items()]
        return ", ".join(shown) or "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return json.dumps(value) if isinstance(value, bool | None) else str(value)

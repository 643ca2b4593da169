"""Every option of TRL and transformers is sorted once, and does what the table says of it."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from messages import says, told
from vopd import VOPDConfig
from vopd.errors import ConfigurationError, DataError, MissingExtraError
from vopd.run.plan import TrainOptions
from vopd.training.inherited import INHERITED, OF_SOME_VERSIONS, Range, Refused, Works
from vopd.training.trl import DistillationConfig

TESTS = Path(__file__).parents[1]
FIELDS = {entry.name: entry for entry in dataclasses.fields(DistillationConfig)}
OWN = {entry.name: entry for entry in dataclasses.fields(VOPDConfig)}
WORKING = {name: entry for name, entry in INHERITED.items() if isinstance(entry, Works) and name in FIELDS}
REFUSED = {name: entry for name, entry in INHERITED.items() if isinstance(entry, Refused) and name in FIELDS}


def default(name: str) -> Any:
    factory = OWN[name].default_factory
    return OWN[name].default if factory is dataclasses.MISSING else factory()


def records(trainer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(trainer.args.output_dir, "metrics.jsonl").read_text().splitlines()]


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [record["loss"] for record in records(trainer) if "loss" in record]


# ---- the table itself -----------------------------------------------------------------------------------------------


def test_every_inherited_option_is_sorted() -> None:
    """A field of a newer TRL or transformers fails here until it has its place in the table."""
    assert FIELDS.keys() - INHERITED.keys() == set()
    assert INHERITED.keys() - FIELDS.keys() <= OF_SOME_VERSIONS


def test_the_tests_in_the_table_exist() -> None:
    for name in {entry.test for entry in INHERITED.values() if isinstance(entry, Works)}:
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.parametrize("name", [name for name, entry in WORKING.items() if "test_inherited" in entry.test])
def test_a_test_in_the_table_sets_its_option(name: str) -> None:
    """The source of the test has the option as a keyword or as text."""
    tree = ast.parse(Path(__file__).read_text())
    function = WORKING[name].test.partition("::")[2]
    body = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    words = {getattr(node, "arg", None) or getattr(node, "value", None) for node in ast.walk(body)
             if isinstance(node, ast.keyword | ast.Constant)}  # fmt: skip
    assert name in words


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_option_names_itself_and_a_way_out(name: str, tmp_path: Path) -> None:
    value = next(
        other
        for other in (True, False, 7, "x", ["x"])
        if other != default(name) and not (other is False and default(name) in (None, ""))
    )
    with pytest.raises(ConfigurationError, match=says(name)) as raised:
        VOPDConfig(output_dir=str(tmp_path), **{name: value})
    text = str(raised.value)
    assert any(way in text for way in ("remove it", "set ", "call ", "use ", "train LoRA", "start the", "put ")), text
    VOPDConfig(output_dir=str(tmp_path), **{name: default(name)})


@pytest.mark.parametrize("name", [name for name, entry in WORKING.items() if isinstance(entry.values, Range)])
def test_a_number_out_of_range_is_refused(name: str, tmp_path: Path) -> None:
    entry = WORKING[name].values
    assert isinstance(entry, Range)
    outside = [
        float("nan"),
        "many",
        entry.least - 0.5,
        *([entry.least] if entry.above else []),
        *([entry.most] if entry.below else []),
    ]
    for value in outside:
        with pytest.raises(ConfigurationError, match=says(name)):
            VOPDConfig(output_dir=str(tmp_path), **{name: value})


@pytest.mark.parametrize(
    "name",
    [name for name, entry in WORKING.items() if entry.values is not None and not isinstance(entry.values, Range)],
)
def test_a_misspelled_choice_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says(f"unknown {name} ... nothing")):
        VOPDConfig(output_dir=str(tmp_path), **{name: "nothing"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm_mode": "server"}, "vllm_mode ... use_vllm"),
        ({"vllm_server_port": 8001, "use_vllm": True}, "vllm_server_port ... vllm_mode=server"),
        ({"eval_steps": 5}, "eval_steps ... eval_strategy"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end ... eval_strategy"),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, "save_strategy=steps ... eval_strategy=epoch"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau ... eval_strategy"),
        ({"save_strategy": "best"}, "save_strategy=best ... eval_strategy"),
        ({"save_strategy": "best", "eval_strategy": "steps"}, "save_strategy=best ... metric_for_best_model"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor ... dataloader_num_workers"),
        ({"project": "mine"}, "project ... report_to=trackio"),
        ({"optim": "lomo"}, "optim=lomo ... adamw_torch_fused"),
        ({"optim": "schedule_free_adamw"}, "optim=schedule_free_adamw ... adamw_torch_fused"),
        ({"optim_args": "a=1"}, "optim_args=a=1 ... no effect ... adamw_torch_fused"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim_args ... name=value ... 'momentum'"),
        ({"optim": "sgd", "optim_args": "momentum=x"}, "optim=sgd ... 'x'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr ... min_lr_rate"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "warmup_stable_decay ... num_decay_steps"),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, "lr_scheduler_type=linear ... cycles"),
        ({"ddp_backend": "gloo"}, "ddp_backend=gloo ... accelerate launch"),
        ({"fp16": True, "bf16": True}, "fp16"),
        ({"warmup_steps": "soon"}, "warmup_steps ... 'soon'"),
        ({"loss_backend": "triton"}, "loss_backend=triton ... use_cpu ... auto"),
        ({"report_to": "mlflow"}, "mlflow ... pip install mlflow"),
    ],
)
def test_what_an_option_needs_is_known_when_it_is_set(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says(message)) as raised:
        VOPDConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
    assert "\n" not in str(raised.value)


def test_an_optimizer_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(
        MissingExtraError, match=says("optim=adamw_bnb_8bit ... bitsandbytes ... pip install -U bitsandbytes")
    ):
        VOPDConfig(output_dir=str(tmp_path), optim="adamw_bnb_8bit")


def test_a_folder_is_not_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        VOPDConfig(output_dir=str(tmp_path), report_to="wandb")


def test_a_configuration_with_evaluations_is_built_again_from_its_values(tmp_path: Path) -> None:
    args = VOPDConfig(str(tmp_path), use_cpu=True, eval_strategy="steps", load_best_model_at_end=True, save_steps=1)
    again = dataclasses.replace(args, learning_rate=1e-3)
    assert again.do_eval and again.metric_for_best_model == "loss"


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("eval_reverse_kl", False), ("eval_a_b_sampled_reverse_kl", False), ("rewards/math/mean", True), ("loss", False)],
)
def test_the_best_model_is_the_one_with_the_better_metric(metric: str, greater: bool, tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "load_best_model_at_end": True, "metric_for_best_model": metric}
    assert VOPDConfig(str(tmp_path), use_cpu=True, **settings).greater_is_better is greater
    assert VOPDConfig(str(tmp_path), use_cpu=True, greater_is_better=True, **settings).greater_is_better


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric_for_best_model": "eval_revers_kl"}, "eval_revers_kl is not a metric ... eval_reverse_kl"),
        ({"metric_for_best_model": "eval_mine_avg@4"}, "eval_mine_avg@4 is not a metric ... eval_reverse_kl"),
        ({"metric_for_best_model": "eval_entropy", "metrics_every": 0}, "eval_entropy ... metrics_every=0"),
    ],
)
def test_a_best_model_by_what_is_not_measured(
    settings: dict[str, Any], message: str, make_trainer: Callable[..., Any]
) -> None:
    prompts = Dataset.from_dict({"prompt": ["1="]})
    with pytest.raises(ConfigurationError, match=says(message)):
        make_trainer(trainer={"eval_dataset": prompts}, eval_strategy="steps", **settings)


@pytest.mark.parametrize(("estimator", "warned"), [("vopd", True), ("full_rkl", False)])
def test_a_loss_without_meaning_is_no_good_choice(
    estimator: str, warned: bool, make_trainer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    given = {"eval_dataset": Dataset.from_dict({"prompt": ["1="]})}
    settings = {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    make_trainer(trainer=given, load_best_model_at_end=True, estimator=estimator, **settings)
    assert told("metric_for_best_model=loss ... eval_reverse_kl", caplog.text) is warned


def test_a_metric_that_an_evaluation_lacks_is_told_in_a_line(make_trainer: Callable[..., Any]) -> None:
    """A sparse estimator reads a few rows of the teacher's head, and knows no exact reverse KL."""
    given = {"eval_dataset": Dataset.from_dict({"prompt": ["1="]})}
    settings = {"estimator": "vopd_sparse", "loss_top_k": 4, "metric_for_best_model": "eval_reverse_kl"}
    settings |= {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ConfigurationError, match=says("metric_for_best_model ... eval_reverse_kl ... not found")):
        make_trainer(trainer=given, **settings).train()


def test_a_benchmark_may_be_a_path(tmp_path: Path) -> None:
    for given in (tmp_path / "a.jsonl", [tmp_path / "a.jsonl"], f" {tmp_path / 'a.jsonl'}"):
        args = VOPDConfig(str(tmp_path), use_cpu=True, eval_benchmarks=given)
        assert args.eval_benchmarks == [str(tmp_path / "a.jsonl")]


def test_an_option_of_the_command_names_its_place_in_python() -> None:
    for name in {entry.name for entry in dataclasses.fields(TrainOptions)} - OWN.keys():
        with pytest.raises(ConfigurationError, match=says(name)) as raised:
            VOPDConfig(**{name: 8})
        assert "did you mean" not in str(raised.value) and "remove it" not in str(raised.value)
    with pytest.raises(ConfigurationError, match=says("lora_rank ... peft_config")):
        VOPDConfig(lora_rank=8)
    with pytest.raises(ConfigurationError, match=says("learing_rate ... learning_rate")):
        VOPDConfig(learing_rate=1e-3)


# ---- the options that work ------------------------------------------------------------------------------------------


def test_optimizer_and_schedule(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(
        learning_rate=0.02, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-3, optim="adamw_torch",
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 0.01}, warmup_steps=1,
        max_grad_norm=1e-3, max_steps=4,
    )  # fmt: skip
    clipped: list[float] = []
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = lambda weights, norm, *rest: (
        clipped.append(norm) or clip(weights, norm, *rest)
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is torch.optim.AdamW and not optimizer.defaults["fused"]
    assert optimizer.defaults["betas"] == (0.8, 0.9) and optimizer.defaults["eps"] == 1e-3
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    rates = [record["learning_rate"] for record in records(trainer)]
    assert rates[:2] == [0.0, 0.02] and 0.01 < rates[3] < rates[2] < 0.02
    assert set(clipped) == {1e-3}
    trainer = make_trainer(optim="sgd", optim_args="momentum=0.5")
    assert trainer.create_optimizer().defaults["momentum"] == 0.5


def test_batches(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=0.5,
        max_steps=-1,
        samples_per_step=9,
    )  # of 16 prompts
    trainer.train()
    lines = Path(trainer.args.output_dir, "samples.jsonl").read_text().splitlines()
    assert trainer.state.global_step == 2 and len(lines) == 2 * 4
    assert make_trainer(max_steps=3).args.max_steps == 3


@pytest.mark.usefixtures("fresh_accelerate")
def test_precision(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[None] = []
    monkeypatch.setattr("transformers.trainer.clear_device_cache", lambda: cleared.append(None))
    trainer = make_trainer(use_cpu=True, bf16=True, tf32=False, torch_empty_cache_steps=1, max_steps=1)
    seen: set[torch.dtype] = set()
    trainer.model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *given: seen.add(given[2].dtype))
    trainer.train()
    assert trainer.args.device.type == "cpu" and torch.bfloat16 in seen and cleared
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match=says("tf32")):
            make_trainer(tf32=True)
        with pytest.raises(ConfigurationError, match=says("bf16=true ... use_cpu=true")):
            make_trainer(use_cpu=False, bf16=True)


def test_activation_checkpointing(make_trainer: Callable[..., Any], take_step: Callable[..., Any]) -> None:
    """The gradient is the same, from a second forward pass."""
    old = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    new = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    plain = take_step(make_trainer(max_steps=1))
    for settings in (old, new) if OF_SOME_VERSIONS & FIELDS.keys() else (old,):
        trainer = make_trainer(max_steps=1, **settings)
        layers = [module for module in trainer.model.modules() if hasattr(module, "gradient_checkpointing")]
        again = take_step(trainer)
        assert any(layer.gradient_checkpointing for layer in layers)
        assert all(torch.allclose(again[name], value, atol=1e-6) for name, value in plain.items())


def test_loading_of_rows(make_trainer: Callable[..., Any]) -> None:
    """Whoever loads the rows, the prompts and the numbers are the same."""
    trainer = make_trainer(
        dataloader_num_workers=1, dataloader_prefetch_factor=2, dataloader_persistent_workers=True,
        dataloader_multiprocessing_context="fork", dataloader_pin_memory=False,
    )  # fmt: skip
    loader = trainer.get_train_dataloader().base_dataloader
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (1, 2, True)
    assert loader.multiprocessing_context.get_start_method() == "fork" and not loader.pin_memory
    folder = Path(trainer.args.output_dir)
    apart = make_trainer(output_dir=str(folder / "apart"), dataloader_num_workers=1)
    assert losses(apart) == losses(make_trainer(output_dir=str(folder / "here")))


def test_order(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def first(**settings: Any) -> list[int]:
        return list(make_trainer(**settings)._get_train_sampler())[:6]

    assert first(shuffle_dataset=False) == [0, 1, 2, 3, 4, 5]
    assert first(seed=3) == first(seed=3) != first(seed=4)
    exact: list[int] = []
    monkeypatch.setattr("transformers.trainer.enable_full_determinism", exact.append)
    make_trainer(full_determinism=True, seed=5)
    assert exact == [5]


def test_logs(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.trainer as module
    from transformers.utils import logging as theirs

    skipped: list[bool] = []
    tracker = module.TrainerMemoryTracker  # whose thread would take seconds
    monkeypatch.setattr(module, "TrainerMemoryTracker", lambda skip: skipped.append(skip) or tracker(True))
    before = theirs.get_verbosity()
    try:
        trainer = make_trainer(
            logging_strategy="steps", logging_steps=2, logging_first_step=True, log_level="error",
            log_level_replica="critical", include_num_input_tokens_seen="all", skip_memory_metrics=False, max_steps=4,
        )  # fmt: skip
        assert theirs.get_verbosity() == logging.ERROR
        args = trainer.args
        assert args.get_process_log_level() == logging.ERROR
        own, args.distributed_state = (
            args.distributed_state,
            SimpleNamespace(local_process_index=1, process_index=1, num_processes=2),
        )
        assert args.get_process_log_level() == logging.CRITICAL
    finally:
        theirs.set_verbosity(before)
    args.distributed_state = own
    assert skipped == [False]
    trainer.train()
    assert [record["step"] for record in records(trainer) if "loss" in record] == [1, 2, 4]
    assert trainer.state.num_input_tokens_seen > 0


def test_trackers(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their settings arrive at the tracker."""
    trackio = pytest.importorskip("trackio")
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(trackio, "init", lambda **given: started.append(given))
    for name in ("log", "finish"):
        monkeypatch.setattr(trackio, name, lambda *given, **named: None)
    monkeypatch.setattr(trackio, "config", {}, raising=False)
    chosen = {"project": "mine", "trackio_space_id": "me/space", "trackio_bucket_id": "bucket"}
    trainer = make_trainer(report_to="trackio", run_name="first", trackio_static_space_id=False, max_steps=1, **chosen)
    trainer.train()
    (given,) = started
    assert given["name"] == "first" and given["project"] == "mine"
    assert given["space_id"] == "me/space" and given["bucket_id"] == "bucket"


def test_checkpoints(make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    trainer = make_trainer(
        output_dir=str(tmp_path / "here"), save_strategy="steps", save_steps=1, save_total_limit=1, save_only_model=True
    )
    trainer.train()
    (checkpoint,) = (tmp_path / "here").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-2" and not (checkpoint / "optimizer.pt").exists()


def test_evaluation(make_trainer: Callable[..., Any]) -> None:
    """Which sets do_eval by itself."""
    prompts = Dataset.from_dict({"prompt": [f"{n}=" for n in range(5)]})
    settings = {
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_delay": 2,
        "per_device_eval_batch_size": 2,
    }
    trainer = make_trainer(trainer={"eval_dataset": prompts}, eval_on_start=True, max_steps=3, **settings)
    sizes = [len(batch) for batch in trainer.get_eval_dataloader()]
    assert sizes == [2, 2, 1]
    trainer.train()
    assert [record["step"] for record in records(trainer) if "eval_loss" in record] == [0, 2, 3]
    for settings in ({"eval_strategy": "steps"}, {"eval_on_start": True}):
        with pytest.raises(ConfigurationError, match=says("eval_dataset")):
            make_trainer(**settings)


def test_best_model(make_trainer: Callable[..., Any]) -> None:
    """The weights with the least reverse KL are loaded at the end, and a callback goes on where it was."""
    from transformers import EarlyStoppingCallback

    prompts = Dataset.from_dict({"prompt": [f"{n}=" for n in range(3)]})
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_reverse_kl", "save_total_limit": 1,
        "learning_rate": 0.3, "restore_callback_states_from_checkpoint": True,
    }  # fmt: skip
    given = {"eval_dataset": prompts, "callbacks": [EarlyStoppingCallback(early_stopping_patience=9)]}
    trainer = make_trainer(trainer=given, **settings)
    trainer.train()
    found = {record["step"]: record["eval_reverse_kl"] for record in records(trainer) if "eval_reverse_kl" in record}
    best = min(found, key=found.__getitem__)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    kept = {path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")}
    assert best < 3 and kept == {f"checkpoint-{best}", "checkpoint-3"}  # the run goes on from the last one
    from safetensors.torch import load_file

    saved = load_file(Path(trainer.state.best_model_checkpoint, "model.safetensors"))
    assert all(torch.equal(dict(trainer.model.named_parameters())[name], value) for name, value in saved.items())
    counted = next(c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback))
    again = make_trainer(trainer={**given, "callbacks": [EarlyStoppingCallback(early_stopping_patience=1)]}, **settings)
    again.train(resume_from_checkpoint=True)
    restored = next(c for c in again.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback))
    assert restored.early_stopping_patience == 9 == counted.early_stopping_patience


def test_hub(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer asks of the hub, which is not reached here."""
    from huggingface_hub import HfApi

    asked: dict[str, dict[str, Any]] = {}

    def create(self: Any, name: str, **named: Any) -> Any:
        asked["create"] = {"name": name, **named}
        return SimpleNamespace(repo_id=name)

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **named: asked.update(upload=named))
    trainer = make_trainer(
        push_to_hub=True, hub_model_id="me/it", hub_private_repo=True, hub_token="hf_x", hub_revision="mine",
        hub_strategy="end", hub_always_push=True, max_steps=1,
    )  # fmt: skip
    assert asked["create"]["token"] == "hf_x" and asked["create"]["private"] is True
    assert asked["create"]["name"] == "me/it"
    trainer.push_to_hub()
    assert asked["upload"]["repo_id"] == "me/it" and asked["upload"]["revision"] == "mine"


def test_models(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from vopd.training import models

    asked: list[dict[str, Any]] = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *given, **named: asked.append(named) or load(*given, **named))
    trainer = make_trainer(trust_remote_code=True, teacher_model_revision="main")
    assert [named["trust_remote_code"] for named in asked] == [True, True]
    assert [named.get("revision") for named in asked] == [None, "main"]
    trainer = make_trainer(
        model_init_kwargs={"dtype": "bfloat16", "attention_dropout": 0.5}, disable_dropout=False,
        teacher_model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    assert trainer.model.dtype == torch.bfloat16 == trainer.teacher_model.dtype
    assert trainer.model.model.layers[0].self_attn.attention_dropout == 0.5
    trainer = make_trainer(model_init_kwargs={"attention_dropout": 0.5}, disable_dropout=True)
    assert trainer.model.model.layers[0].self_attn.attention_dropout == 0


def test_sampling(make_trainer: Callable[..., Any], take_step: Callable[..., Any], recorded_completions: Any) -> None:
    exact = {"estimator": "full_rkl", "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "max_completion_length": 3}
    more = {"generation_kwargs": {"typical_p": 0.9}, "cache_implementation": "static", "temperature": 0.7}
    trainer = make_trainer(max_steps=1, **exact, **more)
    trainer.train()
    rollout = trainer.generation_config
    assert (rollout.top_p, rollout.min_p, rollout.repetition_penalty, rollout.max_new_tokens) == (0.9, 0.1, 1.2, 3)
    assert (rollout.typical_p, rollout.cache_implementation, rollout.temperature) == (0.9, "static", 0.7)
    # Padding changes nothing but the last digits.
    plain = take_step(make_trainer(max_steps=1), recorded_completions)
    padded = take_step(make_trainer(max_steps=1, pad_to_multiple_of=16), recorded_completions)
    assert all(torch.allclose(padded[name], value, atol=1e-5) for name, value in plain.items())


@pytest.mark.usefixtures("fresh_accelerate")
def test_compilation(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They arrive at torch.compile; tests/launchers compares the gradients of compiled models."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **named: asked.append(named) or model)
    make_trainer(torch_compile=True, torch_compile_backend="aot_eager", torch_compile_mode="reduce-overhead")
    assert asked and {(named["backend"], named["mode"]) for named in asked} == {("aot_eager", "reduce-overhead")}


def test_tools(make_trainer: Callable[..., Any]) -> None:
    assert make_trainer(max_tool_calling_iterations=3).max_tool_calling_iterations == 3


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm(mode: str, make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings arrive at TRL's engine; tests/real_vllm runs the engine itself on a GPU."""
    from trl.trainer import distillation_trainer

    from vopd.training import rollout_logprobs

    made: dict[str, Any] = {}

    class Engine:
        def __init__(self, **settings: Any) -> None:
            made.update(settings)
            self.generation_kwargs = settings["generation_kwargs"]
            self.generate = None
            answer = SimpleNamespace(ok=True, json=lambda: {"vllm_env": {}})
            self.vllm_client = SimpleNamespace(base_url="", session=SimpleNamespace(get=lambda *given, **named: answer))

    monkeypatch.setattr(rollout_logprobs, "has_vllm", lambda: True)
    monkeypatch.setattr(distillation_trainer, "is_vllm_available", lambda: True)
    monkeypatch.setattr(distillation_trainer, "VLLMGeneration", Engine)
    colocated = {
        "vllm_model_impl": "transformers", "vllm_enable_sleep_mode": True, "vllm_gpu_memory_utilization": 0.5,
        "vllm_max_model_length": 99, "vllm_tensor_parallel_size": 2,
    }  # fmt: skip
    served = {
        "vllm_server_base_url": "http://h:1", "vllm_server_host": "h", "vllm_server_port": 1, "vllm_group_port": 2,
        "vllm_server_timeout": 3.0,
    }  # fmt: skip
    chosen = colocated if mode == "colocate" else served
    exact = {"estimator": "full_rkl", "vllm_structured_outputs_regex": "[0-9]+"}
    make_trainer(use_vllm=True, vllm_mode=mode, **chosen, **exact)
    assert made["mode"] == mode and made["structured_outputs_regex"] == "[0-9]+"
    renamed = {"vllm_max_model_length": "max_model_length", "vllm_group_port": "group_port"}
    for name, value in chosen.items():
        assert made[renamed.get(name, name.removeprefix("vllm_"))] == value


def test_ddp(make_trainer: Callable[..., Any]) -> None:
    """They arrive at torch's DDP, which tests/training/test_distributed.py runs on two processes."""
    trainer = make_trainer(
        ddp_find_unused_parameters=True, ddp_bucket_cap_mb=7, ddp_broadcast_buffers=False, ddp_timeout=99
    )  # fmt: skip
    trainer._build_accelerator_args()
    wrapped = trainer.accelerator.ddp_handler.to_kwargs()
    assert wrapped == {"find_unused_parameters": True, "bucket_cap_mb": 7, "broadcast_buffers": False}
    assert trainer.args.ddp_timeout_delta.total_seconds() == 99
    assert "ddp_backend" in FIELDS


# ---- one rule for streams -------------------------------------------------------------------------------------------


def test_a_stream_is_refused_everywhere(make_trainer: Callable[..., Any]) -> None:
    stream = Dataset.from_dict({"prompt": ["a"] * 8}).to_iterable_dataset()
    for name in ("train_dataset", "eval_dataset"):
        with pytest.raises(DataError, match=says(f"{name} is a stream ... streaming=False")):
            make_trainer(trainer={name: stream})
    trainer = make_trainer()
    with pytest.raises(DataError, match=says("eval_dataset is a stream ... streaming=False")):
        trainer.evaluate(stream)

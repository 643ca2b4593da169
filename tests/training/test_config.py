"""Every setting that would train something else than asked is refused with the way out."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import says
from vopd import ESTIMATORS, VOPDConfig
from vopd.errors import ConfigurationError
from vopd.versions import check_trl_version


def config(tmp_path: Path, **settings: Any) -> VOPDConfig:
    return VOPDConfig(output_dir=str(tmp_path), **settings)


def test_output_dir_alone_is_enough_and_the_defaults_are_safe(tmp_path: Path) -> None:
    args = config(tmp_path)
    assert args.estimator == "full_rkl"
    assert args.disable_dropout and not args.logging_nan_inf_filter and not args.telemetry
    assert args.report_to == [] and args.vllm_server_host == "127.0.0.1"
    assert args.top_k == 0 and args.beta is None and args.logging_steps == 1
    accelerated = torch.accelerator.is_available()
    assert args.bf16 is False or accelerated
    assert args.gradient_checkpointing is accelerated


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_every_estimator_can_be_chosen(estimator: str, tmp_path: Path) -> None:
    k = 5 if ESTIMATORS[estimator].needs_top_k else None
    assert config(tmp_path, estimator=estimator, loss_top_k=k).estimator == estimator


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "vopdd"}, "'vopdd' ... 'vopd'"),
        ({"estimator": "zzzz"}, "'zzzz' ... opd, vopd"),
        ({"estimator": "vopd_top_k"}, "'vopd_top_k' ... loss_top_k=20"),
        ({"loss_top_k": 5}, "loss_top_k ... 'vopd'"),
        ({"estimator": "vopd_top_k", "loss_top_k": 0}, "loss_top_k ... 1"),
        ({"top_k": 20}, "top_k ... loss_top_k=20"),
        ({"estimator": "full_rkl", "top_k": 20}, "top_k ... loss_top_k"),
        ({"beta": 1.0}, "beta ... estimator"),
        ({"beta": 0.0}, "beta ... estimator"),
        ({"temperature": 0.0}, "temperature ... above 0"),
        ({"top_p": 0.9}, "unbiased ... remove top_p"),
        ({"min_p": 0.05}, "remove min_p"),
        ({"repetition_penalty": 1.1}, "remove repetition_penalty"),
        ({"generation_kwargs": {"typical_p": 0.9}}, "remove typical_p"),
        ({"generation_kwargs": {"do_sample": False}}, "remove do_sample"),
        ({"generation_kwargs": '{"no_repeat_ngram_size": 3}'}, "remove no_repeat_ngram_size"),
        ({"generation_kwargs": {"temperature": 0.5}}, "temperature=0.5 ... set temperature"),
        ({"vllm_structured_outputs_regex": "[0-9]+", "use_vllm": True}, "remove structured_outputs"),
        ({"max_completion_length": None}, "max_completion_length"),
        ({"max_completion_length": 0}, "max_completion_length ... 1"),
        ({"max_prompt_length": 0}, "max_prompt_length ... 1"),
        ({"metrics_every": -1}, "metrics_every ... 0"),
        ({"samples_per_step": -1}, "samples_per_step ... 0"),
        ({"log_completions": True}, "log_completions ... show_samples"),
        ({"show_samples": 3}, "show_samples ... 0 ... samples_per_step=2"),
        ({"loss_backend": "cuda"}, "loss_backend 'cuda' ... auto ... torch ... triton"),
        ({"loss_normalizer": 0.0}, "loss_normalizer ... positive"),
        ({"importance_sampling": True}, "importance_sampling ... use_vllm=true"),
        ({"importance_cap": 0.5}, "importance_cap ... 1"),
        (
            {"importance_sampling": True, "use_vllm": True, "estimator": "full_rkl"},
            "importance_sampling ... 'full_rkl'",
        ),
        ({"generation_kwargs": {"thinking_token_budget": 100}}, "remove thinking_token_budget"),
        ({"generation_kwargs": {"n": 4}}, "num_generations"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    sampled = {"estimator": "vopd"}  # which truncated sampling would bias
    with pytest.raises(ConfigurationError, match=says(message)) as raised:
        config(tmp_path, **(sampled | settings))
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


def test_truncated_sampling_is_allowed_where_it_biases_nothing(tmp_path: Path) -> None:
    args = config(tmp_path, estimator="full_rkl", top_p=0.9, generation_kwargs={"typical_p": 0.9})
    assert args.top_p == 0.9


def test_neutral_sampling_settings_are_allowed(tmp_path: Path) -> None:
    config(tmp_path, top_p=1.0, min_p=0.0, repetition_penalty=1.0, generation_kwargs={"num_beams": 1, "min_tokens": 0})


def test_a_configuration_can_be_built_again_from_its_own_values(tmp_path: Path) -> None:
    args = config(tmp_path, estimator="vopd_top_k", loss_top_k=3, temperature=0.8)
    again = dataclasses.replace(args, learning_rate=1e-3)
    assert (again.estimator, again.loss_top_k, again.temperature) == ("vopd_top_k", 3, 0.8)


def test_the_parser_of_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import HfArgumentParser

    line = ["--output_dir", str(tmp_path), "--estimator", "vopd_top_k", "--loss_top_k", "5", "--report_to", "none"]
    (args,) = HfArgumentParser(VOPDConfig).parse_args_into_dataclasses(line)
    assert (args.estimator, args.loss_top_k, args.report_to) == ("vopd_top_k", 5, [])


def test_pickles_and_dictionaries_hold_no_token(tmp_path: Path) -> None:
    args = config(tmp_path, hub_token="hf_secret", model_init_kwargs={"token": "hf_secret", "dtype": "float32"})
    assert b"hf_secret" not in pickle.dumps(args)
    assert "hf_secret" not in str(args.to_dict())
    assert args.hub_token == "hf_secret"
    assert args.model_init_kwargs == {"token": "hf_secret", "dtype": "float32"}
    assert copy.copy(args).model_init_kwargs["dtype"] == "float32"


@pytest.mark.parametrize("version", ["1.15.9", "1.17.0", "2.0"])
def test_an_untested_trl_is_refused(version: str) -> None:
    with pytest.raises(ConfigurationError, match=f"but trl {version} is installed"):
        check_trl_version(version)


@pytest.mark.parametrize("version", ["1.16.0", "1.16.3"])
def test_the_tested_range_of_trl_passes(version: str) -> None:
    check_trl_version(version)

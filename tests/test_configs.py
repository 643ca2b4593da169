"""Every configuration that is shipped is good, and the demo's runs on each kind of data."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vopd import cli
from vopd.errors import Faults
from vopd.run.accuracy import EvalOptions
from vopd.run.plan import read_plan, train_options

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "recipes").glob("*/config.yaml"))
LAUNCHERS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_every_configuration_is_good(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["validate", "--config", str(path)]) == 0
    assert capsys.readouterr().out.endswith("valid\n")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_every_file_and_option_that_a_recipe_names_exists(path: Path) -> None:
    """In the comments of its configuration and in its README, which has to name the configuration."""
    readme = path.with_name("README.md").read_text()
    assert f"--config {path.relative_to(ROOT)}" in readme
    text = (path.read_text() + readme).replace("\\\n", " ")
    for word in re.findall(r"(?:configs|recipes)/[\w./-]+\.yaml", text):
        assert (ROOT / word).is_file(), word
    for link in re.findall(r"\]\(([^)#:]+)", readme):
        assert (path.parent / link).exists(), link
    options = {"eval": {field.name for field in dataclasses.fields(EvalOptions)}, "train": {*train_options()}}
    for command, rest in re.findall(r"vopd (eval|train) (--.*)", text):
        named = {word.replace("-", "_") for word in re.findall(r"--([\w-]+)", rest)}
        assert named <= options[command] | {"config"}, rest


def test_the_papers_setup() -> None:
    """LoRA of rank 64, alpha 128, on all linear layers; 64 prompts a process; 1e-5; 1024 + 2048 tokens."""
    plan = read_plan(
        "train", "", ["--config", str(ROOT / "recipes" / "qwen3-1.7b-lora-vllm" / "config.yaml")], Faults()
    )
    options, config = plan.options, plan.config
    assert (options.lora_rank, options.lora_alpha, options.lora_target_modules) == (64, 128, ["all-linear"])
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64
    assert (config.learning_rate, config.lr_scheduler_type, config.temperature) == (1e-5, "cosine", 1.0)
    assert (config.max_prompt_length, config.max_completion_length, config.num_train_epochs) == (1024, 2048, 1)
    assert config.vllm_max_model_length == 1024 + 2048
    assert not config.chat_template and str(options.prompt_template).endswith("within \\boxed{}.")


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_every_launcher_file_is_one_that_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    found = load_config_from_file(str(path))  # refuses keys that it does not know
    assert found.mixed_precision == "bf16" and found.num_processes % found.num_machines == 0
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*(found.fsdp_config or {}), *(found.deepspeed_config or {})} <= known
    assert str(found.distributed_type.value) in {"MULTI_GPU", "FSDP", "DEEPSPEED"}
    if found.fsdp_config:
        assert found.fsdp_config["fsdp_version"] == 2


def test_there_is_a_launcher_file_for_each_way() -> None:
    names = {path.stem for path in LAUNCHERS}
    assert {"ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "multi_node"} <= names
    assert yaml.safe_load((ROOT / "configs/accelerate/multi_node.yaml").read_text())["num_machines"] > 1


class TestDemo:
    """A few steps of recipes/embedded-pair/config.yaml."""

    @pytest.fixture
    def demo(self, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
        monkeypatch.chdir(ROOT)

        def call(*more: str) -> Path:
            assert cli.main(["train", *short(tmp_path), *more]) == 0
            return tmp_path / "demo"

        return call

    def test_as_it_is(self, demo: Callable[..., Path]) -> None:
        run = demo()
        results = json.loads((run / "results.json").read_text())
        assert results["start"]["problems"] == results["trained"]["problems"] == 4
        assert "legs" in (run / "samples.jsonl").read_text()

    def test_on_a_parquet_file(self, demo: Callable[..., Path], tmp_path: Path) -> None:
        import datasets

        path = tmp_path / "p.parquet"
        datasets.Dataset.from_list(rows()).to_parquet(path)
        assert "birds" in (demo("--dataset", str(path)) / "samples.jsonl").read_text()

    def test_on_a_task(self, demo: Callable[..., Path]) -> None:
        run = demo("--dataset", "reasoning_gym:chain_sum", "--max_prompts", "32")
        assert "arithmetic problem" in (run / "samples.jsonl").read_text()

    def test_on_a_hub_id_from_the_local_cache(self, tmp_path: Path) -> None:
        """In a process of its own: where the cache lies is read once, from HF_HOME."""
        commit = "0123456789" * 4
        put_into_hub_cache(tmp_path / "home", "me/tiny", commit, rows())
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONPATH": str(ROOT / "src")}
        arguments = [*short(tmp_path), "--dataset", "me/tiny", "--dataset_revision", commit, "--dry_run"]
        done = subprocess.run(
            [sys.executable, "-m", "vopd", "train", *arguments],
            capture_output=True, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "first prompt: '0 birds" in done.stdout


def short(folder: Path) -> list[str]:
    return [
        "--config", str(ROOT / "recipes" / "embedded-pair" / "config.yaml"), "--output_dir", str(folder),
        "--run_name", "demo",
        "--max_steps", "2", "--per_device_train_batch_size", "4", "--max_completion_length", "8",
        "--eval_count", "4", "--use_cpu", "true", "--max_prompts", "16",
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    return [{"question": f"{n} birds have how many legs?", "answer": str(2 * n)} for n in range(16)]


def put_into_hub_cache(home: Path, name: str, commit: str, rows: list[dict[str, Any]]) -> None:
    """Leave a dataset in the cache under `home` as `datasets.load_dataset(name)` would have from the hub."""
    import datasets

    owner, _, short = name.partition("/")
    home.mkdir()
    datasets.Dataset.from_list(rows).to_parquet(home / "rows.parquet")
    datasets.load_dataset("parquet", data_files=str(home / "rows.parquet"), cache_dir=str(home / "built"))
    built = next((home / "built" / "parquet").glob("*/*/*/dataset_info.json")).parent
    folder = home / "datasets" / f"{owner}___{short}" / "default" / "0.0.0" / commit
    folder.parent.mkdir(parents=True)
    shutil.move(built, folder)
    (folder / "parquet-train.arrow").rename(folder / f"{short}-train.arrow")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"parquet"', f'"{short}"'))

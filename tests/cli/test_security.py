"""Nothing from a model's repository is run, nothing listens to the network, no secret is written down."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vopd import cli
from vopd.errors import VOPDError

ROOT = Path(__file__).parents[2]
Train = Callable[..., int]


@pytest.fixture
def booby_trapped(tiny_student_dir: Path, tmp_path: Path) -> Path:
    """A model whose configuration, weights and tokenizer ask for code that leaves a file behind."""
    folder = tmp_path / "trapped"
    shutil.copytree(tiny_student_dir, folder)
    code = f"open({str(tmp_path / 'code_was_run')!r}, 'w').close()\n"
    (folder / "trap.py").write_text(code + "class TrapConfig: pass\nclass TrapModel: pass\nclass TrapTokenizer: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "trap", "architectures": ["TrapModel"]}
    config["auto_map"] = {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.TrapModel"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "TrapTokenizer", "auto_map": {"AutoTokenizer": [None, "trap.TrapTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("which", ["model", "teacher_model"])
def test_code_of_a_model_is_not_run_and_the_refusal_names_the_setting(
    which: str, booby_trapped: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"--{which}", str(booby_trapped)) == 4
    assert "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize("which", ["model", "teacher_model"])
def test_the_trainer_runs_no_code_by_default_either(
    which: str, booby_trapped: Path, tiny_student_dir: Path, tiny_teacher_dir: Path, tmp_path: Path
) -> None:
    from datasets import Dataset

    from vopd import VOPDConfig, VOPDTrainer

    models = {"model": str(tiny_student_dir), "teacher_model": str(tiny_teacher_dir), which: str(booby_trapped)}
    args = VOPDConfig(output_dir=str(tmp_path / "run"), use_cpu=True)
    with pytest.raises(VOPDError, match="trust_remote_code"):
        VOPDTrainer(**models, args=args, train_dataset=Dataset.from_dict({"prompt": ["a"] * 16}))
    assert not (tmp_path / "code_was_run").exists()


def test_a_run_listens_to_nothing_but_this_host(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[Any] = []
    bind = socket.socket.bind
    monkeypatch.setattr(socket.socket, "bind", lambda self, address: (bound.append(address), bind(self, address))[1])
    assert train() == 0
    assert all(address[0] in ("127.0.0.1", "::1", "localhost") for address in bound if isinstance(address, tuple))


def test_every_server_that_documents_and_settings_start_binds_to_loopback() -> None:
    from vopd.training import VOPDConfig

    assert VOPDConfig.__dataclass_fields__["vllm_server_host"].default == "127.0.0.1"
    folders = ("docs", "recipes", "examples", "configs")
    pages = [page for name in folders for page in (ROOT / name).rglob("*") if page.suffix in (".md", ".yaml", ".sh")]
    pages.append(ROOT / "README.md")
    commands = [
        command.group(0)
        for page in pages
        # With the lines that a backslash continues it on.
        for command in re.finditer(r"vllm serve \S*[/A-Z](?:[^\n]*\\\n)*[^\n]*", page.read_text())
    ]
    assert commands
    for command in commands:
        assert "--host 127.0.0.1" in command, command
    sources = [*pages, *ROOT.glob("src/**/*.py"), *ROOT.glob("src/**/*.js")]
    assert not [page for page in sources if "0.0.0.0" in page.read_text()]


def test_no_secret_reaches_a_file_or_the_terminal(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "TEACHER_API_KEY"):
        monkeypatch.setenv(name, f"secret-{name}")
    more = ["--save_steps", "1", "--push_to_hub", "false"]
    for command in (["train", *more], ["validate", *more], ["train", "--dry_run", *more]):
        name = "dry" if "--dry_run" in command else "first"
        assert train(*command[1:], command=command[0], name=name) == 0
    assert cli.main(["doctor"]) == 0
    assert cli.main(["report", str(tmp_path / "runs" / "first")]) == 0
    shown = capfd.readouterr()
    assert "secret-" not in shown.out + shown.err
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    kinds = {path.name for path in files}
    assert {"resolved_config.yaml", "README.md", "report.html", "manifest.json", "trainer_state.json"} <= kinds
    assert not [path for path in files if b"secret-" in path.read_bytes()]


@pytest.mark.parametrize("name", ["../up", "..", "/abs", "a/b"])
def test_a_run_name_cannot_leave_the_output_directory(name: str, train: Train, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*")}
    assert train(name=name) == 2
    assert {path for path in tmp_path.rglob("*")} == before

"""A teacher behind a server from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from messages import told
from teachers.stub_server import StubServer
from vopd.cli import main
from vopd.experiments.pair import embedded_pair, load_embedded_pair
from vopd.models.head_files import load_head


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    pair = load_embedded_pair()
    stub = StubServer(pair.teacher, pair.tokenizer, scores_chosen=False)
    yield stub
    stub.close()


@pytest.fixture
def pooling() -> Iterator[StubServer]:
    """A server of hidden states."""
    pair = load_embedded_pair()
    stub = StubServer(pair.teacher, pair.tokenizer, pools="token_embed")
    yield stub
    stub.close()


@pytest.fixture
def config(server: StubServer, tmp_path: Path) -> Callable[..., list[str]]:
    """config(name=value, ...): arguments of a short run with a server teacher."""

    def write(**more: Any) -> list[str]:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"What is {a} + 2?"}) + "\n" for a in range(4)))
        settings = {
            "model": str(embedded_pair().student),
            "teacher_server_url": server.url,
            "dataset": str(prompts),
            "estimator": "vopd_teacher_top_k",
            "loss_top_k": 5,
            "output_dir": str(tmp_path / "runs"),
            "run_name": "first",
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "max_completion_length": 4,
            "use_cpu": True,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in (settings | more).items() if value is not ...}))
        return ["--config", str(path)]

    return write


def test_one_line_in_the_configuration_is_enough(config: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(["validate", *config()]) == 0
    assert main(["train", *config()]) == 0
    run = tmp_path / "runs" / "first"
    assert (run / "model" / "model.safetensors").is_file() and (run / "report.html").is_file()
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["teacher/requests"] >= 2 and "sampled_reverse_kl" in logged


def test_the_dry_run_asks_no_server_and_counts_no_memory_for_it(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], server: StubServer
) -> None:
    asked = len(server.bodies)
    assert main(["train", "--dry_run", *config()]) == 0
    shown = capsys.readouterr().out
    assert "teacher: checked on its server" in shown and "teacher's weights 0.0 MiB" in " ".join(shown.split())
    assert len(server.bodies) == asked
    given = config(teacher_model=str(embedded_pair().teacher))
    assert main(["train", "--dry_run", *given]) == 0
    shown = capsys.readouterr().out
    assert "teacher: 500 tokens" in shown and "teacher's weights 0.0 MiB" in " ".join(shown.split())
    assert main(["train", "--dry_run", *given, "--teacher_server_payload", "hidden_states"]) == 0
    weight, shown = load_head(embedded_pair().teacher).weight, " ".join(capsys.readouterr().out.split())
    assert f"teacher's weights {weight.nbytes / (1 << 20):.1f} MiB" in shown and "teacher's states" in shown
    assert len(server.bodies) == asked


def test_a_teacher_by_its_server_and_its_files_gives_whole_rows(
    config: Callable[..., list[str]], pooling: StubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = {"default": {"server_url": pooling.url, "model": str(embedded_pair().teacher)}}
    own: dict[str, Any] = {"teacher_server_url": ..., "teachers": teachers, "estimator": "vopd", "loss_top_k": ...}
    head = f"hidden states (bfloat16), output head of {embedded_pair().teacher} here: 640 x 128 in float32, 0.3 MiB"
    assert main(["train", "--dry_run", *config(**own | {"estimator": "opd"})]) == 0
    assert told(f"server at {pooling.url}, {head}; or scores", capsys.readouterr().out)
    assert main(["train", "--dry_run", *config(**own)]) == 0  # which needs them
    assert f"server at {pooling.url}, {head}\n" in capsys.readouterr().out
    assert not pooling.bodies
    assert main(["train", *config(**own, save_steps=1)]) == 0
    assert f"server at {pooling.url}, {head}\n" in capsys.readouterr().err
    run = tmp_path / "runs" / "first"
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["reverse_kl"] > 0 and logged["teacher/seconds"] > 0
    assert yaml.safe_load((run / "resolved_config.yaml").read_text())["teachers"] == teachers
    assert pooling.url in (run / "report.html").read_text()
    # How exactly the states come may change, as where they come from.
    assert main(["train", "--resume", *config(**own, max_steps=2, teacher_server_dtype="float32")]) == 0
    assert "teacher_server_dtype bfloat16 -> float32" in capsys.readouterr().err


def test_a_head_that_is_missing_is_found_before_training(
    config: Callable[..., list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its file is looked at, not read; where the server may give scores, it may be absent."""
    bare = tmp_path / "bare"
    shutil.copytree(embedded_pair().teacher, bare)
    (bare / "model.safetensors").unlink()
    monkeypatch.delattr("vopd.models.files.weight_files.WeightFiles.read")

    def dry_run(path: Path, **more: Any) -> tuple[int, str]:
        code = main(["train", "--dry_run", *config(teacher_model=str(path), **more)])
        return code, "".join(capfd.readouterr())

    for needed in ({"teacher_server_payload": "hidden_states"}, {"estimator": "vopd", "loss_top_k": ...}):
        code, said = dry_run(bare, **needed)
        assert code == 4 and told(f"'{bare}' has no model.safetensors", said)
    code, said = dry_run(bare)
    assert code == 0 and told("note: if the server gives hidden states ... bare' has no model.safetensors", said)
    for path, payload in ((bare, "scores"), (embedded_pair().teacher, "hidden_states")):
        code, said = dry_run(path, teacher_server_payload=payload)
        assert code == 0 and "model.safetensors" not in said


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"estimator": "vopd", "loss_top_k": ...}, 2, "estimator ... full distribution ... server"),
        ({"estimator": "vopd_top_k"}, 2, "student's top k ... server"),
        ({"loss_top_k": 50}, 2, "--max-logprobs 50 ... loss_top_k=50"),
        ({"temperature": 0.5}, 2, "temperature 1"),
        ({"teacher_server_url": "http://127.0.0.1:9"}, 5, "http://127.0.0.1:9"),
        ({"teacher_server_url": "127.0.0.1"}, 2, "'127.0.0.1' ... http://host:8001"),
        (
            {"teacher_server_url": "http://me:pw@h"},
            2,
            "environment variable ... teacher_server_key_env",
        ),
        ({"teacher_server_model": "other"}, 2, "'other' ... teacher_server_model ... stub-teacher"),
        ({"teacher_failure": "ignore"}, 2, "raise ... drop"),
        ({"estimator": "vopd_sparse", "teacher_failure": "drop"}, 2, "teacher_failure=drop ... 'vopd_sparse'"),
        ({"teacher_server_url": ...}, 2, "teacher_model ... teacher_server_url"),
        ({"teacher_dtype": "bfloat16"}, 2, "teacher_dtype has no effect ... server"),
        ({"teacher_quantization": "4bit"}, 2, "teacher_quantization has no effect ... server"),
    ],
)
def test_what_cannot_be_is_told_before_training(
    change: dict[str, Any], code: int, words: str, config: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *config(**change)]) == code
    said = capfd.readouterr().err
    assert told(words, said)
    assert "pw" not in said


def test_another_vocabulary_ends_with_the_code_of_a_mismatch(
    config: Callable[..., list[str]], tiny_tokenizer: Any, capfd: pytest.CaptureFixture[str], server: StubServer
) -> None:
    own, server.tokenizer = server.tokenizer, tiny_tokenizer
    try:
        assert main(["train", *config()]) == 4
    finally:
        server.tokenizer = own
    assert told("student ... server ... different vocabularies", capfd.readouterr().err)


def test_doctor_says_what_a_server_gives(server: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    student = str(embedded_pair().student)
    assert main(["doctor", "--teacher", server.url, "--model", student, "--temperature", "0.7"]) == 0
    shown = capsys.readouterr().out
    assert told("all 500 ids ... student", shown)
    assert told("temperature 0.7 ... ignored", shown)
    lines = usable(shown)
    tempered = lines["opd"], lines["vopd_teacher_top_k"], lines["rao_blackwell_teacher_top_k"]
    assert set(tempered) == {"no, needs temperature 1"}
    assert lines["vopd_sparse"] == "no, needs chosen" and lines["vopd_optimal"] == "no, needs full"
    assert main(["doctor", "--teacher", server.url, "--model", student]) == 0
    lines = usable(capsys.readouterr().out)
    assert lines["opd"] == lines["vopd_teacher_top_k"] == lines["rao_blackwell_teacher_top_k"] == "yes"
    assert lines["vopd_sparse"] == "no, needs chosen" and lines["vopd_optimal"] == "no, needs full"


def test_doctor_and_training_agree_on_chosen_ids(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the estimators that use them, those without a normalizer alone work where the server ignores a temperature."""
    pair = load_embedded_pair()
    stub = StubServer(pair.teacher, pair.tokenizer, scores_chosen=True)
    try:
        address = ["--teacher", stub.url, "--model", str(embedded_pair().student)]
        assert main(["doctor", *address, "--temperature", "0.7"]) == 0
        lines = usable(capsys.readouterr().out)
        for estimator in ("vopd_top_k", "vopd_sparse", "top_k_rkl"):
            change = {"teacher_server_url": stub.url, "estimator": estimator, "temperature": 0.7}
            works = main(["train", *config(**change, run_name=estimator)]) == 0
            assert works == (lines[estimator] == "yes"), (estimator, lines[estimator])
    finally:
        stub.close()


def usable(shown: str) -> dict[str, str]:
    """What doctor says of each estimator."""
    return {line.split()[0]: " ".join(line.split()[1:]) for line in shown.splitlines() if line.startswith("  ")}


def test_doctor_ends_with_5_where_no_server_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--teacher", "http://127.0.0.1:9"]) == 5
    assert told("http://127.0.0.1:9", capfd.readouterr().err)


def test_doctor_does_not_ignore_what_only_a_server_is_checked_with(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--teacher_model", str(embedded_pair().teacher)]) == 2
    assert told("teacher_model has no effect without teacher", capfd.readouterr().err)

"""Every example as its documentation says, on the embedded pair, and whether it gives what it promises.

    make test-examples

Minutes; tests/examples/test_examples.py is the short version that the tests include.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vopd.experiments.pair import embedded_pair

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
EMBEDDED = ROOT / "src" / "vopd" / "experiments" / "embedded"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": "Agg"}
KL = re.compile(r"reverse KL (\d\.\d+) nats/token")


def python(*arguments: Any, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def vopd(*arguments: Any, folder: Path = ROOT) -> str:
    return python("-m", "vopd", *arguments, folder=folder)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_file(tmp_path: Path) -> None:
    before, after = map(float, KL.findall(python(EXAMPLES / "opd.py", folder=tmp_path)))
    assert after < 0.8 * before


def test_trl_script(tmp_path: Path) -> None:
    found = list(map(float, KL.findall(python(EXAMPLES / "trl_script.py", folder=tmp_path))))
    assert found[-1] < 0.85 * found[0]
    assert (tmp_path / "runs" / "trl-script" / "model" / "adapter_model.safetensors").is_file()


def test_custom_estimator(tmp_path: Path) -> None:
    names = "opd,custom_estimator:CLIPPED,custom_estimator:NOISE_ONLY"
    vopd(
        "variance", "--model", EMBEDDED / "student", "--teacher_model", EMBEDDED / "teacher",
        "--dataset", "reasoning_gym:leg_counting", "--max_completion_length", 56, "--resamples", 16,
        "--estimators", f"{names},vopd", "--output_dir", tmp_path, "--run_name", "noise", folder=EXAMPLES,
    )  # fmt: skip
    noise = json.loads((tmp_path / "noise" / "results.json").read_text())["estimators"]
    assert noise["opd_clipped"]["token"]["value"] < noise["opd"]["token"]["value"]
    assert noise["opd_clipped"]["relative_bias"]["low"] > 0.1 > noise["opd"]["relative_bias"]["low"]
    assert 0.5 < noise["noise_only"]["relative_bias"]["value"] < 2  # all of the exact gradient is missing
    vopd(
        "compare", "--estimator", names, "--seed", "0", "--max_steps", 80, "--jobs", 2, "--output_dir", tmp_path,
        folder=EXAMPLES,
    )  # fmt: skip
    assert "noise_only" in (tmp_path / "compare" / "comparison.txt").read_text()


@pytest.mark.parametrize("scores", [False, True], ids=["hidden states", "scores"])
def test_server_teacher(scores: bool, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "server_teacher" / "stub_teacher.py"), *["--scores"] * scores]
    models = ["--model", embedded_pair().student, *["--teacher_model", embedded_pair().teacher] * (not scores)]
    other = ["--estimator", "rao_blackwell_teacher_top_k", "--loss_top_k", 20] * scores
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = re.findall(r"http://[\d.:]+", server.stdout.readline())[0]
            shown = vopd("doctor", "--teacher", url, *models)
            config = EXAMPLES / "server_teacher" / "config.yaml"
            vopd("train", "--config", config, "--teacher_server_url", url, "--output_dir", tmp_path, *other)
        finally:
            server.terminate()
    assert ("hidden states of width 128: 256 bytes per token" in shown) == (not scores)
    logged = metrics(tmp_path / "server-teacher")
    name = "sampled_reverse_kl" if scores else "reverse_kl"
    assert logged[-1][name] < 0.8 * logged[0][name]


def test_rewards(tmp_path: Path) -> None:
    vopd("train", "--config", "config.yaml", "--output_dir", tmp_path, folder=EXAMPLES / "rewards")
    logged = metrics(tmp_path / "rewards")
    for name in ("reverse_kl", "rewards/reasoning_gym/mean", "rewards/answer_format/mean"):
        assert name in logged[0]
    assert logged[-1]["reverse_kl"] < logged[0]["reverse_kl"]


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells one after the other, as a program."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "notebook.py").write_text(program)
    python("notebook.py", folder=tmp_path)
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()

"""The examples in a few steps each; tests/examples/whole.py runs them as they are documented."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vopd import cli
from vopd.estimators import distillation_loss

EXAMPLES = Path(__file__).parents[2] / "examples"
LINE = re.compile(r"reverse KL (\d\.\d+) nats/token")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("estimator", ["vopd", "full_rkl"])
def test_the_written_out_losses_are_those_of_the_package(estimator: str) -> None:
    student, teacher = torch.randn(2, 3, 5, 11, dtype=torch.float64).unbind()
    sampled = torch.randint(11, (3, 5))
    student.requires_grad_()
    found = example("opd.py").written_out(student, teacher, sampled, estimator).mean()
    expected = distillation_loss(student, teacher, sampled, estimator=estimator).loss
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_completions_count_up_to_their_first_end_token_and_are_scored_where_they_are_predicted() -> None:
    module = example("opd.py")
    pair = module.Pair(str(module.embedded_pair().student), str(module.embedded_pair().teacher), "cpu")
    prompts = [problem.question for problem in module.pair_problems("train", 6, 0)]
    torch.manual_seed(0)
    ids, attention, mask = pair.complete(prompts, 40)
    completions = ids[:, -mask.shape[1] :]
    assert completions.max() < len(pair.tokenizer) and len(set(mask.sum(1).tolist())) > 1
    for row, counted in zip(completions.tolist(), mask.tolist()):
        length = row.index(pair.settings.end_ids[0]) + 1 if pair.settings.end_ids[0] in row else len(row)
        assert counted == [place < length for place in range(len(row))]
    # The loss reads the logits that predict each completion token, whatever the padding: the equation, row by row.
    with torch.no_grad():
        together = pair.loss_of_step(ids, attention, mask, "full_rkl").reverse_kl
        for row, divergence in enumerate(together):
            whole = ids[row, attention[row].bool()][None]
            predicts = slice(whole.shape[1] - int(mask[row].sum()) - 1, -1)
            logits = [model(whole).logits[0, predicts, : len(pair.tokenizer)] for model in (pair.student, pair.teacher)]
            alone = module.written_out(*logits, None, "full_rkl")
            torch.testing.assert_close(divergence[mask[row]], alone, atol=1e-5, rtol=1e-3)


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    example(name).main()
    return capsys.readouterr().out


# The last two read no log q(y): there is no sampled reverse KL to print.
@pytest.mark.parametrize("estimator", ["rao_blackwell_teacher_top_k", "vopd_sparse", "top_k_rkl"])
def test_the_one_file_loop_on_a_file_of_problems(
    estimator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n} + 2 =", "answer": n + 2} for n in range(10)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data": tmp_path / "problems.jsonl", "steps": 2, "batch_size": 3, "held_out": 4, "max_new_tokens": 6}
    shown = run("opd.py", monkeypatch, capsys, estimator=estimator, **given)
    assert len(LINE.findall(shown)) == 2 and "step    1" in shown
    assert ("nan" in shown) == (estimator != "rao_blackwell_teacher_top_k")


def test_a_file_with_nothing_left_to_train_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1 + 2 =", "answer": 3}\n')
    with pytest.raises(SystemExit):
        run("opd.py", monkeypatch, capsys, data=tmp_path / "problems.jsonl")
    assert "--held_out 300 leaves no row" in capsys.readouterr().err


def test_the_trl_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its callback ends the training at the first evaluation that is near enough."""
    small = {"batch_size": 4, "held_out": 4, "max_completion_length": 6, "max_steps": 5, "output_dir": tmp_path / "r"}
    shown = run("trl_script.py", monkeypatch, capsys, target=100, **small)
    assert len(LINE.findall(shown)) == 2  # at the start, and after the first step, which is the last
    assert (tmp_path / "r" / "model" / "adapter_model.safetensors").is_file()


def test_the_format_reward() -> None:
    good = ["3 x 4 = 12. <answer>12</answer>", "so \\boxed{5}.", "$\\boxed{5}$\n"]
    bad = ["12", "<answer>1</answer> or <answer>2</answer>", "<answer>1</answer> is what I think", "\\boxed{"]
    reward = example("rewards/my_rewards.py").answer_format
    assert reward(good + bad) == [1.0] * 3 + [0.0] * 4
    assert reward([[{"role": "assistant", "content": text}] for text in good]) == [1.0] * 3


@pytest.mark.parametrize("folder", ["rewards", "server_teacher"])
def test_every_configuration_is_good(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES / folder if folder == "rewards" else EXAMPLES.parent)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert cli.main(["validate", "--config", str(EXAMPLES / folder / "config.yaml")]) == 0
    assert capsys.readouterr().out.endswith("valid\n")


def test_the_notebook_is_committed_as_it_was_run_whole_and_small() -> None:
    path = EXAMPLES / "notebook.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "error" not in kinds and sum("image/png" in str(cell["outputs"]) for cell in cells) >= 2
    assert path.stat().st_size < 300_000

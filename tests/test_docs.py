"""The generated documents are those of the dataclasses, and the written ones name what exists."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import vopd
from vopd import functional
from vopd.cli import COMMANDS
from vopd.estimators import find_estimator
from vopd.run.options import Option

ROOT = Path(__file__).parents[1]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.stem != "bug-catalogue"]
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "null": type(None)}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_generated_documents_are_fresh(generator: ModuleType) -> None:
    stale = [
        path.name
        for path, text in (
            (generator.PAGE, generator.page()),
            (generator.SCHEMA, generator.schema()),
            (generator.FUNCTIONAL, generator.functional_page()),
        )
        if path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: python docs/generate.py"


def test_the_page_has_every_option_of_ours(generator: ModuleType) -> None:
    from dataclasses import fields

    from vopd.cli.eval import EvalOptions
    from vopd.run.plan import TrainOptions

    named = set(re.findall(r"^\| `(\w+)` \|", generator.page(), re.MULTILINE))
    assert {field.name for kind in (EvalOptions, TrainOptions) for field in fields(kind)} <= named
    assert {"estimator", "loss_top_k", "importance_sampling", "show_samples", "learning_rate"} <= named


def conforms(value: Any, kinds: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int | float) and "number" in kinds:
        return True
    return any(isinstance(value, TYPES[kind]) for kind in kinds if kind in TYPES)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_the_schema_accepts_every_configuration(path: Path) -> None:
    schema = json.loads((ROOT / "configs" / "train.schema.json").read_text())
    for name, value in yaml.safe_load(path.read_text()).items():
        kinds = schema["properties"][name]["type"]
        assert conforms(value, [kinds] if isinstance(kinds, str) else kinds), name
    assert path.read_text().startswith("# yaml-language-server: $schema=../../configs/train.schema.json\n")


def test_schema_and_table_of_an_option(generator: ModuleType) -> None:
    options = {
        "rate": Option("rate", float | None, 1e-5, "a | b\nc 20%%"),
        "name": Option("name", str, None, "which", required=True),
    }
    found = generator.json_schema(options)
    assert found["properties"]["rate"] == {
        "type": ["number", "null", "string"], "description": "a | b c 20%", "default": 1e-5,
    }  # fmt: skip
    assert "default" not in found["properties"]["name"] and found["additionalProperties"] is False
    assert "| `rate` | number | `1e-05` | a \\| b c 20% |" in generator.table(options.values())
    assert "| `name` | text | required | which |" in generator.table(options.values())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_a_page_names_exists(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target
    for name in re.findall(r"\b(?:configs|recipes)/[\w./-]+\.(?:yaml|json)", text):
        assert (ROOT / name).is_file(), name
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for name in re.findall(r"^vopd (\w+)", block, re.MULTILINE):
            assert name in COMMANDS, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_configuration_on_a_page_has_options_that_exist(path: Path) -> None:
    schema = json.loads((ROOT / "configs" / "train.schema.json").read_text())["properties"]
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
        assert set(yaml.safe_load(block)) <= set(schema), block
    for line in re.findall(r"^vopd train .*(?:\\\n.*)*", path.read_text(), re.MULTILINE):
        named = {name.replace("-", "_") for name in re.findall(r"--([a-z_-]+)", line)}
        assert named <= {*schema, "config"}, line


def test_every_promise_names_tests_that_exist_and_every_guard_its_default() -> None:
    from vopd.training import VOPDConfig
    from vopd.training.monitoring.guards import GUARDS

    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|tools)/[a-z_/]+\.py)`", text)
    assert len(set(named)) > 15 and all((ROOT / name).is_file() for name in named)
    told = dict(re.findall(r"\| `(guard_\w+)` \| ([0-9.e-]+) \|", text))
    defaults = {f"guard_{guard.name}": getattr(VOPDConfig, f"guard_{guard.name}") for guard in GUARDS}
    assert {name: float(value) for name, value in told.items()} == defaults
    targets = re.findall(r"`make ([a-z-]+)`", text)
    assert set(targets) <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks_run_here(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"<!-- this block is run by tests/test_docs.py -->\n```python\n(.*?)```", text, re.DOTALL)


def test_the_estimators_of_the_page_have_the_baselines_that_they_say() -> None:
    scope: dict[str, Any] = {**vars(vopd.estimators), **vars(vopd.functional)}
    exec(blocks_run_here("how-to/custom-estimators.md")[0], scope)
    student, teacher = torch.randn(2, 6, 9, dtype=torch.float64).log_softmax(-1).unbind()
    ids, rewards = torch.arange(6), teacher - student
    found = vopd.distillation_loss(student, teacher, ids, estimator=scope["HALF"])
    torch.testing.assert_close(found.baseline, 0.5 * (student.exp() * rewards).sum(-1))
    found = vopd.distillation_loss(student, teacher, ids, estimator=scope["MEAN"], top_k=3)
    top = teacher.topk(3).indices
    probs = student.exp().gather(-1, top)
    torch.testing.assert_close(found.baseline, (probs * rewards.gather(-1, top)).sum(-1) / probs.sum(-1))


def test_the_term_of_the_whole_batch_is_the_plain_policy_gradient_beside_the_estimator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, block = blocks_run_here("how-to/custom-estimators.md")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    clipped = find_estimator("custom_estimator:CLIPPED")
    student, teacher = torch.randn(2, 3, 4, 9, dtype=torch.float64).unbind()
    ids, mask = torch.randint(9, (3, 4)), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    student.requires_grad_()
    exec(block, {
        "vopd": vopd, "CLIPPED": clipped, "student_logits": student, "teacher_logits": teacher,
        "completion_ids": ids, "completion_mask": mask,
    })  # fmt: skip
    penalty = -0.01 * torch.tensor([4 - 1.5, 2 - 2.5, 1 - 3.0], dtype=torch.float64)
    logprobs = student.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    plain = vopd.distillation_loss(student, teacher, ids, mask, estimator=clipped).loss
    expected = plain - (penalty[:, None] * logprobs * mask).sum() / mask.sum()
    torch.testing.assert_close(student.grad, torch.autograd.grad(expected, student)[0])


def test_the_page_of_the_equations_has_all_of_them_with_their_shapes() -> None:
    text = (ROOT / "docs" / "reference" / "functional.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### `(\w+)`$", text, re.MULTILINE)) == functional.__all__
    assert 'def gradient_variance(moments: Moments, baseline: Float[Tensor, "*tokens"]) -> ' in text


def test_the_loop_on_the_equations_trains_and_its_centred_advantages_are_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    loop, centred = blocks_run_here("reference/functional.md")
    scope: dict[str, Any] = {}
    exec(loop, scope)
    values = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 4 and values == sorted(values, reverse=True) and values[-1] < values[0] / 2
    exec(centred, scope)
    expected = scope["log_q"] - scope["log_p"] - scope["value"]
    torch.testing.assert_close(scope["advantages"], expected, atol=1e-5, rtol=1e-5)

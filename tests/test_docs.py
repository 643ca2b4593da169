"""The documents: generated parts are fresh, code blocks run, and commands, options, files and links exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
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
from vopd.estimators.advice import ADVICE
from vopd.experiments.pair import embedded_pair
from vopd.models import load_model
from vopd.run.options import Option

ROOT = Path(__file__).parents[1]
# All that is written for users, but for the list of bugs, which tools/mutate.py writes.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for folder in ("docs", "recipes", "examples") for page in (ROOT / folder).rglob("*.md")),
]
PAGES = [page for page in PAGES if page.stem != "bug-catalogue"]
EACH_PAGE = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict, "null": type(None)}


# ---- generated parts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_generated_part_is_fresh(generator: ModuleType) -> None:
    stale = [path.name for path, text in generator.written() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python docs/generate.py"


def test_what_is_generated_is_all_there_is(generator: ModuleType) -> None:
    assert re.findall(r"^\| `(\w+)` \|", generator.estimators(), re.MULTILINE) == list(vopd.ESTIMATORS)
    assert all(estimator.formula for estimator in vopd.ESTIMATORS.values())
    assert re.findall(r"^\| (\d+) ", generator.exit_codes(), re.MULTILINE) == [*"01234567", "130", "143"]
    named = {command: set(generator.all_options(command)) for command in COMMANDS}
    assert {"model", "estimator", "learning_rate", "held_out"} <= named["compare"]
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    for command in COMMANDS:
        if command != "validate":
            assert all(f'id="{command}-{option}"' in page for option in generator.own_options(command)), command


def test_one_answer_to_which_estimator(generator: ModuleType) -> None:
    """The table has what ADVICE says, whose estimators fit what they are advised for."""
    table = generator.which_estimator().splitlines()[2:]
    rows = [re.findall(r"`(\w+)`", line) for line in table]
    assert rows == [[entry.name for entry in (a.estimator, getattr(a, "instead", None)) if entry] for a in ADVICE]
    full, top_k, paper = ADVICE
    assert full.estimator.support == "full" and not full.estimator.samples and full.estimator.unbiased
    assert full.instead is not None and full.instead.samples  # as rewards and importance weights want it
    assert top_k.estimator.need == "top_k" and top_k.estimator.teacher_scores
    assert paper.estimator.name == "vopd"
    assert full.estimator.name == vopd.VOPDConfig(output_dir="x", use_cpu=True).estimator
    assert "(the default)" in table[0] and "(the default)" not in "".join(table[1:])


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
    table = generator.table(options.values(), "train")
    assert '| <a id="train-rate"></a>`rate` | number | `1e-05` | a \\| b c 20% |' in table
    assert '| <a id="train-name"></a>`name` | text | required | which |' in table


# ---- what a page names ------------------------------------------------------------------------------------------


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of every `vopd` command in the bash blocks of a page, however it is started."""
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s|/)vopd ([a-z].*)", re.sub(r"(^|\s)#.*", "", line))
            if found is not None and "pip install" not in line:
                yield shlex.split(re.split(r" (?:&&|\||>|2>|;|&)", found[1])[0])


@EACH_PAGE
def test_every_command_and_option_exists(path: Path, generator: ModuleType) -> None:
    for command, *words in commands_of(path.read_text()):
        assert command in COMMANDS, command
        known = {*generator.all_options(command), "config", "help"}
        given = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
        assert set(given) <= known, f"vopd {command}: {set(given) - known}"
        assert not [word for word in words if re.fullmatch("-[a-z]+", word)], words


def test_commands_of_a_page_are_found() -> None:
    text = "```bash\nvopd train --a 1 \\\n    --b 2  # --c\naccelerate launch -m vopd train --d\n```\nvopd eval --e\n"
    assert list(commands_of(text)) == [["train", "--a", "1", "--b", "2"], ["train", "--d"]]


@EACH_PAGE
def test_every_configuration_on_a_page_has_options_that_exist(path: Path, generator: ModuleType) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
        assert set(yaml.safe_load(block)) <= set(generator.all_options("train")), block


@EACH_PAGE
def test_every_file_link_and_make_target_exists(path: Path) -> None:
    """Anchors and pages outside the navigation are for `make docs`."""
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", text):
        assert (path.parent / target).exists(), target
    folders = "configs|recipes|benchmarks|tests|tools|examples"
    for name in re.findall(rf"\b(?:{folders})/[\w./-]+\.(?:yaml|json|py|sh)\b", text):
        assert (ROOT / name).is_file(), name
    targets = set(re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= known


def test_every_promise_names_tests() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(set(named)) > 15


def test_the_page_of_the_equations_has_all_of_them() -> None:
    text = (ROOT / "docs" / "reference" / "api" / "functional.md").read_text()
    members = [name for line in re.findall(r"members: \[(.*)\]", text) for name in line.split(", ")]
    assert sorted(members) == functional.__all__


# ---- blocks that run --------------------------------------------------------------------------------------------


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


def test_the_loops_of_the_page_run_and_train(capsys: pytest.CaptureFixture[str]) -> None:
    """From logits, from hidden states, from a server's scores, on the equations; and the centred advantages."""
    torch.manual_seed(0)
    scopes: list[dict[str, Any]] = []
    logits, hidden, server, equations, centred, counted = blocks_run_here("how-to/training-loop.md")
    for block in (logits, hidden, server, equations):
        scopes.append({})
        exec(block, scopes[-1])
    for scope in (scopes[0], scopes[2]):
        assert scope["student_logits"].grad.abs().sum() > 0
    printed = capsys.readouterr().out.splitlines()
    values = [float(line.split()[2]) for line in printed if line.startswith("reverse KL")]
    assert len(values) == 2 + 4 and all(value > 0 for value in values)
    trained = values[2:]
    assert trained == sorted(trained, reverse=True) and trained[-1] < trained[0] / 2
    exec(centred, scope := scopes[3])
    expected = scope["log_q"] - scope["log_p"] - scope["value"]
    torch.testing.assert_close(scope["advantages"], expected, atol=1e-5, rtol=1e-5)
    start = load_model(embedded_pair().student).state_dict()
    assert any((start[name] != weight).any() for name, weight in scopes[1]["student"].state_dict().items())
    check_normalizer(counted)


def check_normalizer(block: str) -> None:
    """Micro-batches of unequal length give the gradient of one call with all their tokens."""
    student, teacher = torch.nn.Linear(6, 9).double(), torch.nn.Linear(6, 9).double().requires_grad_(False)
    states, ids = torch.randn(4, 5, 6, dtype=torch.float64), torch.randint(9, (4, 5))
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [2]])
    whole = vopd.distillation_loss(student(states), teacher(states), ids, mask).loss
    expected = torch.autograd.grad(whole, student.weight)[0]
    scope = {
        "torch": torch, "vopd": vopd, "forward": lambda inputs: (student(inputs), teacher(inputs)),
        "micro_batches": [(states[:2], ids[:2], mask[:2]), (states[2:], ids[2:], mask[2:])],
        "optimizer": (optimizer := torch.optim.SGD(student.parameters(), lr=1.0)),
    }  # fmt: skip
    before = student.weight.detach().clone()
    exec(block, scope)
    torch.testing.assert_close(before - student.weight, expected)
    assert optimizer.param_groups[0]["params"][0].grad is None


def test_the_losses_for_verl_are_those_of_the_package() -> None:
    (block,) = blocks_run_here("how-to/verl.md")
    torch.manual_seed(0)
    exec(block, scope := {})
    scores = vopd.TopKScores(*scope["scores"])

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, scope["student_logits"])[0]

    def of_the_package(estimator: str) -> torch.Tensor:
        given = scope["student_logits"], None, scope["next_ids"]
        return gradient(vopd.distillation_loss(*given, estimator=estimator, top_k=20, teacher_scores=scores).loss)

    summed = scope["student_logits"].grad
    torch.testing.assert_close(summed, of_the_package("rao_blackwell_teacher_top_k"), atol=1e-6, rtol=1e-4)
    log_p = scope["student_logits"].log_softmax(-1).gather(-1, scope["next_ids"].unsqueeze(-1)).squeeze(-1)
    plain = gradient(-(scope["advantages"] * log_p).mean())
    torch.testing.assert_close(plain, of_the_package("vopd_teacher_top_k_optimal"), atol=1e-6, rtol=1e-4)


def test_every_block_that_says_it_is_run_here_is_run() -> None:
    """Each page with such blocks has a test above that unpacks them all."""
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if blocks_run_here(page)} == {
        "how-to/custom-estimators.md", "how-to/training-loop.md", "how-to/verl.md",
    }  # fmt: skip

"""What a checkpoint was trained with is compared with what is asked for: refused, told, or free."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cases import RUN, Case, Place
from messages import says, told
from vopd import VOPDConfig, cli
from vopd.errors import ConfigurationError, Faults
from vopd.estimators.policy_gradient import OPD
from vopd.run.facts import gather_facts
from vopd.run.plan import TrainOptions, read_plan
from vopd.run.train import check_resume
from vopd.training.saving import contract
from vopd.training.saving.contents import contents_of_model
from vopd.user_code import source_digest

MORE = "RUN --save_steps 1 --resume --max_steps 3"  # a step more than the run that is there
SAME = "train --config {out}/r/resolved_config.yaml"
REFUSED = "cannot resume from ... checkpoint-2 ... another --run_name"
_KEPT: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Any:
    yield
    _KEPT.clear()


def trained(place: Place, more: str = "--save_steps 1") -> Path:
    """A finished run of two steps, trained once and copied for every case."""
    if more not in _KEPT:
        assert place.call(f"RUN {more}") == 0
        _KEPT[more] = place.work / "kept"
        shutil.copytree(place.out, _KEPT[more])
    else:
        shutil.copytree(_KEPT[more], place.out)
        settings = place.out / "r" / "resolved_config.yaml"
        settings.write_text(settings.read_text().replace(str(_KEPT[more].parents[1]), str(place.out.parent)))
    return place.out / "r"


def other_rows(place: Place) -> None:
    """Other prompts under the same name."""
    trained(place)
    place.prompts.write_text(place.prompts.read_text().replace("30", "31"))


def moved(place: Place) -> None:
    """The same prompts in another place."""
    trained(place)
    place.prompts.rename(place.work / "moved.jsonl")


def only_models(place: Place) -> None:
    trained(place, "--save_steps 1 --save_only_model true")


def no_checkpoint(place: Place) -> None:
    trained(place, '--save_strategy "no"')


def written_before(place: Place) -> None:
    """As a version without this contract left it."""
    edit_manifest(trained(place), lambda manifest: [manifest.pop(name) for name in ("settings", "changes")])


def without_a_field(place: Place) -> None:
    edit_manifest(trained(place), lambda manifest: manifest["settings"].pop("temperature"))


def cooler(place: Place) -> None:
    edit_manifest(trained(place), lambda manifest: manifest["settings"].update(temperature=0.7))


def followed(place: Place) -> None:
    """As a run in Python leaves it, which can evaluate."""
    edit_manifest(
        trained(place), lambda manifest: manifest["settings"].update(lr_scheduler_type="reduce_lr_on_plateau")
    )


def of_another_launcher(place: Place) -> None:
    """Which is known only once the models are loaded."""
    edit_manifest(trained(place), lambda manifest: manifest["origin"].update(launcher="DeepSpeed ZeRO-2"))


def edit_manifest(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    for path in run.glob("checkpoint-*/manifest.json"):
        manifest = json.loads(path.read_text())
        edit(manifest)
        path.write_text(json.dumps(manifest))


def refused(more: str, says: str, before: Callable[[Place], object] = trained, run: str = MORE) -> Case:
    """Refused with every byte of the run as it was."""
    return Case(f"{run} {more}", 2, f"{REFUSED} ... {says}", before=before, lacks=("resuming",))


def goes_on(more: str, says: str, before: Callable[[Place], object] = trained, code: int = 0) -> Case:
    return Case(f"{MORE} {more}", code, says, leaves=("r/checkpoint-3/", "r/model/"), before=before)


CASES = [
    # The objective and the data.
    refused("", "dataset ... 4 prompts ... sha256", before=other_rows),
    refused("--max_prompts 4 --prompt_template {prompt}?", "dataset ... prompt_template null -> {prompt}?"),
    refused("--estimator opd", "estimator full_rkl -> opd"),
    refused(
        "--estimator vopd_top_k --loss_top_k 3 --seed 1", "seed 42 -> 1; estimator full_rkl -> vopd_top_k; loss_top_k"
    ),
    refused("--temperature 0.9", "temperature 1.0 -> 0.9"),
    refused("--teacher_model {S}", "teacher_model ... sha256 ... -> ... sha256"),
    refused("--teacher_model self:frozen --teacher_prompt_template {prompt}!", "teacher_model ... self:frozen"),
    refused("--model {T}", "model ... sha256"),
    refused("--lora_rank 4", "lora_rank 0 -> 4"),
    refused("--max_completion_length 4", "max_completion_length 8 -> 4"),
    refused("--optim sgd", "optim adamw_torch_fused -> sgd"),
    refused("--seed 1", "seed 42 -> 1", run=MORE + " --dry_run"),
    refused("--seed 1", "seed 42 -> 1", run=MORE.replace("RUN", RUN.replace("train", "validate", 1))),
    Case(
        f"{MORE} --learning_rate 2e-6", 2,
        "cannot resume ... follows a metric: learning_rate ... lr_scheduler_type reduce_lr_on_plateau -> linear",
        before=followed,
    ),
    Case(f"{MORE} --temperature 0.7 --learning_rate -1", 2, "learning_rate ... -1", before=cooler),
    # The course of the same training.
    goes_on("", "resuming from ... with max_steps 2 -> 3; from step 3 the learning rate ... a run of 3 steps"),
    goes_on("--learning_rate 2e-6", "resuming ... learning_rate 1e-06 -> 2e-06; from step 3"),
    goes_on("--per_device_train_batch_size 2", "resuming ... per_device_train_batch_size 4 -> 2"),
    goes_on("--logging_steps 2 --guard_length none", "resuming from ... with max_steps 2 -> 3; from"),
    goes_on("--dataset {work}/moved.jsonl", "trained 3 steps", before=moved),
    # A finished run.
    Case("RUN --resume", 0, "already finished, 2 steps ... max_steps", leaves=("r/model/",), before=trained),
    refused("--learning_rate 2e-6", "learning_rate 1e-06 -> 2e-06; raise max_steps", run="RUN --resume"),
    refused("", "2 steps are more than the 1", run="RUN --resume --max_steps 1"),
    Case("RUN --resume", 2, "finished ... no checkpoint ... another --run_name", before=no_checkpoint),
    # A checkpoint that lacks something.
    refused("", "no optimizer and no random states (save_only_model)", before=only_models),
    goes_on("--seed 1", "checkpoint-2 ... does not record what it was trained with: not compared", written_before),
    goes_on("", "checkpoint-2 ... does not record temperature: not compared", without_a_field),
    Case(f"{MORE} --logging_steps 2", 2, "cannot resume ... DeepSpeed ZeRO-2 again", before=of_another_launcher),
    # Its settings as a file.
    # With a wrong option no word on resuming: options that were left out because of it have not changed.
    Case(
        f"{MORE} --estimator opd --loss_top_k 4", 2, "loss_top_k ... 'opd'", lacks=("cannot resume",),
        before=lambda place: trained(place, "--save_steps 1 --estimator opd"),
    ),
    Case(SAME, 2, "not empty ... --run_name ... r-2 ... --resume", before=trained),
    Case(f"{SAME} --run_name r-2", 0, "trained 2", leaves=("r-2/model/",), before=trained),
    Case(f"{SAME} --resume", 0, "already finished", leaves=("r/model/",), before=trained),
]  # fmt: skip


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.command[-50:]}, {getattr(case.before, '__name__', '')}"
)
def test_resume(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case.check(place, capfd.readouterr)


@pytest.mark.parametrize("kind", [VOPDConfig, TrainOptions])
def test_every_setting_is_sorted(kind: Any) -> None:
    """A new one has to be written into the table."""
    assert not {field.name for field in dataclasses.fields(kind)} - contract.RULES.keys()
    names = [name for names in contract._SORTED.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_a_longer_run_has_the_learning_rates_of_the_longer_run(place: Place) -> None:
    assert place.call("RUN --max_steps 2 --save_steps 2 --warmup_steps 1") == 0
    assert place.call("RUN --max_steps 4 --resume --warmup_steps 1") == 0
    assert place.call("RUN --max_steps 4 --run_name whole --warmup_steps 1") == 0
    rates, whole = (column(place.out / name / "metrics.jsonl", "learning_rate") for name in ("r", "whole"))
    assert rates[2:] == whole[2:] and len(set(whole)) == 4
    settings = (place.out / "r" / "resolved_config.yaml").read_text()
    assert "max_steps: 4  # command line, 2 up to step 2\n" in settings
    assert "| changed on resuming | max_steps: 2 up to step 2 |" in (place.out / "r/model/README.md").read_text()


def test_optimizer_settings_that_are_told_take_effect(place: Place) -> None:
    run = trained(place)
    given = "--weight_decay 0.5 --learning_rate 0.25 --adam_beta2 0.5 --lr_scheduler_type constant"
    assert place.call(f"{MORE} {given}") == 0
    (group,) = {
        (group["lr"], group["initial_lr"], group["betas"])
        for group in torch.load(run / "checkpoint-3" / "optimizer.pt", weights_only=True)["param_groups"]
    }
    assert group == (0.25, 0.25, (0.9, 0.5)) and column(run / "metrics.jsonl", "learning_rate")[-1] == 0.25
    decays = torch.load(run / "checkpoint-3" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in decays} == {0.5, 0}


def test_the_first_step_after_a_resume_is_taken_at_the_rate_of_the_longer_run(make: Callable[..., Any]) -> None:
    """Where the shorter run had come down to 0."""
    from transformers import TrainerCallback

    rates = []

    class Probe(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append({group["lr"] for group in kwargs["optimizer"].param_groups})

    make(learning_rate=0.5).train()
    trainer = make(learning_rate=0.5, max_steps=2)
    trainer.add_callback(Probe())
    trainer.train(resume_from_checkpoint=True)
    assert rates == [{0.25}]


def column(path: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("given", [["--resume"], ["--resume", "true"], []])
def test_the_command_that_resumes_is_the_one_that_was_typed(given: list[str]) -> None:
    typed = ["--model", "s s", "--teacher_model", "t", "--dataset", "p.jsonl", *given]
    more = [] if given else ["--resume"]
    assert read_plan("train", "", typed, Faults()).resumption == shlex.join(["vopd", "train", *typed, *more])


def test_generated_prompts_are_compared_by_how_they_are_made(place: Place) -> None:
    """Some tasks make others in every process."""
    given = f"--model {place.student} --teacher_model {place.teacher} --dataset {place.prompts}"
    plan = read_plan(
        "train", "", [*given.split(), "--max_completion_length", "8", "--per_device_train_batch_size", "4"], Faults()
    )
    facts = gather_facts(plan)
    assert facts.prompts is not None
    other = facts.prompts.dataset.select(range(3, -1, -1))
    contents = []
    for source in (facts.prompts.sources[0]["source"], "reasoning_gym:knight_swap"):
        for rows in (facts.prompts.dataset, other):
            prompts = dataclasses.replace(facts.prompts, dataset=rows, sources=[{"source": source, "prompts": 4}])
            contents.append(check_resume(plan, dataclasses.replace(facts, prompts=prompts))["dataset"]["content"])
    assert contents[0] != contents[1] and contents[2] == contents[3]


def test_origins_are_kept_when_a_run_takes_its_own_settings(place: Place) -> None:
    run = trained(place)
    settings = run / "resolved_config.yaml"
    before = settings.read_text()
    assert place.call(f"{SAME} --resume") == 0
    origins, now = (dict(line.split(": ", 1) for line in text.splitlines()) for text in (before, settings.read_text()))
    assert {name: line.partition("  # ")[2] for name, line in now.items()} == {
        name: line.partition("  # ")[2] for name, line in origins.items()
    }


def test_the_start_is_not_measured_again(place: Place) -> None:
    place.prompts.write_text(place.prompts.read_text().replace('"prompt"', '"problem"'))
    problems = f"--eval_data {place.prompts} --save_steps 1"
    assert place.call(f"RUN {problems}") == 0
    (drawn,) = (place.out / "r/evaluation/start/completions").iterdir()
    before = drawn.stat().st_mtime_ns
    assert place.call(f"RUN {problems} --resume --max_steps 3") == 0
    assert drawn.stat().st_mtime_ns == before
    assert place.call(f"RUN {problems} --resume --max_steps 3 --eval_max_new_tokens 3") == 0
    assert drawn.stat().st_mtime_ns > before


def estimator(edited: bool) -> Any:
    """An estimator of one's own, before or after its function was edited."""

    def first(rows: Any) -> Any:
        return OPD.estimate(rows)

    def second(rows: Any) -> Any:
        return OPD.estimate(rows)  # a comment is no edit

    def third(rows: Any) -> Any:
        return dataclasses.replace(OPD.estimate(rows), loss=OPD.estimate(rows).loss * 2)

    second.__qualname__ = first.__qualname__
    return dataclasses.replace(OPD, name="mine", estimate=third if edited else first)


def test_python_refuses_the_same(place: Place, make: Callable[..., Any]) -> None:
    """By an object without a path, by an edited estimator, and by its data."""
    make(estimator=estimator(False)).train()
    cannot = f"cannot resume from {place.out / 'run' / 'checkpoint-1'}"
    asked: list[tuple[dict[str, Any], str]] = [
        ({"estimator": estimator(True)}, "estimator mine (source ... -> mine (source"),
        ({"prompts": ["1+1=", "2+2="]}, "dataset train_dataset, 2 prompts (sha256"),
        ({"teacher_model": str(place.student)}, "teacher_model ... sha256"),
        ({"top_k": 0, "loss_normalizer": 3.0}, "loss_normalizer null -> 3.0"),
    ]
    for given, why in asked:
        with pytest.raises(ConfigurationError, match=says(f"{cannot} ... {why} ... another output_dir")):
            make(**{"estimator": estimator(False), **given}, max_steps=2).train(resume_from_checkpoint=True)
    trainer = make(estimator=estimator(False), max_steps=2, learning_rate=1e-3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2 and [change.name for change in trainer.checkpoints.changes] == [
        "max_steps",
        "learning_rate",
    ]


@pytest.mark.parametrize("name", ["run/model", "run", "nothing", "run/checkpoint-9", "True"])
def test_only_a_checkpoint_is_resumed_from(name: str, place: Place, make: Callable[..., Any]) -> None:
    trainer = make()
    trainer.save_model(str(place.out / "run" / "model"))
    message = says(f"cannot resume from {place.out / name}: there is no checkpoint ... checkpoint-STEP ... as model")
    with pytest.raises(ConfigurationError, match=message):
        trainer.train(resume_from_checkpoint=place.out / name)


def test_a_tied_head_is_not_told_to_be_missing(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("transformers.trainer.logger.warning", lambda text, *rest: told.append(text))
    make().train()
    make(max_steps=2).train(resume_from_checkpoint=True)
    assert not [text for text in told if "missing" in text]


@pytest.fixture
def make(place: Place) -> Callable[..., Any]:
    """A trainer on the place's models."""
    from datasets import Dataset

    from vopd import VOPDTrainer

    def made(prompts: Any = ("3+4=", "5+6="), teacher_model: Any = None, **config: Any) -> Any:
        usual = {"output_dir": str(place.out / "run"), "per_device_train_batch_size": 2, "max_completion_length": 4}
        usual |= {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "use_cpu": True}
        dataset = Dataset.from_dict({"prompt": list(prompts)})
        teacher = teacher_model or str(place.teacher)
        return VOPDTrainer(str(place.student), teacher, args=VOPDConfig(**{**usual, **config}), train_dataset=dataset)

    return made


def test_code_counts_with_what_it_calls_and_without_its_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "SCALE = 2\ndef used(x):\n    return x * SCALE\n"
    text += "def unused(x):\n    return x\ndef mine(x):\n    return used(x)\n"
    found = []
    for number, edit in enumerate(
        ["", "SCALE = 2|SCALE = 3", "x * |x + ", "return used|# so\n    return  used", "return x\n|1\n"]
    ):
        (tmp_path / f"code{number}.py").write_text(text.replace(*edit.split("|")) if edit else text)
        monkeypatch.syspath_prepend(str(tmp_path))
        found.append(source_digest(__import__(f"code{number}").mine))
    same, scaled, changed, layout, elsewhere = found

    def bound(scale: object) -> Any:
        return lambda x: x * scale  # type: ignore[operator]

    given = [partial(bound, 2), partial(bound, 3), partial(bound, scale=3), bound(2), bound(3)]
    assert len({source_digest(one) for one in given}) == len(given)
    objects = [
        source_digest(make(value)) for make in (bound, partial(partial, bound)) for value in (object(), (bound,))
    ]
    assert objects[0] == objects[1] and objects[2] == objects[3]  # addresses differ from process to process
    assert same == layout == elsewhere and len({same, scaled, changed}) == 3
    assert source_digest(OPD.estimate) is None


def test_weights_count_wherever_they_are_and_whatever_they_are_called(place: Place, tmp_path: Path) -> None:
    folder = shutil.copytree(place.teacher, tmp_path / "copy")
    assert contents_of_model(folder)["content"] == contents_of_model(str(place.teacher))["content"]
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name or "layers.0" in name)  # as a merged adapter leaves it
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    assert contents_of_model(folder)["content"] != contents_of_model(str(place.teacher))["content"]
    made = [torch.nn.Linear(2, 2) for _ in range(2)]
    assert contents_of_model(made[0]) == contents_of_model(made[0]) != contents_of_model(made[1])


def test_ctrl_c_of_a_real_process_prints_the_command_that_goes_on(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [
        "train", "--model", str(place.student), "--teacher_model", str(place.teacher), "--dataset", str(place.prompts),
        "--output_dir", str(place.out), "--run_name", "r", "--use_cpu", "true", "--per_device_train_batch_size", "4",
        "--max_completion_length", "8", "--max_steps", "100000",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "vopd", *given], stderr=subprocess.PIPE, text=True)
    metrics = place.out / "r" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert told("Ctrl-C: finishing this step ... again ends it at once", error)
    command = shlex.split(error.splitlines()[-1].partition("to go on: ")[2])
    assert command == ["vopd", *given, "--resume"]
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert cli.main([*command[1:], "--max_steps", str(step + 1)]) == 0
    assert told(f"resuming from ... checkpoint-{step}", "\n".join(capfd.readouterr()))

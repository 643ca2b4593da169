"""All that is known without weights is told at once, and a refused command leaves nothing on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from cases import RUN, Case, Place
from messages import says, told
from training.two_processes import SOURCES, free_port
from vopd import VOPDConfig, VOPDTrainer
from vopd.errors import DataError, Faults, MismatchError

VALIDATE = RUN.replace("train", "validate", 1)
PAIR = "--model {S} --teacher_model {T} --output_dir {out}"


def swapped(place: Place) -> None:
    """A teacher whose tokenizer exchanges two ids."""
    shutil.copytree(place.teacher, place.work / "swapped")
    path = place.work / "swapped" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(tokenizer))


def few_rows(place: Place) -> None:
    """A teacher with fewer rows than its tokenizer has ids."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place.teacher)
    model.resize_token_embeddings(299)
    model.save_pretrained(place.work / "few")
    for path in place.teacher.glob("tokenizer*"):
        shutil.copy(path, place.work / "few")


def written(name: str, content: str | bytes) -> Callable[[Place], object]:
    """A file in the other folder."""
    return lambda place: (place.work / name).write_bytes(content.encode() if isinstance(content, str) else content)


def used(place: Place) -> None:
    """Something in the run's folder."""
    (place.out / "r").mkdir(parents=True)
    (place.out / "r" / "notes.txt").write_text("mine")


def file_for(name: str) -> Callable[[Place], object]:
    """A file where a folder should be."""

    def write(place: Place) -> None:
        path = place.out / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("a file")

    return write


FEW = "4 prompts ... 8"
SERVER = "teachers '{default: \"http://127.0.0.1:9\"}'"
NO_FILE = "no file 'gone.jsonl'"
NO_MODEL = "no model folder './gone'"

CASES = [
    # options
    Case("RUN --lerning_rate 1 --temperature 0", 2, "'lerning_rate' ... 'learning_rate'", also=("temperature ... 0",)),
    Case(
        "RUN --lerning_rate 1 --modl x --warmup_steps many --max_steps 2.5",
        2,
        "'lerning_rate'",
        also=("'modl' ... 'model'", "warmup_steps ... 'many'", "max_steps ... whole number"),
    ),
    Case(
        "RUN --num_generations 0 --guard_window 0 --loss_backend cuda --show_samples 9",
        2,
        "num_generations ... 1",
        also=("guard_window ... 1", "loss_backend ... 'cuda'", "show_samples ... 9"),
    ),
    Case("RUN --dtype half --lora_rank -1 --beta 1", 2, "dtype 'half'",
         also=("lora_rank ... -1", "beta ... estimator")),
    Case("train --output_dir {out}", 2, "--model ... --dataset", lacks=("teacher_model is missing",)),
    Case("RUN --output_dir . --run_name .", 2, "run name '.' ... letters"),
    # those that are left out because another one is wrong are not missed
    Case("RUN --teacher_model self:base --teacher_prompt_column answer --lora_rank 4 --dtype half", 2, "dtype 'half'"),
    Case("RUN --push_to_hub true --hub_model_id me/mine --learning_rate -1", 2, "learning_rate ... -1"),
    Case(f"{RUN.replace('teacher_model {T}', SERVER)} --estimator opd --learning_rate -1", 2, "learning_rate ... -1"),
    # options, places, prompts, models
    Case("RUN --dataset gone.jsonl --model ./gone --lerning_rate 1", 4, NO_MODEL, also=(NO_FILE, "'lerning_rate'")),
    Case("RUN --model ./gone --per_device_train_batch_size 8", 4, NO_MODEL, also=(FEW,)),
    Case("RUN --temperature 0 --per_device_train_batch_size 8", 2, "temperature ... 0", also=(FEW,)),
    Case(
        "RUN --per_device_train_batch_size 8 --max_completion_length 510 --report_to wandbd",
        2,
        "'wandbd'",
        also=(FEW, "p.jsonl ... 512 positions ... max_completion_length=510"),
    ),
    Case(
        "RUN --teacher_model {work}/swapped --per_device_train_batch_size 8",
        4,
        "student ... teacher ... different vocabularies",
        before=swapped,
        also=(FEW,),
    ),
    Case(
        "RUN --per_device_train_batch_size 16 --reward_funcs math --num_generations 2 --reward_column result",
        3,
        FEW,
        also=("'result' ... reward_column",),
    ),
    Case("RUN --dataset {work}/blank.jsonl --lora_rank 4 --lora_target_modules no_such", 2, "'no_such'",
         before=written("blank.jsonl", '{"prompt": " "}\n'), also=("every prompt ... blank.jsonl ... empty",)),
    Case(f"{VALIDATE} --model ./gone --eval_data gone.jsonl --eval_benchmarks reasoning_gym:no_such", 4, NO_MODEL,
         also=(NO_FILE, "no_such")),
    Case("RUN --dry-run --teacher_model ./gone --per_device_train_batch_size 8", 4, NO_MODEL, also=(FEW,)),
    Case(f"{VALIDATE} --max_prompts 0 --guard_window 0 --lora_rank -1", 2, "lora_rank ... 0",
         also=("guard_window ... 1", "count ... 1")),
    # the other commands
    Case(
        "variance --model ./gone --teacher_model {T} --dataset gone.jsonl --contexts 1 --output_dir {out}",
        4,
        NO_MODEL,
        also=(NO_FILE, "contexts ... 2"),
    ),
    Case(f"variance {PAIR} --dataset {{work}}/one.jsonl", 3, "1 prompt ... 2",
         before=written("one.jsonl", '{"prompt": "a"}')),
    Case(
        "compare --model {S} --teacher_model ./gone --dataset gone.jsonl --held_out {work}/h.jsonl --output_dir {out}",
        4,
        NO_MODEL,
        also=(NO_FILE, "no file ... h.jsonl"),
    ),
    Case(
        f"compare {PAIR} --dataset {{p}} --held_out {{work}}/h.jsonl --max_completion_length 8",
        3,
        "line 1 ... h.jsonl ... 'answer'",
        before=written("h.jsonl", '{"prompt": "a"}'),
        also=(FEW,),
    ),
    Case("compare --output_dir {out} --temperature 0 --max_steps 4", 2, "temperature ... 0"),
    Case("compare --output_dir {out} --jobs 0 --problems 0 --lerning_rate 1", 2, "'lerning_rate'",
         also=("jobs ... 1", "problems ... 1")),
    Case("demo --output_dir {out} --steps 1 --seeds 0", 2, "seeds ... 1", also=("steps ... 5",)),
    Case("eval --model {S},./gone --data gone.jsonl --output_dir {out}", 4, NO_MODEL, also=(NO_FILE,)),
    Case("eval --model {S} --data {p} --output_dir {p} --against {work}", 2, "cannot write ... p.jsonl",
         also=("results.json",)),
    Case("eval --model {S} --data {p} --output_dir {out} --max_new_tokens 5000", 3, "5,000 ... 512 positions"),
    Case("merge --model {S} --output {p}", 2, "is a file ... --output", also=("whole model",)),
    Case("report {work}/gone", 3, "no folder ... gone"),
    Case("report {work}", 3, "metrics.jsonl ... vopd train"),
    Case("report {p}", 3, "no folder ... p.jsonl"),
    Case("doctor --output_dir {p}", 0, "cannot write ... p.jsonl"),
    # the folder of the run
    Case("RUN", 2, "r ... not empty ... --run_name ... --resume", before=used),
    Case("RUN --per_device_train_batch_size 8", 2, "r ... not empty", before=used, also=(FEW,)),
    Case("RUN --dry-run", 0, "note ... r ... not empty", before=used),
    Case("compare --output_dir {out} --run_name r --estimator opd", 2, "r ... not empty ... --run_name",
         before=used, lacks=("--resume",)),
    Case("RUN --run_name 'a b'", 2, "'a b' ... letters", before=used),
    Case("RUN", 2, "cannot write ... Not a directory ... output_dir", before=file_for("r")),
    Case("RUN", 2, "cannot write ... Not a directory ... output_dir", before=file_for("")),
    Case(
        "variance --model {S} --teacher_model {work}/few --dataset {p} --output_dir {out} --device cpu", 4,
        "teacher's output head has 299 rows ... tokenizer has 300 ids", before=few_rows,
    ),
    # the configuration file
    Case("train --config gone.yaml", 2, "cannot read ... 'gone.yaml'"),
    Case("train --config {work}", 2, "cannot read ... Is a directory"),
    Case("train --config", 2, "--config"),
    Case("validate --config {work}/c.yaml", 2, "c.yaml ... line 2 ... YAML",
         before=written("c.yaml", "model: a\n\tdtype: b\n")),
    Case("validate --config {work}/c.yaml", 2, "c.yaml ... key: value", before=written("c.yaml", "- model\n- b\n")),
    Case("validate --config {work}/c.yaml", 2, "c.yaml ... YAML", before=written("c.yaml", bytes(range(256)))),
    Case("validate --config {work}/c.yaml", 2, "--model ... --dataset", before=written("c.yaml", "")),
    Case("validate --config {work}/c.yaml", 2, "c.yaml ... 'modle' ... 'model'",
         before=written("c.yaml", "modle: a\nseed: b\n"), also=("c.yaml ... seed ... whole number",)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command.replace("RUN", "train")[:70])
def test_early(case: Case, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    case.check(place, capfd.readouterr)


def test_faults_are_one_error_of_the_first_kind() -> None:
    faults = Faults()
    with faults:
        faults.tell()  # nothing
        raise DataError("first")
    for error in (MismatchError("second"), DataError("first")):
        with faults:
            raise error
    assert faults.check(lambda: 3) == 3
    with pytest.raises(DataError) as caught:
        faults.tell()
    assert str(caught.value) == "first\nsecond" and caught.value.exit_code == DataError.exit_code
    again = Faults()
    again.add(caught.value)
    assert [str(fault) for fault in again.found] == ["first", "second"]
    with pytest.raises(ZeroDivisionError), faults:
        raise ZeroDivisionError


def test_places_are_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    script = """
import sys
from vopd import cli
def tell(error):
    sys.exit(f"{error} {sorted({'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys())}")
cli.tell = tell
cli.main(sys.argv[1:])
"""
    line = ["train", "--model", "./gone", "--teacher_model", "t", "--dataset", "p.jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", script, *line], env={"PYTHONPATH": str(SOURCES)}, cwd=tmp_path, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert told("no model folder './gone' []", done.stderr), done.stderr


def test_an_engine_for_gpus_is_refused_for_a_run_on_a_cpu(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    command = f"{VALIDATE} --loss_backend triton"
    Case(command, 2, "triton ... CUDA ... cpu").check(place, capfd.readouterr)


class TestFailedRuns:
    """A run that fails leaves its folder only if there is something of value in it."""

    def test_before_the_first_step_and_then_again(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("vopd.training.VOPDTrainer.compute_loss", _boom)
        with pytest.raises(RuntimeError, match="boom"):
            place.call("RUN --report_to none")
        assert place.files() == set() and not place.out.exists()
        monkeypatch.undo()
        Case("RUN --max_steps 1", 0, "trained 1 step", leaves=("r/model/",)).check(place, capfd.readouterr)

    def test_after_a_step(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        step = VOPDTrainer.training_step
        monkeypatch.setattr(VOPDTrainer, "training_step", lambda trainer, *given: _second(trainer, step, *given))
        with pytest.raises(RuntimeError, match="boom"):
            place.call("RUN")
        assert {"r/metrics.jsonl", "r/resolved_config.yaml"} <= place.files()

    @pytest.mark.parametrize(
        ("command", "fails"),
        [
            (f"variance {PAIR} --dataset {{p}}", "vopd.experiments.measure.load_model"),
            ("compare --output_dir {out} --max_steps 4 --problems 5", "vopd.experiments.compare.run_grid"),
            ("demo --output_dir {out} --steps 5 --problems 5", "vopd.experiments.compare.run_grid"),
        ],
    )
    def test_other_commands(
        self, command: str, fails: str, place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*given: object, **more: object) -> None:
            raise MismatchError("boom")

        monkeypatch.setattr(fails, fail)
        Case(command, 4, "boom").check(place, capfd.readouterr)
        assert not place.out.exists()

    @pytest.mark.parametrize("name", ["load_model", "VOPDTrainer"])
    def test_ctrl_c_while_a_run_is_set_up(
        self, name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def interrupt(*given: object, **more: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(f"vopd.run.train.{name}", interrupt)
        Case("RUN", 130, "vopd: interrupted").check(place, capfd.readouterr)
        assert not place.out.exists()


def _boom(*given: object, **more: object) -> None:
    raise RuntimeError("boom")


def _second(trainer: VOPDTrainer, step: Callable[..., object], *given: object) -> object:
    if trainer.state.global_step:
        raise RuntimeError("boom")
    return step(trainer, *given)


def test_a_trainer_that_is_refused_tells_all_and_leaves_no_folder(place: Place) -> None:
    def make(prompts: list[object], **more: object) -> None:
        config = VOPDConfig(output_dir=str(place.out), use_cpu=True, max_completion_length=4)
        given = {"model": str(place.student), "teacher_model": str(place.teacher), **more}
        VOPDTrainer(args=config, train_dataset=Dataset.from_dict({"prompt": prompts}), **given)

    with pytest.raises(MismatchError, match=says(NO_MODEL)) as caught:
        make([""], teacher_model="./gone")
    assert told("row 0 ... empty", str(caught.value))
    with pytest.raises(DataError, match=says("1 prompt ... 8")):
        make(["a"])
    with pytest.raises(MismatchError, match=says("chat messages ... no chat template ... texts")):
        make([[{"role": "user", "content": "a"}]])
    assert not place.out.exists()


@pytest.mark.slow
def test_processes_agree_that_a_folder_is_in_use(place: Place) -> None:
    """Two real ones: only the first looks, and the other must not wait for it."""
    used(place)
    names = {"S": place.student, "T": place.teacher, "p": place.prompts, "out": place.out}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = subprocess.run(
        [*launcher, "-m", "vopd", *RUN.format(**names).split()],
        env=os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode != 0 and place.files() == {"r/", "r/notes.txt"}
    assert done.stderr.count("is not empty; choose another --run_name") == 2, done.stderr

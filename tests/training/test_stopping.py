"""Ctrl-C, SIGTERM and guards end a run after the step that is under way, with a checkpoint that continues it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from messages import says, told
from vopd.errors import GuardError, Interrupted, Terminated, VOPDError
from vopd.experiments.measure import checkpoints_of
from vopd.training.monitoring.stopping import Stopping
from vopd.training.saving.checkpoints import newest_valid

Make = Callable[..., Any]


def callback_at(step: int, action: Callable[[], None]) -> Any:
    from transformers import TrainerCallback

    class At(TrainerCallback):
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == step:  # in the middle of it
                action()

    return At()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_sigterm_finishes_the_step_saves_and_ends_with_143(strategy: str, make_trainer: Make, tmp_path: Path) -> None:
    settings = {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "max_steps": -1, "save_strategy": strategy}
    settings |= {"eval_strategy": "epoch"} if strategy == "epoch" else {}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **settings, **evaluated(strategy))
    whole.train()
    trainer = make_trainer(**settings, **evaluated(strategy))
    trainer.add_callback(callback_at(3, terminate))
    with pytest.raises(Terminated, match=says("SIGTERM ... step 3 of 8 ... resume_from_checkpoint")) as ended:
        trainer.train()
    assert ended.value.exit_code == ended.value.code == 143
    assert newest_valid(tmp_path / "run").path == tmp_path / "run" / "checkpoint-3"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = make_trainer(**settings, **evaluated(strategy))
    resumed.train(resume_from_checkpoint=True)
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in resumed.model.state_dict().items())
    logs = [(tmp_path / name / "metrics.jsonl").read_text().count('"eval_loss"') for name in ("whole", "run")]
    assert logs[0] == logs[1] == (2 if strategy == "epoch" else 0)


def evaluated(strategy: str) -> dict[str, Any]:
    """With evaluation, which draws samples too, at the end of each epoch."""
    from datasets import Dataset

    return {"trainer": {"eval_dataset": Dataset.from_dict({"prompt": ["x", "y"]})}} if strategy == "epoch" else {}


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_saves_what_goes_on(make_trainer: Make, tmp_path: Path) -> None:
    """Also if the run saves only the model."""
    trainer = make_trainer(max_steps=3, gradient_accumulation_steps=2, save_only_model=True, save_strategy="steps")
    trainer.add_callback(callback_at(2, lambda: (interrupt(), terminate())))  # a launcher may send another one
    with pytest.raises(Interrupted, match=says("Ctrl-C at step 2 of 3 ... resume_from_checkpoint")) as ended:
        trainer.train()
    assert ended.value.exit_code == 130 and isinstance(ended.value, KeyboardInterrupt)
    assert newest_valid(tmp_path / "run").path == tmp_path / "run" / "checkpoint-2"
    assert checkpoints_of(tmp_path / "run") == []  # no planned point of a curve
    make_trainer(max_steps=3, gradient_accumulation_steps=2).train(resume_from_checkpoint=True)
    saving = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    planned = make_trainer(output_dir=str(tmp_path / "on"), **saving)
    planned.add_callback(callback_at(1, interrupt))
    with pytest.raises(Interrupted):
        planned.train()
    assert [step for step, _ in checkpoints_of(tmp_path / "on")] == [1]


def test_a_second_ctrl_c_ends_at_once(make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(max_steps=3, gradient_accumulation_steps=2)
    trainer.add_callback(callback_at(1, lambda: (interrupt(), interrupt())))
    with pytest.raises(KeyboardInterrupt) as ended:
        trainer.train()
    assert not isinstance(ended.value, VOPDError) and trainer.state.global_step == 0
    assert told("without saving; to resume ... resume_from_checkpoint=True", caplog.text)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_the_echo_of_a_launcher_is_no_second_ctrl_c() -> None:
    stopping = Stopping(SimpleNamespace(num_processes=2))
    with pytest.raises(KeyboardInterrupt), stopping.until_done():
        interrupt()
        interrupt()
        stopping._interrupted = time.monotonic() - 3
        interrupt()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, Interrupted)])
def test_a_signal_after_the_last_step_ends_the_run_with_a_checkpoint(
    number: int, error: type[VOPDError], make_trainer: Make, tmp_path: Path
) -> None:
    from transformers import TrainerCallback

    class AtEnd(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), number)

    trainer = make_trainer()
    trainer.add_callback(AtEnd())
    with pytest.raises(error, match=says("step 2 of 2")):
        trainer.train()
    assert newest_valid(tmp_path / "run").path == tmp_path / "run" / "checkpoint-2"


def test_two_signals_are_one(make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=3, gradient_accumulation_steps=2)
    trainer.add_callback(callback_at(1, lambda: (terminate(), terminate())))
    with pytest.raises(Terminated):
        trainer.train()
    assert trainer.state.global_step == 1


def test_a_rank_ends_when_another_one_was_signalled() -> None:
    def gather(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor + signal.SIGTERM])

    ranks = SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=gather)
    stopping, control = Stopping(ranks), SimpleNamespace(should_save=False, should_training_stop=False)
    stopping.on_step_end(None, SimpleNamespace(global_step=4, max_steps=9), control)
    assert control.should_save and control.should_training_stop and isinstance(stopping.error, Terminated)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    stopping, seen = Stopping(SimpleNamespace(num_processes=1)), []

    def inside() -> None:
        with stopping.until_done():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_a_process_forked_by_a_data_loader_dies_of_the_signal() -> None:
    program = """
import os, signal, time, types
from vopd.training.monitoring.stopping import Stopping
with Stopping(types.SimpleNamespace(num_processes=1)).until_done():
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b".")
        for _ in range(20_000):  # not one long wait, which a signal just before it would not end
            time.sleep(0.01)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGTERM)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=300).returncode == 0


def test_a_script_that_lets_it_pass_ends_with_143() -> None:
    program = "from vopd.errors import Terminated\nraise Terminated('ended')"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == 143 and not done.stderr


def test_what_ended_one_run_does_not_end_the_next(make_trainer: Make) -> None:
    trainer = make_trainer()
    with pytest.raises(VOPDError, match="first"), trainer.stopping.until_done():
        trainer.stopping.end(GuardError("first"), SimpleNamespace(should_save=False))
    trainer.train()
    assert trainer.state.global_step == 2


pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")

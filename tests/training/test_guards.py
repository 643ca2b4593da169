"""Every guard: silent on healthy runs, says what it saw when its trouble begins, ends the run where told to."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from messages import says, told
from vopd.errors import ConfigurationError, GuardError
from vopd.training import VOPDConfig
from vopd.training.monitoring.guards import GUARDS, MAY_STOP, make_guards
from vopd.training.rollout_logprobs import MEAN_DIFFERENCE
from vopd.training.saving.checkpoints import newest_valid

Make = Callable[..., Any]
Step = dict[str, float]

HEALTHY: Step = {
    "loss": 1.0, "reverse_kl": 0.4, "sampled_reverse_kl": 0.41, "teacher_reward/std": 0.8, "advantage/std": 0.7,
    "grad_norm": 2.0, "completion_length": 30.0, "truncated_share": 0.05, MEAN_DIFFERENCE: 0.02,
    "rewards/math/zero_spread_share": 0.9,
}  # fmt: skip
WINDOW = 4

# Guard: the metrics of its trouble, and what it says of them.
TROUBLE: dict[str, tuple[Step, str]] = {
    "reverse_kl": ({"reverse_kl": 2.0}, "2 nats/token ... 0.4 ... learning_rate"),
    "truncation": ({"truncated_share": 0.97}, "97% of the completions ... max_completion_length"),
    "length": ({"completion_length": 100.0, "truncated_share": 0.5}, "30 to 100 tokens ... 50% are cut off"),
    "logprobs": ({MEAN_DIFFERENCE: 0.06}, "0.060 nats/token ... 0.05 ... stale"),
    "logprobs_stop": ({MEAN_DIFFERENCE: 0.6}, "0.600 nats/token ... 0.5"),
    "zero_spread": (
        {"rewards/math/zero_spread_share": 1.0},
        "100% of the prompts ... math gave ... same reward ... samples.jsonl",
    ),
    "no_signal": ({"grad_norm": 0.0, "advantage/std": 0.0}, "gradient ... 0 ... 4 logged steps"),
}


def guards(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    args = VOPDConfig(output_dir=str(tmp_path), use_cpu=True, **({"guard_window": WINDOW} | settings))
    return {guard.name: guard for guard in make_guards(args)}


@pytest.mark.parametrize("name", TROUBLE)
def test_says_what_it_saw(name: str, tmp_path: Path) -> None:
    trouble, message = TROUBLE[name]
    guard = guards(tmp_path)[name]
    assert [guard.check(HEALTHY) for _ in range(20)] == [None] * 20
    said = [guard.check(HEALTHY | trouble) for _ in range(WINDOW)]
    assert said[-1] is not None and told(message, said[-1])


def test_a_teacher_that_never_differed(tmp_path: Path) -> None:
    twin = HEALTHY | {"reverse_kl": 1e-8, "sampled_reverse_kl": -1e-7, "teacher_reward/std": 1e-7}
    guard = guards(tmp_path)["same_teacher"]
    said = [guard.check(twin) for _ in range(WINDOW)]
    assert said[:-1] == [None] * (WINDOW - 1) and told("1e-07 nats ... teacher_model", said[-1])
    # A student that has caught up is no such case.
    caught_up = guards(tmp_path)["same_teacher"]
    assert not any([caught_up.check(HEALTHY), *(caught_up.check(twin) for _ in range(20))])


def test_no_single_step_is_an_explosion(tmp_path: Path) -> None:
    for guard in guards(tmp_path).values():
        if guard.name not in ("logprobs", "logprobs_stop"):
            steps = [*[HEALTHY] * 8, HEALTHY | {"reverse_kl": 2.0, "grad_norm": 0.0, "truncated_share": 1.0}]
            assert not any(guard.check(step) for step in [*steps, *[HEALTHY] * 8]), guard.name


def test_small_numbers_may_rise_and_long_answers_may_be_learnt(tmp_path: Path) -> None:
    watch = guards(tmp_path)
    assert not any(watch["reverse_kl"].check({"reverse_kl": value}) for value in [0.01] * 8 + [0.15] * 8)
    lengths = [{"completion_length": n, "truncated_share": 0.05} for n in [30.0] * 8 + [300.0] * 8]
    assert not any(watch["length"].check(step) for step in lengths)


def test_the_exact_reverse_kl_is_not_mixed_with_the_sampled_one(tmp_path: Path) -> None:
    """metrics_every=2 measures it at every other step alone."""
    guard = guards(tmp_path)["reverse_kl"]
    steps = [{"reverse_kl": 0.4, "sampled_reverse_kl": 0.4}, {"sampled_reverse_kl": 9.0}] * 10
    assert not any(guard.check(step) for step in steps)
    sampled = guards(tmp_path)["reverse_kl"]
    said = [sampled.check({"sampled_reverse_kl": value}) for value in [0.4] * WINDOW + [9.0] * WINDOW]
    assert said[-1] is not None


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_each_can_be_turned_off_and_its_limit_changed(guard: Any, tmp_path: Path) -> None:
    field = f"guard_{guard.name}"
    assert guard.name in guards(tmp_path)
    assert guard.name not in guards(tmp_path, **{field: None})
    assert guards(tmp_path, **{field: 0.123})[guard.name].limit == 0.123


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guard_length": 0.0}, "guard_length ... positive ... none"),
        ({"guard_window": 0}, "guard_window ... 1"),
        ({"guard_stop": ["lenght"]}, "guard_stop ... 'lenght' ... reverse_kl ... truncation ... length"),
        ({"guard_stop": ["length"], "guard_length": None}, "guard_stop ... 'length' ... guard_length=none"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says(message)):
        guards(tmp_path, **settings)


# ---- in a run -----------------------------------------------------------------------------------------------------


def test_a_guard_warns_once_each_time_its_trouble_begins(make_trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vopd"):
        make_trainer(max_steps=6, guard_window=2, guard_truncation=0.01).train()
    assert caplog.text.count("guard truncation at step 2: ") == 1 == caplog.text.count("guard truncation")


def test_a_guard_that_stops_saves_first_and_ends_with_seven(make_trainer: Make, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "guard_window": 2, "guard_truncation": 0.01, "guard_stop": ["truncation"]}
    trainer = make_trainer(**settings, save_strategy="steps", save_steps=1, save_total_limit=1)
    with pytest.raises(GuardError, match=says("guard truncation at step 2 ... max_completion_length")) as ended:
        trainer.train()
    assert ended.value.exit_code == 7
    assert newest_valid(tmp_path / "run").path == tmp_path / "run" / "checkpoint-2"
    # The ones before it went wrong are the better ones: not rotated away.
    assert (tmp_path / "run" / "checkpoint-1").exists()
    assert fired(tmp_path / "run") == [(2, "truncation")]


def fired(run: Path) -> list[tuple[int, str]]:
    """What guards.jsonl has; each message is what the guard saw, then "; " and what to try, as the report splits it."""
    records = [json.loads(line) for line in (run / "guards.jsonl").read_text().splitlines()]
    assert all("; " in record["message"] for record in records)
    return [(record["step"], record["guard"]) for record in records]


def test_a_resumed_guard_remembers(make_trainer: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The trouble that began before the checkpoint is told once, and the window goes on."""
    settings = {"guard_window": 3, "guard_truncation": 0.01, "save_strategy": "steps", "save_steps": 1}
    make_trainer(max_steps=2, **settings).train()
    with caplog.at_level(logging.WARNING, logger="vopd"):
        make_trainer(max_steps=4, **settings).train(resume_from_checkpoint=True)
    assert caplog.text.count("guard truncation at step 3") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="vopd"):
        make_trainer(max_steps=5, **settings).train(resume_from_checkpoint=True)
    assert "guard truncation" not in caplog.text
    assert fired(tmp_path / "run") == [(3, "truncation")]
    make_trainer(max_steps=4, **settings).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert fired(tmp_path / "run") == [(3, "truncation")]  # cut back, then fired again


def test_the_same_model_as_teacher_is_told(
    make_trainer: Make, tiny_student_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twin = {"teacher_model": str(tiny_student_dir)}
    with caplog.at_level(logging.WARNING, logger="vopd"):
        make_trainer(trainer=twin, max_steps=2, guard_window=2).train()
    assert "guard same_teacher at step 2" in caplog.text


def test_no_weight_that_is_trained_is_told(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(max_steps=2, guard_window=2)
    loss = trainer.token_loss
    monkeypatch.setattr(trainer, "token_loss", lambda *of: loss(*of) * 0)
    with caplog.at_level(logging.WARNING, logger="vopd"):
        trainer.train()
    assert "guard no_signal at step 2" in caplog.text


def test_defaults_are_silent_on_the_demos_runs(tmp_path: Path) -> None:
    """Metrics of every step, recorded on the embedded pair."""
    recorded = json.loads(Path(__file__).with_name("demo_metrics.json").read_text())
    assert set(recorded) == {"opd", "vopd", "vopd_optimal", "rao_blackwell_teacher_top_k", "full_rkl"}
    args = VOPDConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args.guard_stop == [] and set(MAY_STOP) == {guard.name for guard in GUARDS} - {"logprobs_stop"}
    for run, columns in recorded.items():
        steps = [dict(zip(columns, values)) for values in zip(*columns.values())]
        assert len(steps) > 200
        for guard in make_guards(args):
            assert not any(guard.check(step) for step in steps), (run, guard.name)

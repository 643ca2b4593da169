"""A whole trainer with its teacher behind a server: the gradients are those of the teacher in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from messages import says
from synchronisations import of_a_micro_batch
from vopd.errors import ConfigurationError, TeacherServerError
from vopd.estimators import Estimator
from vopd.estimators.policy_gradient import OPD
from vopd.experiments.pair import embedded_pair

Make = Callable[..., Any]


def largest_difference(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> float:
    scale = max(value.abs().max() for step in first for value in step.values())
    assert len(first) == len(second) and all(one.keys() == two.keys() for one, two in zip(first, second))
    return float(max((one[name] - two[name]).abs().max() for one, two in zip(first, second) for name in one) / scale)


@pytest.mark.parametrize(
    ("estimator", "top_k"),
    [
        ("opd", None),
        ("vopd_teacher_top_k", 20),
        ("rao_blackwell_teacher_top_k", 5),
        ("vopd_top_k", 5),
        ("vopd_sparse", 5),
        (replace(OPD, name="of_a_notebook", estimate=lambda rows: OPD.estimate(rows)), None),
    ],
)
def test_the_gradient_is_that_of_the_teacher_in_this_process(
    estimator: str | Estimator, top_k: int | None, serve: Make, make_trainer: Make, gradients_of: Make
) -> None:
    settings = {"estimator": estimator, "loss_top_k": top_k, "gradient_accumulation_steps": 2, "max_grad_norm": 0}
    expected = gradients_of(make_trainer(str(embedded_pair().teacher), **settings))
    found = gradients_of(make_trainer(teacher_server_url=serve().url, **settings))
    assert largest_difference(expected, found) < 1e-4


@pytest.mark.parametrize("failure", ["raise", "drop"])
@pytest.mark.parametrize(("estimator", "checked"), [("vopd_teacher_top_k", 1), ("opd", 0)])
def test_a_micro_batch_waits_for_the_device_where_ids_are_checked(
    failure: str, estimator: str, checked: int, serve: Make, make_trainer: Make
) -> None:
    """Answers are put together on the host, by row numbers that are there; their way to the device is not seen."""
    trainer = make_trainer(
        teacher_server_url=serve().url,
        teacher_failure=failure,
        estimator=estimator,
        loss_top_k=5 if checked else None,
        gradient_accumulation_steps=2,
    )
    found = of_a_micro_batch(trainer)
    assert found.pop("vopd.teachers.server.teacher.score: tolist") == 1  # of the row numbers
    assert found.pop("vopd.estimators.checks.checked_top_k_ids: tolist", 0) == checked
    assert found.pop("vopd.estimators.loss._rows: tolist") == 1
    assert found.pop("vopd.training.monitoring.samples.offer: tolist") == 1  # of places on the host
    assert all(line.startswith("transformers.masking_utils") for line in found)


def test_sparse_scores_need_no_temperature_of_the_server(serve: Make, make_trainer: Make, gradients_of: Make) -> None:
    settings = {"estimator": "vopd_sparse", "temperature": 1.6, "max_grad_norm": 0}
    expected = gradients_of(make_trainer(str(embedded_pair().teacher), **settings))
    found = gradients_of(make_trainer(teacher_server_url=serve().url, **settings))
    assert largest_difference(expected, found) < 1e-4


def test_a_server_that_heeds_the_temperature(serve: Make, make_trainer: Make, gradients_of: Make) -> None:
    settings = {"temperature": 1.4, "max_grad_norm": 0}
    expected = gradients_of(make_trainer(str(embedded_pair().teacher), **settings))
    found = gradients_of(make_trainer(teacher_server_url=serve(heeds_temperature=True).url, **settings))
    assert largest_difference(expected, found) < 1e-4
    with pytest.raises(ConfigurationError, match=says("temperature 1 ... vopd_sparse")):
        make_trainer(teacher_server_url=serve().url, **settings)


def test_requests_are_spread_and_bounded_and_start_with_the_rollout(serve: Make, make_trainer: Make) -> None:
    servers = [serve(), serve()]
    trainer = make_trainer(
        teacher_server_url=[server.url for server in servers],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        teacher_server_concurrency=3,
    )
    before = [len(server.bodies) for server in servers]
    order: list[str] = []
    begin, score = trainer.teacher.begin, trainer.teacher.score
    trainer.teacher.begin = lambda rollouts: (order.append("begin"), begin(rollouts))[1]
    trainer.teacher.score = lambda *args: (order.append("score"), score(*args))[1]
    trainer.train()
    assert order == ["begin", "score", "score", "score"]
    asked = [len(server.bodies) - count for server, count in zip(servers, before)]
    assert sum(asked) == 6 + 2  # a text more on each server, to see that it is what it was
    assert min(asked) >= 2 and max(server.most_under_way for server in servers) <= 3
    logged = trainer.state.log_history[0]
    assert logged["teacher/requests"] >= 8 and logged["teacher/retries"] == logged["teacher/dropped_rows"] == 0


def test_evaluation_asks_the_server_too(serve: Make, make_trainer: Make) -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"prompt": ["What is 2 + 3?", "What is 4 + 3?"]})
    trainer = make_trainer(teacher_server_url=serve().url, trainer={"eval_dataset": data})
    assert "eval_teacher_reward/mean" in trainer.evaluate()


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    serve: Make, make_trainer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capfd: Any, caplog: Any
) -> None:
    server = serve(key="s3cret-k3y")
    with pytest.raises(TeacherServerError, match=says("key ... teacher_server_key_env")):
        make_trainer(teacher_server_url=server.url)
    monkeypatch.setenv("OUR_KEY", "s3cret-k3y")
    with caplog.at_level("DEBUG"):
        trainer = make_trainer(teacher_server_url=server.url, teacher_server_key_env="OUR_KEY", save_strategy="steps")
        trainer.train()
        server.key = "another"
        with pytest.raises(TeacherServerError) as raised:
            trainer.train()
    said = "".join([*capfd.readouterr(), caplog.text, str(raised.value), repr(raised.value.__cause__)])
    assert "s3cret" not in said
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path

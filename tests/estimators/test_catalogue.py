"""Estimators by name, by module:NAME and as objects."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import vopd
from messages import says
from vopd.errors import ConfigurationError
from vopd.estimators import Estimate, Estimator, Needs, Rows, centred_policy_gradient, find_estimator
from vopd.estimators.catalogue import find_estimators, spelled
from vopd.functional import centred_optimal_baseline, centred_value_baseline

OPD = vopd.ESTIMATORS["opd"]
OWN = replace(OPD, name="mine")
ALSO = replace(OPD, name="mine", description="another")


def test_a_name_and_its_object_are_found_and_written_alike() -> None:
    for name, estimator in vopd.ESTIMATORS.items():
        assert find_estimator(name) is find_estimator(estimator) is estimator
        assert spelled(estimator) == name


def test_one_of_a_module_is_found_by_what_it_is_written_as() -> None:
    assert spelled(OWN) == f"{__name__}:OWN" and find_estimator(spelled(OWN)) is OWN


def test_a_copy_is_the_same_estimator() -> None:
    for estimator in (OPD, OWN):
        assert spelled(find_estimator(copy.deepcopy(estimator))) == spelled(estimator)


def test_each_once_and_none_under_the_name_of_another() -> None:
    assert find_estimators(["opd", OWN, OPD, OWN]) == [OPD, OWN]
    with pytest.raises(ConfigurationError, match="2 estimators are called 'mine'"):
        find_estimators([OWN, ALSO])


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("vopdd", "'vopdd'.*'vopd'.*module:NAME"),
        (None, "Estimator, not a NoneType"),
        (lambda rows: rows, "Estimator, not a function"),
        (f"{__name__}:OPDD", "did you mean 'OPD'"),
        (f"{__name__}:find_estimator", "vopd.estimators.Estimator"),
        (replace(OPD, description="another"), "'opd' is a built-in"),
    ],
)
def test_what_is_none_is_refused(given: Any, facts: str) -> None:
    with pytest.raises(ConfigurationError, match=facts):
        find_estimator(given)


@pytest.mark.parametrize(
    "field",
    [
        {"name": "a b"},
        {"name": "../up"},
        {"name": ""},
        {"colour": "red"},
        {"support": "topk"},
        {"needs": None},
        {"estimate": 3},
    ],
)
def test_fields_that_no_folder_and_no_figure_can_take(field: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(field))):
        replace(OPD, **field)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("support", "needs", "least"),
    [
        ("sampled", Needs(order=1), "full"),
        ("top_k", Needs("student_top_k", order=2), "full"),
        ("top_k", Needs("teacher_top_k", order=1), "full"),
        ("sampled", Needs("teacher_top_k"), "top_k"),
    ],
)
def test_needs_beyond_the_support_are_refused(support: Any, needs: Needs, least: str) -> None:
    with pytest.raises(ConfigurationError, match=says(f"'mine' ... support='{support}' ... support='{least}'")):
        replace(OPD, name="mine", support=support, needs=needs)


@pytest.mark.parametrize("wrong", [{"support": "student_topk"}, {"order": 3}])
def test_needs_that_there_are_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Needs"):
        Needs(**wrong)


def estimate(change: Callable[[Rows, Estimate], Any]) -> Estimator:
    return replace(OPD, name="mine", estimate=lambda rows: change(rows, OPD.estimate(rows)))


def column(rows: Rows, found: Estimate) -> Estimate:
    return replace(found, form=replace(found.form, a=found.form.a[:1]))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda rows, found: None, "'mine' ... NoneType ... policy_gradient"),
        (lambda rows, found: replace(found, loss=found.loss.sum()), "'mine' ... loss ... () ... (4,)"),
        (lambda rows, found: replace(found, advantages=found.advantages[:, None]), "'mine' ... advantages ... (4, 1)"),
        (lambda rows, found: replace(found, baseline=found.baseline.double()), "'mine' ... baseline ... torch.float64"),
        (column, "'mine' ... a has shape (1,) ... (4,)"),
        (
            lambda rows, found: replace(found, form=replace(found.form, ids=found.form.ids[:, :0])),
            "'mine' ... (4, 0) ... (4, 1)",
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_checks_of_shapes")
def test_an_estimate_of_another_shape_is_refused(change: Any, facts: str) -> None:
    logits, ids = torch.randn(2, 4, 9), torch.arange(4)
    with pytest.raises(ConfigurationError, match=re.escape(facts).replace(r"\ \.\.\.\ ", ".*")):
        vopd.distillation_loss(*logits, ids, estimator=estimate(change))


def test_what_fails_inside_is_told_with_its_place() -> None:
    logits, ids = torch.randn(2, 4, 9), torch.arange(4)
    with pytest.raises(ConfigurationError, match=says("'mine' ... AttributeError ... reward ... test_catalogue.py")):
        vopd.distillation_loss(*logits, ids, estimator=estimate(lambda rows, found: rows.reward))


def test_a_device_without_memory_is_no_fault_of_the_estimator() -> None:
    def full(rows: Rows, found: Estimate) -> Any:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        vopd.distillation_loss(*torch.randn(2, 4, 9), torch.arange(4), estimator=estimate(full))


@pytest.mark.parametrize("diagnostics", [False, True])
@pytest.mark.parametrize("order", [0, 1])
def test_what_is_read_and_not_needed_is_refused_with_diagnostics_and_without(order: Any, diagnostics: bool) -> None:
    def read(rows: Rows) -> Estimate:
        return centred_policy_gradient(
            rows, (centred_optimal_baseline if order else centred_value_baseline)(rows.moments())
        )

    support = "full" if order else "sampled"
    mine = Estimator("mine", "reads one order more", support, Needs(order=order), read)  # type: ignore[arg-type]
    logits, ids = torch.randn(2, 4, 9), torch.arange(4)
    with pytest.raises(ConfigurationError, match=says("'mine' ... not computed ... Needs(order=1)")):
        vopd.distillation_loss(*logits, ids, estimator=mine, diagnostics=diagnostics)

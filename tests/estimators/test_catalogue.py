"""Estimators by name, by module:NAME and as objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import vopd
from vopd.errors import ConfigurationError
from vopd.estimators import find_estimator
from vopd.estimators.catalogue import find_estimators, spelled

OPD = vopd.ESTIMATORS["opd"]
OWN = replace(OPD, name="mine")
ALSO = replace(OPD, name="mine", description="another")


def test_a_name_and_its_object_are_found_and_written_alike() -> None:
    for name, estimator in vopd.ESTIMATORS.items():
        assert find_estimator(name) is find_estimator(estimator) is estimator
        assert spelled(estimator) == name


def test_one_of_a_module_is_found_by_what_it_is_written_as() -> None:
    assert spelled(OWN) == f"{__name__}:OWN" and find_estimator(spelled(OWN)) is OWN


def test_each_once_and_none_under_the_name_of_another() -> None:
    assert find_estimators(["opd", OWN, OPD, OWN]) == [OPD, OWN]
    with pytest.raises(ConfigurationError, match="2 estimators are called 'mine'"):
        find_estimators([OWN, ALSO])


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("vopdd", "'vopdd'.*'vopd'.*module:NAME"),
        (None, "unknown estimator 'None'"),
        (f"{__name__}:OPDD", "did you mean 'OPD'"),
        (f"{__name__}:find_estimator", "vopd.estimators.Estimator"),
        (replace(OPD, description="another"), "'opd' already"),
    ],
)
def test_what_is_none_is_refused(given: Any, facts: str) -> None:
    with pytest.raises(ConfigurationError, match=facts):
        find_estimator(given)


@pytest.mark.parametrize("field", [{"name": "a b"}, {"name": "../up"}, {"name": ""}, {"colour": "red"}])
def test_fields_that_no_folder_and_no_figure_can_take(field: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(field))):
        replace(OPD, **field)  # type: ignore[arg-type]

"""Options that a run takes, and those that it refuses, before anything is written."""

from __future__ import annotations

import pytest

from cases import Case

CASES = [
    Case("RUN", 0, "trained 2 steps", leaves=("r/model/", "r/resolved_config.yaml")),
    Case("RUN --lerning_rate 1", 2, "lerning_rate ... learning_rate"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[:60])
def test_options(case: Case, place, capfd):
    case.check(place, capfd.readouterr)

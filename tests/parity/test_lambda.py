"""λ as a function of the step against the authors' own code; ``data`` says how the numbers were made."""

import json
from pathlib import Path

import pytest

from lit_ift.modules.lambda_schedule import LambdaSchedule

RECORDED = json.loads((Path(__file__).parent / "data" / "lambda.json").read_text())
FLOAT32 = 2.0**-23
"""Relative: the authors round λ to float32."""


@pytest.mark.parametrize("case", RECORDED["cases"])
def test_linear_equals_the_authors(case: dict) -> None:
    schedule = LambdaSchedule(case["lam"], "linear", start=case["start"], warmup=case["warmup"])
    assert len(case["values"]) >= 10
    for step, value in case["values"].items():
        assert schedule.at(int(step), case["steps"]) == pytest.approx(value, rel=FLOAT32)

"""λ as a function of the step."""

import pytest

from lit_ift.modules.lambda_schedule import LambdaSchedule


def test_constant_and_linear() -> None:
    assert LambdaSchedule(0.2).at(7, 100) == 0.2
    linear = LambdaSchedule(0.4, "linear", start=0.0, warmup=0.1)
    assert [linear.at(step, 100) for step in (0, 5, 10, 99)] == pytest.approx([0.0, 0.2, 0.4, 0.4])
    steps = LambdaSchedule(0.5, "linear", start=0.1, warmup=4)
    assert [steps.at(step, 1000) for step in (0, 1, 4, 9)] == pytest.approx([0.1, 0.2, 0.5, 0.5])
    assert LambdaSchedule(0.5, "linear", warmup=0).at(0, 10) == 0.5


def test_noise_depends_on_seed_and_step_alone() -> None:
    noisy = LambdaSchedule(0.5, noise=0.3, seed=1)
    draws = [noisy.at(step, 1000) for step in range(1000)]
    assert draws == [LambdaSchedule(0.5, noise=0.3, seed=1).at(step, 1000) for step in range(1000)]
    assert draws != [LambdaSchedule(0.5, noise=0.3, seed=2).at(step, 1000) for step in range(1000)]
    mean = sum(draws) / 1000
    deviation = (sum((d - mean) ** 2 for d in draws) / 1000) ** 0.5
    # The standard error of the mean is 0.15/sqrt(1000) = 0.005; few draws reach the bounds 0 and 1.
    assert mean == pytest.approx(0.5, abs=0.02)
    assert deviation == pytest.approx(0.15, abs=0.02)
    assert min(LambdaSchedule(0.9, noise=5.0).at(s, 1) for s in range(50)) == 0.0
    assert max(LambdaSchedule(0.9, noise=5.0).at(s, 1) for s in range(50)) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": 1.2}, "lam_value=1.2 must be"),
        ({"schedule": "cosine"}, "lam_schedule='cosine'"),
        ({"start": 0.1}, "need lam_schedule='linear'"),
        ({"warmup": 0.1}, "need lam_schedule='linear'"),
        ({"schedule": "linear", "start": -0.1}, "lam_start=-0.1"),
        ({"schedule": "linear", "warmup": -1}, "lam_warmup=-1"),
        ({"schedule": "linear", "warmup": float("nan")}, "lam_warmup=nan"),
        ({"noise": -1}, "lam_noise=-1"),
        ({"noise": float("nan")}, "lam_noise=nan"),
        ({"noise": float("inf")}, "lam_noise=inf"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LambdaSchedule(**options)

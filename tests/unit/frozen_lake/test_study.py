"""The comparison is fair, and the same every time."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from lakes import small_game, tiny_settings

from lit_ift.errors import UserError
from lit_ift.frozen_lake.game import Game
from lit_ift.frozen_lake.policy import Members
from lit_ift.frozen_lake.result import METRICS, Study
from lit_ift.frozen_lake.settings import LABELS, LakeOptions, Protocol, StartOptions
from lit_ift.frozen_lake.study import pretraining_text, run_studies, run_study

pytestmark = pytest.mark.slow

ALL = tiny_settings(methods=list(LABELS))


@pytest.fixture(scope="module")
def study() -> Study:
    return run_study(ALL)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads; afterwards they are as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_settings_same_numbers(study: Study, threads: Callable[[int], None]) -> None:
    """Whatever the global generators hold, which it does not touch, and however many threads torch may use."""
    torch.manual_seed(1)
    np.random.seed(1)
    before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    other = torch.get_num_threads() % 2 + 1
    threads(other)
    again = run_study(ALL)
    assert torch.equal(before, torch.get_rng_state())
    assert (of_numpy == np.random.get_state()[1]).all()
    assert torch.get_num_threads() == other
    for first, second in zip(study.outcomes, again.outcomes, strict=True):
        assert first.learning_rate == second.learning_rate
        assert (first.policies == second.policies).all(), first.name
        for metric in METRICS:
            assert (first.curves[metric] == second.curves[metric]).all()


def test_what_a_study_holds(study: Study) -> None:
    assert [outcome.name for outcome in study.outcomes] == list(LABELS)
    assert study.optimal.shape == study.start.shape == (16, 4)
    assert study.settings["lake"]["map"] == "4x4"
    for outcome in study.outcomes:
        assert outcome.policies.shape == (3, 16, 4)
        assert outcome.policies.sum(-1) == pytest.approx(1)
        assert outcome.steps.tolist() == [0, 2, 4, 6, 8]
        for metric in METRICS:
            assert outcome.curves[metric].shape == (3, 5)
            assert (outcome.curves[metric][:, -1] == outcome.metrics[metric]).all()
        assert (outcome.moves > 0) == (outcome.name in ("reinforce", "ppo"))
        assert outcome.visits[0] >= 1


def test_all_methods_start_from_the_same_policies(study: Study) -> None:
    first = study.outcomes[0].curves["mse_all"][:, 0]
    assert len(set(first.tolist())) == 3
    for outcome in study.outcomes[1:]:
        assert (outcome.curves["mse_all"][:, 0] == first).all()
    assert not (study.outcomes[0].policies.mean(0) == study.start).all()


def test_judged_seeds_take_no_part_in_tuning(study: Study) -> None:
    """Other tuning seeds, same judged ones: as the seeds are counted on, the first of all moves down by one."""
    protocol = ALL.protocol
    fewer = replace(ALL, methods=["sft"], protocol=replace(protocol, seed=1, tuning_seeds=1))
    other = run_study(
        replace(fewer, protocol=replace(fewer.protocol, learning_rates=[study.outcomes[0].learning_rate]))
    )
    np.testing.assert_allclose(other.outcomes[0].policies, study.outcomes[0].policies, rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", ["mse_all", "return"])
def test_the_best_rate_by_the_chosen_metric_is_taken(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is made to like the second of three rates best, whichever way up the metric is."""
    sign = 1 if metric == "mse_all" else -1
    real = Game.judge

    def judged(self: Game, policies: torch.Tensor) -> dict[str, torch.Tensor]:
        found = real(self, policies)
        if len(policies) == 6:  # three rates on two tuning seeds
            found[metric] = sign * torch.tensor([3.0, 3.0, 1.0, 1.0, torch.nan, 0.0])
        return found

    monkeypatch.setattr(Game, "judge", judged)
    protocol = Protocol(updates=2, learning_rates=[0.3, 0.1, 0.2], tune_by=metric, tuning_seeds=2, seeds=3, points=1)
    assert run_study(tiny_settings(protocol=protocol)).outcomes[0].learning_rate == 0.2


def test_studies_that_choose_rates_differently_are_those_run_one_by_one() -> None:
    protocol = replace(ALL.protocol, learning_rates=[1e-3, 1e-1, 3.0])
    settings = replace(ALL, methods=["sft", "dpo", "ppo"], protocol=protocol)
    choices = ("mse_all", "mse_trajectory", "return")
    several = run_studies(settings, choices)
    rates = [tuple(outcome.learning_rate for outcome in study.outcomes) for study in several]
    assert len(set(rates)) > 1
    for choice, shared in zip(choices, several, strict=True):
        alone = run_study(replace(settings, protocol=replace(protocol, tune_by=choice)))
        assert shared.settings == alone.settings
        assert (shared.start == alone.start).all()
        for first, second in zip(shared.outcomes, alone.outcomes, strict=True):
            assert (first.name, first.learning_rate, first.moves) == (second.name, second.learning_rate, second.moves)
            assert (first.policies == second.policies).all()


def test_diverging_policies_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Members.policies
    monkeypatch.setattr(Members, "policies", lambda self: real(self) * torch.nan)
    with pytest.raises(UserError, match=r"SFT with learning rate .* diverges"):
        run_study(tiny_settings(start=StartOptions(kind="random")))


def test_the_text_of_the_starting_policy() -> None:
    game = small_game()
    text = pretraining_text(game, StartOptions())
    assert text.sum() == pytest.approx(1)
    assert (text[game.lake.terminal] == 0).all()
    walks = pretraining_text(game, StartOptions(suboptimal=0, optimal=0, walks=1))
    assert walks[0] == pytest.approx(walks[0, 0])
    clone = pretraining_text(game, StartOptions(kind="clone"))
    wanted = np.zeros((16, 4))
    wanted[game.rejected.cells[:-1], game.rejected.actions] = 1 / 8
    assert (clone == wanted).all()
    np.testing.assert_allclose(
        text, 0.3 * clone + 0.55 * walks + 0.15 * pretraining_text(game, StartOptions(suboptimal=0, optimal=1, walks=0))
    )


def test_starts_differ_as_asked() -> None:
    """A clone of the longer route goes right at the start, a random policy is near uniform."""
    start = {
        kind: run_study(tiny_settings(methods=["sft"], start=StartOptions(kind=kind, updates=60))).start
        for kind in ("random", "clone", "mixture")
    }
    assert start["clone"][0, 2] > 0.8
    assert np.abs(start["random"] - 0.25).max() < 0.15
    assert start["clone"][0, 2] > start["mixture"][0, 2] > start["random"][0, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StartOptions(walks=0.6), "must sum to 1"),
        (lambda: LakeOptions(discount=1.0), "discount=1.0"),
        (lambda: Protocol(learning_rates=[]), r"learning_rates=\[\] is empty"),
        (lambda: Protocol(seeds=1), "seeds=1 must be at least 2"),
        (lambda: Protocol(tune_by="luck"), "tune_by='luck'"),  # type: ignore[arg-type]
        (lambda: tiny_settings(methods=["sft", "sft"]), "none twice"),
        (lambda: tiny_settings(methods=["simpo"]), "must name at least one of sft, ift"),
    ],
)
def test_settings_that_make_no_sense(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

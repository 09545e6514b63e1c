"""The animated games follow the policy and the transition table."""

import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from lake_studies import HORIZON, LARGE, SMALL, WIDE, make_study
from PIL import Image

from lit_ift.errors import UserError
from lit_ift.frozen_lake import style
from lit_ift.frozen_lake.animate import (
    MARGIN,
    Game,
    caption,
    cell_pixels,
    median_policy,
    play,
    save_animations,
)
from lit_ift.frozen_lake.drawing import STEPS
from lit_ift.frozen_lake.result import Outcome, Study
from lit_ift.frozen_lake.world import transition_table

pytestmark = pytest.mark.slow

pytest.importorskip("gymnasium", reason="the lake is gymnasium's: pip install 'lit-ift[lake]'")


def always(*actions: int, cells: int = 16) -> np.ndarray:
    """A policy of certain actions, one a cell, or one for all."""
    return np.eye(4)[list(actions) if len(actions) > 1 else list(actions) * cells]


def agents_cells(path: Path, study: Study) -> list[int]:
    """Where the disc is in every frame."""
    side, colour = cell_pixels(study), np.array(list(bytes.fromhex(style.AGENT[1:])))
    cells = []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            near = np.abs(np.asarray(image.convert("RGB")).astype(int) - colour).max(axis=-1) <= 2
            rows, columns = np.nonzero(near)
            row, column = ((middle.mean() - MARGIN) // side for middle in (rows, columns))
            cells.append(int(row) * study.shape[1] + int(column))
    return cells


@pytest.mark.parametrize(("rows", "slippery"), [(SMALL, False), (SMALL, True), (WIDE, True), (LARGE, False)])
def test_frames_follow_the_transition_table(rows: list[str], slippery: bool, tmp_path: Path) -> None:
    study = make_study(rows, ("sft", "ift"), seeds=3, slippery=slippery)
    table = transition_table(rows, slippery)
    paths = save_animations(study, tmp_path / "new")
    assert [path.name for path in paths] == ["play-sft.gif", "play-ift.gif"]
    for path, outcome in zip(paths, study.outcomes, strict=True):
        game = play(rows, table, median_policy(outcome), HORIZON)
        cells = agents_cells(path, study)
        assert cells == game.cells
        assert len(cells) > 2
        assert cells[0] == "".join(rows).index("S")
        for (here, there), action in zip(pairwise(cells), game.actions, strict=True):
            assert there in {entry[1] for entry in table[here][action] if entry[0] > 0}
        assert {"G": "goal", "H": "hole"}.get("".join(rows)[cells[-1]], "time") == game.end


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    study = make_study(WIDE, seeds=2, slippery=True)
    first, second = (save_animations(study, tmp_path / run) for run in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_long_game_on_a_large_lake_is_a_small_file_made_fast(tmp_path: Path) -> None:
    rows = [row.replace("H", "F") for row in LARGE]
    study = make_study(rows, ("sft",), seeds=1, slippery=True)
    before = time.process_time()
    (path,) = save_animations(study, tmp_path)
    assert time.process_time() - before < 3
    with Image.open(path) as image:
        assert image.n_frames > HORIZON // 2
        assert image.info["loop"] == 0
    assert path.stat().st_size < 300_000


def test_a_game_ends_at_the_goal_in_a_hole_or_when_time_is_out() -> None:
    table = transition_table(SMALL, slippery=False)
    to_goal = always(1, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 2, 2, 0)
    assert play(SMALL, table, to_goal, HORIZON) == Game(
        [0, 4, 8, 9, 13, 14, 15], [1, 1, 2, 1, 2, 2], [False] * 6, "goal"
    )
    into_hole = always(1, 0, 0, 0, 2, *[0] * 11)
    assert play(SMALL, table, into_hole, HORIZON) == Game([0, 4, 5], [1, 2], [False] * 2, "hole")
    stuck = play(SMALL, table, always(0), HORIZON)
    assert stuck.end == "time"
    assert stuck.actions == [0] * HORIZON
    assert set(stuck.cells) == {0}


def test_a_game_is_as_long_as_the_study_lets_it_be(tmp_path: Path) -> None:
    study = make_study(names=("sft",), seeds=1)
    outcome = Outcome(**{**vars(study.outcomes[0]), "policies": always(0)[None]})
    settings = {"lake": {"horizon": 7}}
    (path,) = save_animations(Study(**{**vars(study), "outcomes": [outcome], "settings": settings}), tmp_path)
    with Image.open(path) as image:
        assert image.n_frames == 8


def test_slips_are_moves_that_went_elsewhere_than_the_action() -> None:
    open_lake = [row.replace("H", "F") for row in LARGE]
    game = play(open_lake, transition_table(open_lake, slippery=True), np.full((64, 4), 0.25), HORIZON)
    assert 10 < sum(game.slipped) < len(game.slipped)
    for (here, there), action, slipped in zip(pairwise(game.cells), game.actions, game.slipped, strict=True):
        across, down = STEPS[action]
        row, column = np.clip((here // 8 + down, here % 8 + across), 0, 7)
        assert slipped == (there != 8 * row + column)


def test_actions_are_sampled_as_often_as_they_are_probable() -> None:
    walls = ["FFFFF", "FFSFF", "FFFFG"]
    table = transition_table(walls, slippery=False)
    policy = np.tile([0.5, 0.3, 0.0, 0.2], (15, 1))
    actions = [action for seed in range(40) for action in play(walls, table, policy, HORIZON, seed).actions]
    assert np.bincount(actions, minlength=4) / len(actions) == pytest.approx([0.5, 0.3, 0.0, 0.2], abs=0.03)


def test_another_seed_gives_another_game() -> None:
    table = transition_table(SMALL, slippery=True)
    games = {tuple(play(SMALL, table, np.full((16, 4), 0.25), HORIZON, seed).cells) for seed in range(5)}
    assert len(games) > 1


@pytest.mark.parametrize(("errors", "median"), [([3.0, 1.0, 2.0], 2), ([4.0, 1.0, 2.0, 3.0], 2), ([0.5], 0)])
def test_the_policy_is_that_of_the_median_seed(errors: list[float], median: int) -> None:
    outcome = make_study(seeds=len(errors)).outcomes[0]
    chosen = median_policy(Outcome(**{**vars(outcome), "metrics": {"mse_all": np.array(errors)}}))
    assert np.array_equal(chosen, outcome.policies[median])


def test_captions_say_step_action_slip_and_end() -> None:
    game = Game([0, 1, 2], [1, 3], [True, False], "hole")
    assert [caption("IFT", game, index) for index in range(3)] == [
        ("IFT · step 1: down", ""),
        ("IFT · step 2: up", "the last move slipped"),
        ("IFT · 2 steps", "fell into a hole"),
    ]
    assert caption("IFT", Game([0, 15], [2], [True], "goal"), 1)[1] == "reached the goal; the last move slipped"
    assert caption("IFT", Game([0, 0], [2], [False], "time"), 1)[1] == "out of time"


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium.envs.toy_text.frozen_lake", None)
    with pytest.raises(UserError, match=r"pip install 'lit-ift\[lake\]'"):
        save_animations(make_study(), tmp_path)
    assert not list(tmp_path.iterdir())

"""Short animations of games on the lake, one GIF a method."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_ift.frozen_lake import style
from lit_ift.frozen_lake.drawing import STEPS, draw_lake, draw_policy
from lit_ift.frozen_lake.result import Array, Outcome, Study
from lit_ift.frozen_lake.world import ACTIONS, Transitions, transition_table

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN, FOOT, LEAST_WIDTH = 8, 48, 256
"""Space around the lake, height of the caption and least width of the lake, in pixels."""

COLOURS = 32
"""Colours of an animation: few, to keep the files small."""

SEED = 0
"""All methods play with the same random numbers, so that what differs is the policy."""


@dataclass(frozen=True)
class Game:
    """One game as it was played.

    Args:
        cells: visited cells in order, one more than actions.
        actions: actions chosen.
        slipped: whether a move went elsewhere than its action, one an action.
        end: ``goal``, ``hole`` or ``time``.
    """

    cells: list[int]
    actions: list[int]
    slipped: list[bool]
    end: str


def save_animations(study: Study, folder: Path) -> list[Path]:
    """Save ``play-<name>.gif`` for every method: one sampled game of the policy of the seed with the median MSE.

    Args:
        study: the lake and the methods' policies.
        folder: made if missing; files there of these names are replaced.

    Returns:
        Paths of the files, in the order of the methods. The same study gives the same bytes.

    Raises:
        UserError: gymnasium is not installed.
    """
    transitions = transition_table(study.rows, study.slippery)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for outcome in study.outcomes:
        policy = median_policy(outcome)
        game = play(study.rows, transitions, policy, study.settings["lake"]["horizon"])
        frames = draw_game(study, outcome.label, policy, game)
        path = folder / f"play-{outcome.name}.gif"
        # Long games run faster, and the end stays in view.
        pace = int(np.clip(12_000 / len(frames), 120, 600))
        durations = [pace] * (len(frames) - 1) + [2_500]
        # With ``optimize``, pixels that do not change are left out of a frame.
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
        paths.append(path)
    return paths


def median_policy(outcome: Outcome) -> Array:
    """The policy of the seed whose MSE over all cells is the median, the lower one of an even number, (S, A)."""
    order = np.argsort(outcome.metrics["mse_all"], kind="stable")
    policy: Array = outcome.policies[order[(len(order) - 1) // 2]]
    return policy


def play(rows: list[str], transitions: Transitions, policy: Array, horizon: int, seed: int = SEED) -> Game:
    """Play one game from the start, with actions and slips sampled.

    Args:
        rows: the map.
        transitions: that of ``transition_table``.
        policy: probability of every action in every cell, (S, A).
        horizon: moves that the game may last; then it is out of time.
        seed: of actions and slips.
    """
    letters = "".join(rows)
    cell = letters.index("S")
    random = np.random.default_rng(seed)
    cells, actions, slipped = [cell], list[int](), list[bool]()
    while len(actions) < horizon:
        action = int(random.choice(len(ACTIONS), p=policy[cell] / policy[cell].sum()))
        outcomes = transitions[cell][action]
        reached = outcomes[random.choice(len(outcomes), p=[outcome[0] for outcome in outcomes])]
        # Gymnasium lists the intended move between the slips to either side.
        slipped.append(reached[1] != outcomes[len(outcomes) // 2][1])
        actions.append(action)
        cell = reached[1]
        cells.append(cell)
        if reached[3]:
            return Game(cells, actions, slipped, "goal" if letters[cell] == "G" else "hole")
    return Game(cells, actions, slipped, "time")


def draw_game(study: Study, label: str, policy: Array, game: Game) -> "list[Image]":
    """Frames of a game: before every move, with an arrow for the action about to be taken, and at the end.

    Returns:
        As many frames as the game has cells, palette images of the same size and palette.
    """
    from PIL import Image, ImageDraw, ImageFont

    side = cell_pixels(study)
    base, palette = _background(study, policy, side)
    font = ImageFont.truetype(_font_file(), 14)
    frames = []
    for index, cell in enumerate(game.cells):
        frame = base.copy()
        row, column = divmod(cell, study.shape[1])
        action = game.actions[index] if index < len(game.actions) else None
        sprite = _agent(action, side)
        frame.paste(sprite, (MARGIN + column * side, MARGIN + row * side), sprite)
        pen = ImageDraw.Draw(frame)
        for line, text in enumerate(caption(label, game, index)):
            pen.text((MARGIN, frame.height - FOOT + 20 * line), text, fill=style.INK, font=font)
        # The same few colours in every frame, without dithering, keep the file small.
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    return frames


def caption(label: str, game: Game, index: int) -> tuple[str, str]:
    """The two lines below frame ``index``: the step and the action about to be taken, then what has happened."""
    slip = "the last move slipped" if index and game.slipped[index - 1] else ""
    if index < len(game.actions):
        return f"{label} · step {index + 1}: {ACTIONS[game.actions[index]]}", slip
    end = {"goal": "reached the goal", "hole": "fell into a hole", "time": "out of time"}[game.end]
    return f"{label} · {len(game.actions)} steps", f"{end}; {slip}" if slip else end


def cell_pixels(study: Study) -> int:
    """Side of a cell in pixels: smaller on large maps."""
    return max(24, min(64, 384 // max(study.shape)))


def _background(study: Study, policy: Array, side: int) -> "tuple[Image, Image]":
    """The lake with the policy's arrows, RGB, and an image whose palette serves all frames."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows, columns = study.shape
    figure = Figure(figsize=(columns * side / 100, rows * side / 100), dpi=100, facecolor=style.CARD)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_lake(axes, study.rows, "")
    draw_policy(axes, study.rows, policy, numbers=False)
    # A cell is ``side`` pixels wide exactly, so that the agent stands in its middle.
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    canvas.draw()
    lake = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    base = Image.new("RGB", (max(lake.width, LEAST_WIDTH) + 2 * MARGIN, lake.height + 2 * MARGIN + FOOT), style.CARD)
    base.paste(lake, (MARGIN, MARGIN))
    colours = base.quantize(COLOURS - 1, dither=Image.Dither.NONE)
    # The agent is not in the background, so its colour has to be asked for.
    values = colours.getpalette() or []
    values = values[: (COLOURS - 1) * 3] + list(bytes.fromhex(style.AGENT[1:]))
    palette = Image.new("P", (1, 1))
    palette.putpalette(values)
    return base, palette


@cache
def _agent(action: int | None, cell: int) -> "Image":
    """A disc with an arrow that points where the action leads, or with none; RGBA, ``cell`` pixels wide."""
    from PIL import Image, ImageDraw

    # Drawn large and made small, which smooths its edges.
    side = 4 * cell
    sprite = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(sprite)
    middle, radius = side / 2, 0.26 * side
    disc = (middle - radius, middle - radius, middle + radius, middle + radius)
    pen.ellipse(disc, fill=style.AGENT, outline="#ffffff", width=side // 50)
    if action is not None:
        across, down = STEPS[action]
        tip, back, wide = 0.19 * side, 0.1 * side, 0.13 * side
        corners = [(tip, 0), (-back, wide), (-back, -wide)]
        pen.polygon(
            [(middle + a * across - b * down, middle + a * down + b * across) for a, b in corners], fill="#ffffff"
        )
    return sprite.resize((cell, cell), Image.Resampling.LANCZOS)


def _font_file() -> str:
    """The font that matplotlib brings along."""
    from matplotlib.font_manager import findfont

    return str(findfont("DejaVu Sans"))

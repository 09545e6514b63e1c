"""REINFORCE and PPO: the reference that the IFT paper argues against. They play the game and see its rewards.

They make as many updates as the other methods, but also moves on the lake, which the others do not need. M members,
G games, H moves a game at most, S cells, A actions.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from lit_ift.frozen_lake.methods import Lesson, Objective
from lit_ift.frozen_lake.policy import Members
from lit_ift.options import NonNegative, PositiveInt, Range

NumGames = Annotated[int, Range(ge=2)]
OpenUnitInterval = Annotated[float, Range(gt=0, lt=1)]


class Games(NamedTuple):
    """Sampled games."""

    moves: Tensor  # number of the pair (cell, action), cell·A + action, (M, H, G)
    playing: Tensor  # false after the end of a game, (M, H, G)
    returns: Tensor  # discounted reward from each move on, (M, H, G)


@torch.no_grad()
def play(policies: Tensor, lesson: Lesson, seeds: list[int], step: int, games: int) -> Games:
    """Sample games of every member.

    The random numbers depend on (seed, step) alone, so members with the same seed share them and a member plays the
    same in any company. The lesson counts the moves.

    Args:
        policies: probabilities of actions, (M, S, A).
        lesson: the game.
        seeds: N of them; M is a multiple of N.
        step: number of the update.
        games: G.
    """
    game, lake, (members, _, actions) = lesson.game, lesson.game.lake, policies.shape
    draws = torch.stack([_draws(seed, step, game.horizon, games) for seed in seeds])
    draws = draws.repeat(members // len(seeds), 1, 1, 1)
    # The last bound is left out: a number above all others means the last action.
    bounds = policies.cumsum(-1)[..., :-1].flatten(0, 1)
    slips = torch.from_numpy(lake.chances).cumsum(-1)[..., :-1].flatten(0, 1)
    outcomes, terminal = torch.from_numpy(lake.outcomes).flatten(0, 1), torch.from_numpy(lake.terminal)
    goal = torch.from_numpy(lake.goal)
    offset = (torch.arange(members) * lake.num_cells).unsqueeze(-1)
    here = torch.full((members, games), lake.start)
    moves, playing, rewards = [], [], []
    for t in range(game.horizon):
        alive = ~terminal[here]
        if not alive.any():
            break
        action = (draws[:, 0, t].unsqueeze(-1) > bounds[here + offset]).sum(-1)
        move = here * actions + action
        slip = (draws[:, 1, t].unsqueeze(-1) > slips[move]).sum(-1) if lake.slippery else torch.zeros_like(move)
        here = outcomes[move, slip]
        moves.append(move)
        playing.append(alive)
        rewards.append((goal[here] & alive).to(policies.dtype))
    returns = [rewards[-1]]
    for reward in reversed(rewards[:-1]):
        returns.append(reward + game.discount * returns[-1])
    found = Games(torch.stack(moves, 1), torch.stack(playing, 1), torch.stack(returns[::-1], 1))
    lesson.moves += float(found.playing.sum()) / members
    return found


def _draws(seed: int, step: int, horizon: int, games: int) -> Tensor:
    # A multiplicative hash spreads neighbouring steps over the generator's seeds.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step * 2_654_435_761) % 2**63)
    return torch.rand(2, horizon, games, generator=generator, dtype=torch.float64)


def _sums(values: Tensor, games: Games, like: Tensor) -> Tensor:
    """Sum values over all moves of the same cell and action: (M, H, G) -> (M, S, A), shaped ``like`` a table."""
    empty = torch.zeros_like(like).flatten(1)
    return empty.scatter_add(1, games.moves.flatten(1), (values * games.playing).flatten(1)).view_as(like)


@dataclass(frozen=True)
class Reinforce(Objective):
    """REINFORCE (Williams 1992): ``-mean_games Σ_t (G_t - b) log π(a_t|s_t)``, b the mean return of the other games.

    Args:
        games: sampled for each update, at least 2.
    """

    games: NumGames = 16

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        table = policy.table()
        games = play(table.detach().exp(), lesson, policy.seeds, step, self.games)
        of_games = games.returns[:, :1]
        baseline = (of_games.sum(-1, keepdim=True) - of_games) / (self.games - 1)
        weights = _sums(games.returns - baseline, games, table)
        return -(weights * table).sum((1, 2)) / self.games


class Batch(NamedTuple):
    """What PPO keeps of sampled games."""

    before: Tensor  # log-probabilities of the policy that played, (M, S, A)
    gains: Tensor  # sums of the positive advantages over the number of moves, (M, S, A)
    pains: Tensor  # those of the negative ones, as positive numbers, (M, S, A)
    visited: Tensor  # share of the moves that were made in each cell, (M, S)


@dataclass(frozen=True)
class PPO(Objective):
    """Proximal policy optimization with clipping (arXiv:1707.06347, Eq. 7), without a value network.

    The value of a cell is the mean of the sampled returns from it. Advantages are divided by their standard deviation.

    Args:
        games: sampled at a time, at least 2.
        epochs: updates from the same games.
        clip: ε, how far the probability ratio may go, in (0, 1).
        entropy: weight of the mean entropy in the visited cells.
    """

    games: NumGames = 16
    epochs: PositiveInt = 4
    clip: OpenUnitInterval = 0.2
    entropy: NonNegative = 0.01

    def losses(self, policy: Members, lesson: Lesson, step: int) -> Tensor:
        table = policy.table()
        if step % self.epochs == 0:
            lesson.memory["batch"] = self._play(table.detach(), policy.seeds, lesson, step)
        batch: Batch = lesson.memory["batch"]
        ratio = (table - batch.before).exp()
        # min(r·A, clip(r)·A) depends on r and on the sign of A, so gains and losses may be summed beforehand.
        surrogate = batch.gains * ratio.clamp(max=1 + self.clip) - batch.pains * ratio.clamp(min=1 - self.clip)
        entropy = -(table.exp() * table).sum(-1)
        return -surrogate.sum((1, 2)) - self.entropy * (batch.visited * entropy).sum(-1)

    @torch.no_grad()
    def _play(self, table: Tensor, seeds: list[int], lesson: Lesson, step: int) -> Batch:
        games = play(table.exp(), lesson, seeds, step, self.games)
        counts = _sums(torch.ones_like(games.returns), games, table).sum(-1)
        totals = _sums(games.returns, games, table).sum(-1)
        values = totals / counts.clamp(min=1)
        here = games.moves.div(table.shape[-1], rounding_mode="floor")
        advantages = (games.returns - values.gather(1, here.flatten(1)).view_as(games.returns)) * games.playing
        moves = games.playing.sum((1, 2), keepdim=True)
        advantages = advantages / (advantages.square().sum((1, 2), keepdim=True) / moves).sqrt().clamp(min=1e-8)
        gains, pains = (_sums(part.clamp(min=0), games, table) / moves for part in (advantages, -advantages))
        return Batch(table, gains, pains, counts / moves.squeeze(-1))

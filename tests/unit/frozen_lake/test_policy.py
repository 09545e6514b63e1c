"""Members are policies of their own, whatever company they are in."""

import lightning as L
import pytest
import torch
from lakes import lesson_of, loss_of, members_of, small_game

from lit_ift.frozen_lake.methods import DPO, IFT, KTO, SFT, UFT, Objective
from lit_ift.frozen_lake.onpolicy import PPO, Reinforce
from lit_ift.frozen_lake.policy import Members, PolicyModule, cell_features, train

OBJECTIVES = [SFT(), IFT(), IFT(lam_noise=0.5), DPO(), KTO(), UFT(), Reinforce(games=4), PPO(games=4)]


def test_both_layers_by_hand() -> None:
    game = small_game()
    policy = members_of(game, [5, 6])
    first, first_bias, second, second_bias = policy.weights()
    hidden = (policy.features @ first[1] + first_bias[1]).relu()
    expected = (hidden @ second[1] + second_bias[1]).log_softmax(-1)
    torch.testing.assert_close(policy.table()[1], expected, rtol=0, atol=1e-12)


def test_features() -> None:
    lake = small_game(map=["SFF", "FHF", "FFF", "FFG"], suboptimal="hole").lake
    assert torch.equal(cell_features(lake, "one_hot"), torch.eye(12, dtype=torch.float64))
    coordinates = cell_features(lake, "coordinates")
    assert coordinates[0].tolist() == [-1, -1]
    assert coordinates[11].tolist() == [1, 1]
    assert coordinates[4].tolist() == pytest.approx([-1 / 3, 0])


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_member_trained_in_company_is_that_trained_alone(objective: Objective) -> None:
    game, updates, rates = small_game(), 12, [1e-3, 1e-1]

    def trained(seeds: list[int], rates: list[float]) -> torch.Tensor:
        policy = members_of(game, seeds, len(rates))
        loss = loss_of(objective, lesson_of(game, policy, updates))
        train(PolicyModule(policy, loss, rates, updates, 0.1))
        return policy.policies()

    together = trained([3, 4, 5], rates)
    before = members_of(game, [4]).policies()[0]
    for r, rate in enumerate(rates):
        alone = trained([4], [rate])[0]
        torch.testing.assert_close(together[3 * r + 1], alone, rtol=0, atol=1e-9)
        assert (alone - before).abs().max() > 1e-4


def test_initial_weights_depend_on_the_seed_alone() -> None:
    game = small_game()
    many, one = members_of(game, [1, 2, 3], rates=2), members_of(game, [2])
    assert torch.equal(many.policies()[1], many.policies()[4])
    for several, single in zip(many.weights(), one.weights(), strict=True):
        assert torch.equal(several[1], single[0])
        assert not torch.equal(several[0], several[1])


def test_rates_start_from_given_weights_and_then_part() -> None:
    game = small_game()
    policy, other = members_of(game, [1, 2], rates=2), members_of(game, [8, 9])
    policy.start_from(other.weights())
    assert torch.equal(policy.policies()[2:], other.policies())
    train(PolicyModule(policy, loss_of(SFT(), lesson_of(game, policy)), [1e-3, 1e-1], 3, 0.1))
    assert not torch.equal(policy.policies()[:2], policy.policies()[2:])
    assert torch.equal(other.policies(), members_of(game, [8, 9]).policies())


def test_learning_rates_warm_up_and_fall() -> None:
    game = small_game()
    policy = members_of(game, [1], rates=2)
    seen: list[list[float]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    train(PolicyModule(policy, loss_of(SFT(), lesson_of(game, policy)), [1.0, 0.1], 20, 0.1), [Watch()])
    assert len(seen) == 20
    assert seen[0] == pytest.approx([1 / 3, 1 / 30])
    assert seen[2] == pytest.approx([1.0, 0.1])
    assert seen[19][0] < 0.01


def test_it_is_a_lightning_module_with_rmsprop() -> None:
    game = small_game()
    policy = Members(cell_features(game.lake, "coordinates"), 4, [0, 1], 3)
    module = PolicyModule(policy, loss_of(SFT(), lesson_of(game, policy)), [1, 2, 3], 5, 0.1)
    assert isinstance(module, L.LightningModule)
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.RMSprop
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 3 * 2 * (2 * 4 + 4 + 4 * 4 + 4)

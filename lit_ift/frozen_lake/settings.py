"""What can be set of a study; the defaults are those of ``configs/frozen-lake/default.yaml``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from lit_ift.frozen_lake.methods import DPO, IFT, IPO, KTO, ORPO, SFT, UFT, Objective, Options
from lit_ift.frozen_lake.onpolicy import PPO, OpenUnitInterval, Reinforce
from lit_ift.frozen_lake.policy import Features
from lit_ift.frozen_lake.routes import Suboptimal
from lit_ift.options import NonNegative, Positive, PositiveInt, Range

Metric = Literal["mse_trajectory", "mse_all", "success_greedy", "success_sampled", "return", "success_perturbed"]
Start = Literal["random", "clone", "mixture"]

LABELS: Final = {
    "sft": "SFT",
    "ift": "IFT",
    "ift_noisy": "IFT, noisy λ",
    "dpo": "DPO",
    "orpo": "ORPO",
    "ipo": "IPO",
    "kto": "KTO",
    "uft": "UFT",
    "reinforce": "REINFORCE",
    "ppo": "PPO",
}
"""Methods by name, in the order in which they are shown."""

Seed = Annotated[int, Range(ge=0, lt=2**62)]
"""Torch's generators take seeds of 64 bits."""


@dataclass(frozen=True)
class LakeOptions(Options):
    """The game.

    Args:
        map: ``4x4`` or ``8x8``, gymnasium's maps, or own rows of S, F, H and G.
        slippery: moves go astray to either side in one case of three each.
        discount: what a reward is worth one move later, in (0, 1).
        suboptimal: the sub-optimal route: ``longer`` to the goal, or into a ``hole``.
        horizon: moves that a game may last; gymnasium's limit is 100 for its 4x4 map, 200 for 8x8.
    """

    map: str | list[str] = "4x4"
    slippery: bool = False
    discount: OpenUnitInterval = 0.99
    suboptimal: Suboptimal = "longer"
    horizon: PositiveInt = 100


@dataclass(frozen=True)
class PolicyOptions(Options):
    """The policy: two fully connected layers.

    Args:
        features: what it sees of a cell: ``one_hot``, or its ``coordinates``, row and column in [-1, 1].
        hidden: units of the hidden layer, which have the activation ``relu``.
    """

    features: Features = "one_hot"
    hidden: PositiveInt = 32


@dataclass(frozen=True)
class StartOptions(Options):
    """The policy that every method starts from, pre-trained for each seed, the same for all methods.

    Args:
        kind: ``random`` weights; a ``clone`` of the sub-optimal route; or a ``mixture``, the model of a text of the
            shares below.
        suboptimal: share of the sub-optimal route in the mixture.
        optimal: share of the optimal route.
        walks: share of aimless walks, with every action as likely as any other.
        updates: of the pre-training.
        learning_rate: of the pre-training.
    """

    kind: Start = "mixture"
    suboptimal: NonNegative = 0.3
    optimal: NonNegative = 0.15
    walks: NonNegative = 0.55
    updates: PositiveInt = 200
    learning_rate: Positive = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.suboptimal + self.optimal + self.walks - 1) > 1e-6:
            raise ValueError(
                f"suboptimal={self.suboptimal}, optimal={self.optimal} and walks={self.walks} must sum to 1"
            )


@dataclass(frozen=True)
class Protocol(Options):
    """How methods are trained and compared: all alike.

    Args:
        updates: of every method.
        warmup: share of the updates over which the learning rate rises; then it falls along a cosine.
        learning_rates: the ones that are tried out for every method.
        tune_by: the metric whose mean over the tuning seeds chooses the learning rate.
        tuning_seeds: how many seeds choose it.
        seeds: how many other seeds the chosen one is judged on.
        seed: the first of all seeds.
        points: how many points a curve has, besides the start.
    """

    updates: PositiveInt = 200
    warmup: NonNegative = 0.1
    learning_rates: list[Positive] = field(
        default_factory=lambda: [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1, 3.16e-1, 1.0]
    )
    tune_by: Metric = "mse_all"
    tuning_seeds: PositiveInt = 16
    seeds: Annotated[int, Range(ge=2)] = 64
    seed: Seed = 0
    points: PositiveInt = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rates:
            raise ValueError("learning_rates=[] is empty: give at least one")


@dataclass(frozen=True)
class Settings(Options):
    """A whole study.

    Args:
        lake: the game.
        policy: the network.
        start: what training begins from.
        protocol: how methods are trained and compared.
        methods: the ones to compare, of sft, ift, ift_noisy, dpo, orpo, ipo, kto, uft, reinforce, ppo.
        ift: options of IFT.
        ift_noisy: options of IFT with noisy λ.
        dpo: options of DPO.
        orpo: options of ORPO.
        ipo: options of IPO.
        kto: options of KTO.
        uft: options of UFT.
        reinforce: options of REINFORCE.
        ppo: options of PPO.
        output: folder for tables and pictures.
        figures: draw pictures.
        animations: draw a game of every method, as GIF.
        progress: show how far the study is.
    """

    lake: LakeOptions = field(default_factory=LakeOptions)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    start: StartOptions = field(default_factory=StartOptions)
    protocol: Protocol = field(default_factory=Protocol)
    methods: list[str] = field(default_factory=lambda: list(LABELS))
    ift: IFT = field(default_factory=IFT)
    ift_noisy: IFT = field(default_factory=lambda: IFT(lam_noise=0.5))
    dpo: DPO = field(default_factory=DPO)
    orpo: ORPO = field(default_factory=ORPO)
    ipo: IPO = field(default_factory=IPO)
    kto: KTO = field(default_factory=KTO)
    uft: UFT = field(default_factory=UFT)
    reinforce: Reinforce = field(default_factory=Reinforce)
    ppo: PPO = field(default_factory=PPO)
    output: Path = Path("checkpoints/frozen-lake")
    figures: bool = True
    animations: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods or len(set(self.methods)) != len(self.methods) or not set(self.methods) <= set(LABELS):
            raise ValueError(f"methods={self.methods} must name at least one of {', '.join(LABELS)}, and none twice")

    def objective(self, name: str) -> Objective:
        """The objective of a method; SFT has no options."""
        found: Objective = SFT() if name == "sft" else getattr(self, name)
        return found

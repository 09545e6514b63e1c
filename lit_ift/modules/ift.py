"""Intuitive Fine-Tuning."""

from inspect import signature
from typing import TYPE_CHECKING, Any

from lit_ift.losses.ift import Norm, PropagationSide, Source, ift_loss
from lit_ift.losses.token_registry import TokenLoss
from lit_ift.modules.inputs import TemporalResidual
from lit_ift.modules.lambda_schedule import LambdaShape
from lit_ift.modules.predict import Prediction
from lit_ift.modules.reuse import Reuse
from lit_ift.modules.token_module import TokenModule
from lit_ift.options import NonNegative, Positive, PositiveInt, Share, UnitInterval

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class IFTModule(TokenModule):
    """Intuitive Fine-Tuning (arXiv:2405.11870): alignment from instruction data, one policy, no reference.

    A step (Algorithm 1): score the true tokens without gradient and take the model's predictions; mix their
    embeddings into the inputs by λ (eq. 17); score the true tokens from the mixed inputs with gradient; weight the
    token losses by dynamic relation propagation (eq. 21). ``lam=0, gamma=0`` is SFT. It is ``SFTModule`` with the input
    ``temporal_residual`` and the loss ``propagation``, and takes other token losses too.

    Logged besides the loss: ``sft_loss`` (nll of the first pass), ``fused_loss`` (unweighted nll of the second),
    ``lam``, ``token_accuracy`` of the first pass. Steps with reused predictions have no first pass, and log neither
    ``sft_loss`` nor ``token_accuracy``. Validation uses λ without its disturbance.

    Use:
        Where there are instruction rows and no pairs. The paper finds it as good as SFT and some methods of preference
        optimisation, or better, above all where answers need reasoning or facts.
        Each step costs a second forward pass, unless predictions are reused.

    Args:
        model: see ``CausalLMModule``, as for every argument not listed here.
        lam: λ, the share of the prediction in the input, in [0, 1].
        lam_schedule: ``constant``, or ``linear`` from ``lam_start`` to ``lam`` over ``lam_warmup``.
        lam_start: where the linear schedule begins; 0 if not given.
        lam_warmup: a share of all steps if below 1, else a number of steps; 0.1 if not given.
        lam_noise: standard deviation of λ's disturbance, relative to λ ("noisy λ", Table 7).
        lam_seed: seed of the disturbance.
        prediction: ``greedy``, ``top-k`` (the k-th best token) or ``sampled``.
        top_k: the rank that ``top-k`` takes; 2 if not given.
        temperature: of ``sampled``; 0.7 if not given.
        top_p: nucleus of ``sampled``; 1 if not given.
        reuse_predictions: do without the first pass in most steps: ``initial`` takes the predictions of the policy that
            training begins from, made once and kept on disk; ``epoch`` those of the epoch before, and needs two epochs.
        loss: a name in ``lit_ift.losses.TOKEN_LOSSES``, or the import path of a function with their signature.
        options: hyperparameters of another loss than ``propagation``, whose own stand here.
        gamma: decay of the propagation, in [0, 1]; tuned by the authors at a length of 1024 tokens.
        source: what is propagated: ``loss``, ``logps`` or ``mask``.
        side: ``left`` lets early tokens hear about later ones, ``right`` the reverse.
        norm: ``l1``, ``l2``, ``softmax`` or ``log``.
        detach_weights: keep the gradient out of the propagation weights (the authors leave it in).
        detach_input_embeddings: on by default, as in the authors' code; see ``CausalLMModule``.

    Raises:
        ValueError: an option is out of range or has no effect beside the others.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        lam: UnitInterval = 0.2,
        lam_schedule: LambdaShape = "constant",
        lam_start: UnitInterval | None = None,
        lam_warmup: NonNegative | None = None,
        lam_noise: NonNegative = 0.0,
        lam_seed: int = 0,
        prediction: Prediction = "greedy",
        top_k: PositiveInt | None = None,
        temperature: Positive | None = None,
        top_p: Share | None = None,
        reuse_predictions: Reuse | None = None,
        loss: str = "propagation",
        options: dict[str, Any] | None = None,
        gamma: UnitInterval = 0.95,
        source: Source = "loss",
        side: PropagationSide = "left",
        norm: Norm = "l1",
        detach_weights: bool = False,
        detach_input_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.token_input = TemporalResidual(
            lam=lam,
            lam_schedule=lam_schedule,
            lam_start=lam_start,
            lam_warmup=lam_warmup,
            lam_noise=lam_noise,
            lam_seed=lam_seed,
            prediction=prediction,
            top_k=top_k,
            temperature=temperature,
            top_p=top_p,
            reuse_predictions=reuse_predictions,
        )
        own = {"gamma": gamma, "source": source, "side": side, "norm": norm, "detach_weights": detach_weights}
        self.token_loss = TokenLoss(loss, _options(loss, options, own))
        super().__init__(model, detach_input_embeddings=detach_input_embeddings, **kwargs)


def _options(loss: str, options: dict[str, Any] | None, own: dict[str, Any]) -> dict[str, Any] | None:
    """The options of the loss: those of propagation stand beside the module's others.

    Raises:
        ValueError: they are given to another loss, or twice.
    """
    if loss == "propagation":
        if options:
            raise ValueError(
                f"options={options!r} has no effect with loss='propagation'. Set gamma and others directly."
            )
        return own
    defaults = {name: signature(ift_loss).parameters[name].default for name in own}
    if given := [f"{name}={value!r}" for name, value in own.items() if value != defaults[name]]:
        raise ValueError(f"{given[0]} has no effect with loss={loss!r}: it is an option of propagation. Leave it out.")
    return options

"""Supervised fine-tuning, on any input and with any token loss."""

from typing import TYPE_CHECKING, Any

from lit_ift.losses.token_registry import TokenLoss
from lit_ift.modules.inputs import TrueTokens, named_input
from lit_ift.modules.token_module import TokenModule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SFTModule(TokenModule):
    """Supervised fine-tuning on the assistant's tokens: by default the mean negative log-likelihood.

    A loss is a mean over each row's trained tokens; with ``reduction="token"`` the batch mean is the usual mean over
    tokens. What the policy reads (``input``) and how its tokens are judged (``loss``) are chosen apart: the temporal
    residual with the loss ``propagation`` is IFT.

    Logged besides the loss: ``token_accuracy``, the share of trained tokens that the model predicts greedily; what
    the loss itself reports; and for inputs with a look-ahead pass ``lam`` and ``sft_loss``, the nll of that pass.

    Use:
        The usual fine-tuning on instruction data, and the frame of every token loss and input.

    Args:
        model: see ``CausalLMModule``, as for every argument not listed here.
        loss: a name in ``lit_ift.losses.TOKEN_LOSSES`` (nll, dft, propagation, …), or the import path of a function
            with their signature.
        options: hyperparameters of the loss, such as ``{alpha: 0.5}``.
        input: what the policy reads: ``true_tokens``, ``temporal_residual`` (IFT's), ``neftune`` (noise) or
            ``own_tokens`` (predictions in the place of some tokens); see ``lit_ift.modules.inputs``. Or the import path
            of a subclass of ``lit_ift.modules.inputs.TrueTokens``.
        input_options: options of the input, such as ``{lam: 0.2}``.
        **kwargs: see ``ReferenceModule`` for losses with a reference, and ``CausalLMModule``.

    Raises:
        ValueError: there is no such loss or input, or an option that it does not use was given.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
        *,
        loss: str = "nll",
        options: dict[str, Any] | None = None,
        input: str = "true_tokens",
        input_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Before the model, which may take long to load.
        self.token_loss = TokenLoss(loss, options)
        self.token_input = named_input(input, input_options)
        super().__init__(model, **kwargs)

    @property
    def is_plain(self) -> bool:
        """Whether losses are the negative log-likelihoods of rows as they are."""
        return self.token_loss.name == "nll" and type(self.token_input) is TrueTokens

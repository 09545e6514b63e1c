"""Supervised fine-tuning."""

from torch import Tensor

from lit_ift.losses.sft import sft_loss
from lit_ift.modules.base import CausalLMModule
from lit_ift.modules.stepping import ExampleLosses


class SFTModule(CausalLMModule):
    """Supervised fine-tuning on the assistant's tokens: the mean negative log-likelihood.

    ``loss_b = (1/n_b) * sum_t nll[b,t]``; with ``reduction="token"`` the batch mean is the usual mean over tokens.
    Logged besides the loss: ``token_accuracy``, the share of trained tokens that the model predicts greedily.
    """

    def per_example_loss(self, nll: Tensor, mask: Tensor) -> ExampleLosses:
        return sft_loss(nll, mask)

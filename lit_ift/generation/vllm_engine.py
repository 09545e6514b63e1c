"""Generation by vLLM, which is an extra. It has been tested against a stand-in for vLLM only, never against vLLM."""

from collections.abc import Iterator, Sequence
from typing import Any

from lit_ift.errors import UserError, needing
from lit_ift.export.merge import adapter_base
from lit_ift.generation.engine import GenerationOptions
from lit_ift.generation.find import ModelPlace
from lit_ift.generation.opened import LoadOptions, tokenizer_of_place


class VllmEngine:
    """Answers by vLLM, which loads the model itself and makes its own batches (the command refuses ``batch_size``).

    What is not said of sampling is as vLLM has it, not as the model's generation config does.

    Args:
        place: a model or an adapter, not a checkpoint.
        load: how it is opened.

    Raises:
        UserError: vLLM is not installed, or cannot load such a model.
    """

    def __init__(self, place: ModelPlace, load: LoadOptions) -> None:
        with needing("vllm", "vllm", "engine=vllm"):
            import vllm
            from vllm.lora.request import LoRARequest
        if place.kind == "checkpoint":
            raise UserError(
                f"{place.path}: vLLM does not read checkpoints. Export it first: lit-ift export {place.path} FOLDER"
            )
        self._vllm = vllm
        self._adapter = None
        self.tokenizer_source = tokenizer_of_place(place, load.model)
        options: dict[str, Any] = {"dtype": load.dtype or "auto", "trust_remote_code": load.trust_remote_code}
        model = place.path
        if place.kind == "adapter":
            from peft import PeftConfig

            model = adapter_base(place.folder, load.model)
            rank = PeftConfig.from_pretrained(place.path).r
            options |= {"enable_lora": True, "max_lora_rank": rank}
            self._adapter = LoRARequest("adapter", 1, place.path)
        self._llm = vllm.LLM(model=model, tokenizer=self.tokenizer_source, **options)

    def generate(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> Iterator[tuple[int, list[str]]]:
        """See `Engine`. Tokens that end an answer are those of the model's generation config."""
        parameters = self._vllm.SamplingParams(
            n=options.num_answers,
            max_tokens=options.max_new_tokens,
            seed=options.seed,
            skip_special_tokens=True,
            **(options.sampling or {"temperature": 0.0}),
        )
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            parameters,
            use_tqdm=False,
            lora_request=self._adapter,
        )
        for index, output in enumerate(outputs):
            yield index, [answer.text for answer in output.outputs]

"""`lit-ift eval` on small local tasks of each kind, with a tiny model and an adapter of it."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import run as lit_ift
from rowfiles import jsonl
from tiny import tiny_base_tokenizer, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_ift.errors import UserError
from lit_ift.evaluation.kinds import KINDS
from lit_ift.evaluation.results import TaskResult, comparable, read_results
from lit_ift.evaluation.run import evaluate
from lit_ift.evaluation.tasks import TaskOptions
from lit_ift.evaluation.worker import work
from lit_ift.export import export_model
from lit_ift.generation.opened import LoadOptions
from lit_ift.models.load import load_model
from lit_ift.models.lora import add_lora

PAGE = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
CHOICES = ["a dog", "two", "Paris is it", "b"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": f"What is {i} + 1?", "answer": f"It is\n#### {i + 1}"} for i in range(3)],
    "arc": [{"question": f"Which {i}?", "choices": CHOICES, "answer": i} for i in range(4)],
    "truthfulqa_mc1": [{"question": f"Why {i}?", "mc1_targets": {"no": 0, "yes": 1, "never": 0}} for i in range(3)],
    "truthfulqa_mc2": [
        {"question": f"Why {i}?", "mc2_targets": {"no": 0, "yes": 1, "never": 0, "it is": 1}} for i in range(3)
    ],
    "ifeval": [
        {"prompt": f"Say {i}.", "instruction_id_list": ["punctuation:no_comma", *more], "kwargs": [{}, *more.values()]}
        for i, more in enumerate([{}, {"keywords:existence": {"keywords": ["b"]}}, {"my:own": {}}])
    ],
    "exact_match": [{"input": f"Say {i}.", "target": "x"} for i in range(3)],
}
OWN = """\
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: mcc}}]
"""
SHORT = ("--max_new_tokens", 6, "--device", "cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model(dtype=torch.float32, max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapted = add_lora(load_model(str(base)), {"r": 4})
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokenizer: Any = tiny_tokenizer()
    folder = tmp_path_factory.mktemp("tuned") / "adapter"
    return export_model(adapted, folder, tokenizer=tokenizer, tokenizer_source=None, metadata={})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What names each task."""
    folder = tmp_path_factory.mktemp("rows")
    for kind, rows in ROWS.items():
        (folder / f"{kind}.rows.jsonl").write_bytes(jsonl(rows))
    own = folder / "own.yaml"
    own.write_text(OWN.format(rows=folder / "arc.rows.jsonl", cache=folder / "cache"))
    named = {kind: f"{kind}={folder / kind}.rows.jsonl" for kind in ROWS}
    return {**named, "own": str(own), "gym": "reasoning_gym=spell_backward"}


@pytest.fixture(scope="module")
def output(base: Path, adapter: Path, tasks: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one call for all models and tasks leaves."""
    folder = tmp_path_factory.mktemp("output") / "eval"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_ift.evaluation.run._of_a_process", partial(in_this_process, folder=folder.parent / "work"))
        assert (
            lit_ift("eval", base, adapter, "--tasks", *tasks.values(), "--output", folder, "--max_rows", 4, *SHORT) == 0
        )
    return folder


def find(output: Path, model: Path, task: str, metric: str) -> TaskResult:
    found = read_results(output / "results.json")
    (result,) = (r for r in found if (r.model, r.task, r.metric) == (str(model), task, metric))
    return result


def log_likelihood(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    """Of an answer in a chat: the sum of its tokens' log-probabilities, and that of the line break before it."""
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant"
    before, ids = tokenizer.encode(prompt), tokenizer.encode(f"{prompt}\n{answer}")
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(scores[place - 1, ids[place]]) for place in range(len(before), len(ids)))


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_scores_of_choices_are_those_by_hand(
    which: str, request: pytest.FixtureRequest, output: Path, base: Path
) -> None:
    folder = request.getfixturevalue(which)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if which == "base":
        model: Any = AutoModelForCausalLM.from_pretrained(base)
    else:
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(folder)
    right, right_by_length = {}, {}
    for index, row in enumerate(ROWS["arc"]):
        found = [log_likelihood(model, tokenizer, f"Question: {row['question']}\nAnswer:", c) for c in CHOICES]
        by_length = [value / len(choice) for value, choice in zip(found, CHOICES, strict=True)]
        right[str(index + 1)] = float(found.index(max(found)) == index)
        right_by_length[str(index + 1)] = float(by_length.index(max(by_length)) == index)
    for metric, wanted in (("acc", right), ("acc_norm", right_by_length)):
        result = find(output, folder, "arc=arc", metric)
        assert result.scores == wanted
        share = sum(wanted.values()) / 4
        assert (result.value, result.n) == (share, 4)
        assert result.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 3))

    asked = "\nA: The 1992 Olympics were held in Barcelona, Spain.\n\nQ: {}\nA:"
    result = find(output, folder, "truthfulqa_mc2=truthfulqa_mc2", "acc")
    assert result.scores is not None
    start = _prompt_of_truthfulqa()
    for index, row in enumerate(ROWS["truthfulqa_mc2"]):
        question = start + asked.format(row["question"])
        weights = [
            (label, math.exp(log_likelihood(model, tokenizer, question, choice)))
            for choice, label in row["mc2_targets"].items()
        ]
        wanted = sum(weight for label, weight in weights if label) / sum(weight for _, weight in weights)
        assert result.scores[str(index + 1)] == pytest.approx(wanted, rel=1e-3)


def _prompt_of_truthfulqa() -> str:
    """The six examples that the harness's task begins with, but for the end of the last one."""
    import lm_eval.tasks
    from jinja2 import Template
    from lm_eval.tasks._yaml_loader import load_yaml

    values = load_yaml(Path(lm_eval.tasks.__file__).parent / "truthfulqa" / "truthfulqa_mc1.yaml", resolve_func=False)
    text = Template(values["doc_to_text"]).render(question="")
    return text[: text.index("\nA: The 1992 Olympics")]


def test_answers_are_generated_as_in_a_chat(output: Path, base: Path) -> None:
    """The harness stops where the model does, and what it scores is its whole answer."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    wanted = {}
    for index, row in enumerate(ROWS["ifeval"][:2]):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        tokens = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        holds = [bool(text.strip()) and "," not in text, re.search("b", text, re.IGNORECASE) is not None]
        wanted[str(index + 1)] = holds[: len(row["instruction_id_list"])]
    whole = find(output, base, "ifeval=ifeval", "prompt_level_strict_acc")
    assert whole.scores == {item: float(all(holds)) for item, holds in wanted.items()}
    single = find(output, base, "ifeval=ifeval", "inst_level_strict_acc")
    assert single.weights == {"1": 1, "2": 2}
    assert single.value == pytest.approx(sum(map(sum, wanted.values())) / 3)
    assert whole.measured == "2 of 3 rows"
    assert whole.left_out == {"my:own: the harness has no checker of this kind": 1}


def test_every_task_has_its_result_for_both_models(output: Path, base: Path, adapter: Path) -> None:
    found = read_results(output / "results.json")
    metrics: dict[str, list[str]] = {}
    for result in found:
        if result.model == str(adapter):
            metrics.setdefault(result.task, []).append(result.metric)
    assert metrics["gsm8k=gsm8k"] == ["exact_match (strict-match)", "exact_match (flexible-extract)"]
    assert metrics["own"] == ["acc", "mcc"]
    assert metrics["reasoning_gym=spell_backward"] == ["exact", "score"]
    assert len(metrics) == len(ROWS) + 2
    assert len(found) == 2 * sum(map(len, metrics.values()))
    correlation = find(output, base, "own", "mcc")
    assert (correlation.scores, correlation.n) == (None, 4)  # No mean over items.
    part = find(output, base, "reasoning_gym=spell_backward", "score")
    assert part.scores is not None
    assert next(iter(part.scores)) == "spell_backward/val#0"
    assert (output / "results.png").read_bytes()[1:4] == b"PNG"
    first, second = (find(output, model, "truthfulqa_mc2=truthfulqa_mc2", "acc") for model in (base, adapter))
    assert first.scores != second.scores
    assert comparable(first, second)


def in_this_process(spec: dict[str, Any], folder: Path, stop_after: int = 99) -> Iterator[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    work(spec, folder, events.append)
    for number, event in enumerate(events):
        if number == stop_after:
            raise KeyboardInterrupt
        yield event


def test_what_is_done_is_not_done_again(
    output: Path, base: Path, adapter: Path, tasks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", base, adapter, "--tasks", *tasks.values(), "--output", output, "--max_rows", 4, *SHORT)
    before = (output / "results.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        assert lit_ift(*words) == 0
    assert (output / "results.json").read_text() == before

    options = TaskOptions(max_rows=2)
    call = partial(
        evaluate, [str(base)], [tasks["arc"], tasks["gym"]], tmp_path / "two", options=options, load=LoadOptions()
    )
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        call(say=said.append, events=lambda spec: in_this_process(spec, tmp_path / "a", 3))
    assert [result.task for result in read_results(tmp_path / "two" / "results.json")] == ["arc=arc"] * 2
    asked: list[dict[str, Any]] = []

    def events(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
        asked.append(spec)
        return in_this_process(spec, tmp_path / str(len(asked)))

    assert len(call(say=said.append, events=events)) == 4
    assert asked[0]["models"][0]["tasks"] == ["reasoning_gym=spell_backward"]
    assert "1 of 2 results are in" in said[-2]
    changed = call(say=said.append, events=events, options=TaskOptions(max_rows=1))
    assert len(asked[1]["models"][0]["tasks"]) == 2
    assert [(result.n, result.measured) for result in changed[:2]] == [(1, "1 of 4 rows")] * 2
    assert len(read_results(tmp_path / "two" / "results.json")) == 4  # The old ones made way.


@pytest.fixture
def without_template(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny_model(dtype=torch.float32, max_position_embeddings=2048).save_pretrained(folder)
    tiny_base_tokenizer().save_pretrained(folder)
    return folder


def test_a_process_of_its_own_keeps_what_was_scored_before_an_error(
    base: Path, without_template: Path, tasks: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", base, without_template, "--tasks", tasks["gym"], "--output", tmp_path / "eval", "--max_rows", 2)
    assert lit_ift(*words, *SHORT) == 1
    out, told = capfd.readouterr()
    assert not out
    assert "[1/2] reasoning_gym=spell_backward: model" in told
    assert "error: The tokenizer" in told
    assert "has no chat template" in told
    assert [result.n for result in read_results(tmp_path / "eval" / "results.json")] == [2, 2]


def test_a_base_model_is_scored_without_a_template(
    tasks: dict[str, str], without_template: Path, tmp_path: Path
) -> None:
    folder = without_template
    call = partial(evaluate, [str(folder)], [tasks["arc"]], tmp_path / "eval", load=LoadOptions(), say=lambda _: None)
    with pytest.raises(UserError, match="has no chat template: it is that of a base model"):
        call(options=TaskOptions(), events=lambda spec: in_this_process(spec, tmp_path / "a"))
    found = call(options=TaskOptions(plain=True), events=lambda spec: in_this_process(spec, tmp_path / "b"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = {}
    for index, row in enumerate(ROWS["arc"]):
        prompt, scores = f"Question: {row['question']}\nAnswer:", []
        for choice in CHOICES:
            ids = tokenizer.encode(f"{prompt} {choice}")
            with torch.no_grad():
                every = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(every[i - 1, ids[i]]) for i in range(len(tokenizer.encode(prompt)), len(ids))))
        right[str(index + 1)] = float(scores.index(max(scores)) == index)
    assert found[0].scores == right


def test_examples_come_from_the_other_rows(base: Path, tasks: dict[str, str], tmp_path: Path) -> None:
    call = partial(evaluate, [str(base)], [tasks["gsm8k"]], tmp_path / "eval", load=LoadOptions(), say=lambda _: None)
    options = TaskOptions(num_fewshot=2, max_new_tokens=2)
    (result, _) = call(options=options, events=lambda spec: in_this_process(spec, tmp_path / "a"))
    assert result.options["num_fewshot"] == 2
    with pytest.raises(UserError, match=r"num_fewshot=3 examples and a question need 4 rows, but there are 3"):
        call(options=TaskOptions(num_fewshot=3), events=lambda spec: in_this_process(spec, tmp_path / "b"))
    with pytest.raises(
        UserError, match=r"answers of up to 4000 tokens, which leaves no room .* lower --max_new_tokens"
    ):
        call(options=TaskOptions(max_new_tokens=4000), events=lambda spec: in_this_process(spec, tmp_path / "c"))


MEMBER = """\
  - task: {name}
    dataset_path: json
    dataset_kwargs: {{data_files: {{test: {rows}}}}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{{{question}}}}"
    doc_to_choice: "{{{{choices}}}}"
    doc_to_target: "{{{{answer}}}}"
    metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_group_is_scored_over_all_its_items(
    base: Path, tmp_path: Path, tasks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.jsonl").write_bytes(jsonl(ROWS["arc"][:1]))
    arc = tasks["arc"].removeprefix("arc=")
    members = MEMBER.format(name="first", rows=arc) + MEMBER.format(name="second", rows=tmp_path / "one.jsonl")
    end = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (tmp_path / "both.yaml").write_text(f"group: both\ntask:\n{members}{end}")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    call = partial(evaluate, [str(base)], load=LoadOptions(), options=TaskOptions(), say=lambda _: None)
    found = call([str(tmp_path / "both.yaml")], tmp_path / "eval", events=partial(in_this_process, folder=tmp_path))
    assert [(result.task, result.n) for result in found] == [("both::first", 4), ("both::second", 1), ("both", 5)]
    first, second, both = found
    assert both.named == "both"
    assert both.value == pytest.approx((4 * first.value + second.value) / 5)
    assert both.scores is not None
    assert list(both.scores)[-1] == "both::second/0"

    (tmp_path / "one.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"The task both cannot be loaded: FileNotFoundError: .*one.jsonl.*Mend its file"
    ):
        call([str(tmp_path / "both.yaml")], tmp_path / "eval", events=partial(in_this_process, folder=tmp_path))


def test_a_name_that_the_harness_does_not_have(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: SimpleNamespace(all_tasks=["arc_easy", "gsm8k"]))
    call = partial(evaluate, [str(base)], load=LoadOptions(), options=TaskOptions(), say=lambda _: None)
    for name, wanted in (("arc_eazy", "Did you mean 'arc_easy'?"), ("exact_match", "as in exact_match=FILE")):
        with pytest.raises(UserError, match=re.escape(wanted)):
            call([name], tmp_path / "eval", events=partial(in_this_process, folder=tmp_path))


def test_bad_input(
    base: Path,
    tasks: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "eval"

    def fails(*words: Any, code: int = 1) -> str:
        assert lit_ift("eval", *words, "--output", output) == code
        return capsys.readouterr().err

    assert "there is no such file or folder" in fails(tmp_path / "none", "--tasks", tasks["arc"])
    assert "is named twice" in fails(base, base, "--tasks", tasks["arc"])
    assert "is named twice" in fails(base, "--tasks", tasks["arc"], tasks["arc"])
    assert "Did you mean 'gsm8k'?" in fails(base, "--tasks", "gsm8=rows.jsonl")
    assert "Did you mean 'spell_backward'?" in fails(base, "--tasks", "reasoning_gym=spell_backwards")
    assert "gsm8k= names no file" in fails(base, "--tasks", "gsm8k=")
    assert "reasoning_gym: name of a task" in fails(base, "--tasks", "x=y")
    assert "none.jsonl" in fails(base, "--tasks", f"arc={tmp_path / 'none.jsonl'}")
    (tmp_path / "bad.yaml").write_text("dataset_path: json\n")
    assert "has a line such as 'task: my_task'" in fails(base, "--tasks", tmp_path / "bad.yaml")
    (tmp_path / "config.yaml").write_text("data: {class_path: InstructionDataModule}\n")
    assert "its data has no tasks" in fails(base, "--tasks", f"reasoning_gym={tmp_path}")
    assert "--max_rows" in fails(base, "--tasks", tasks["arc"], "--max_row", 1, code=2)
    assert "max_rows=0 must be at least 1" in fails(base, "--tasks", tasks["arc"], "--max_rows", 0)
    assert "batch_size=0 must be at least 1" in fails(base, "--tasks", tasks["arc"], "--batch_size", 0)
    assert "tasks" in fails(base, code=2)
    output.mkdir()
    (output / "results.json").write_text("{}")
    assert "is no file of results" in fails(base, "--tasks", tasks["arc"])
    (output / "results.json").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'lit-ift[eval]'" in fails(base, "--tasks", "arc_easy")
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    assert "pip install 'lit-ift[tasks]'" in fails(base, "--tasks", "reasoning_gym=spell_backward")


def test_the_page_has_every_kind() -> None:
    assert all(f"`{kind}`" in PAGE for kind in KINDS)
    assert json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])["format"] == 1  # type: ignore[index]

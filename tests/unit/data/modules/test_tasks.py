"""TasksDataModule: reproducible, disjoint, scored by the task's own verifier."""

import sys

import pytest

from lit_ift.data.modules.tasks import TasksDataModule
from lit_ift.data.modules.verifiable import TaskItem, VerifiableDataModule
from lit_ift.errors import UserError

pytest.importorskip("reasoning_gym", reason="needs the extra 'tasks'")

TASKS = {"spell_backward": {"min_word_len": 3, "max_word_len": 5}, "chain_sum": {"max_terms": 2, "max_digits": 1}}


def questions(module: TasksDataModule, split: str) -> list[tuple[str, str]]:
    return [(r.origin.split("/")[0], r.data["messages"][-2]["content"]) for r in module.records(split)]


def test_rows_are_reproducible_and_differ_by_seed() -> None:
    first = list(TasksDataModule(TASKS, train_size=30, val_size=10).records("train"))
    assert list(TasksDataModule(TASKS, train_size=30, val_size=10).records("train")) == first
    assert list(TasksDataModule(TASKS, train_size=30, val_size=10, seed=1).records("train")) != first
    assert [record.origin for record in first[:2]] == ["spell_backward/train#0", "spell_backward/train#1"]
    assert len(first) == 60


def test_rows_are_messages_with_the_right_answer() -> None:
    module = TasksDataModule(TASKS, train_size=2, val_size=1, system_prompt="Answer only.")
    system, user, assistant = next(module.records("train")).data["messages"]
    assert system == {"role": "system", "content": "Answer only."}
    word = user["content"].split(": ")[-1]
    assert assistant == {"role": "assistant", "content": word[::-1]}


def test_questions_are_distinct_within_and_across_splits() -> None:
    # One-digit sums of up to two terms: 10 + 200 questions, so that most draws repeat one.
    module = TasksDataModule(
        {"chain_sum": {"min_terms": 1, "max_terms": 2, "max_digits": 1}}, train_size=150, val_size=50
    )
    train, val = questions(module, "train"), questions(module, "val")
    assert (len(set(train)), len(set(val))) == (150, 50)
    assert not set(train) & set(val)


def test_validation_questions_outlast_another_train_size_and_train_grows_at_its_end() -> None:
    small, large = (TasksDataModule(TASKS, train_size=size, val_size=20) for size in (5, 40))
    assert questions(small, "val") == questions(large, "val")
    assert questions(large, "train")[:5] == questions(small, "train")[:5]


def test_test_questions_are_others_and_leave_validation_as_it_was() -> None:
    config = {"chain_sum": {"min_terms": 1, "max_terms": 2, "max_digits": 1}}
    without = TasksDataModule(config, train_size=20, val_size=50)
    module = TasksDataModule(config, train_size=80, val_size=50, test_size=40)
    train, val, test = (questions(module, split) for split in ("train", "val", "test"))
    assert (len(set(train)), len(set(val)), len(set(test))) == (80, 50, 40)
    assert len({*train, *val, *test}) == 170
    assert questions(without, "val") == val
    assert questions(TasksDataModule(config, train_size=5, val_size=50, test_size=60), "test")[:40] == test
    assert list(module.records("predict")) == list(module.records("test"))
    only = TasksDataModule(config, train_size=0, val_size=0, test_size=3)
    assert [record.origin for record in only.records("predict")] == [f"chain_sum/test#{i}" for i in range(3)]


def test_a_missing_split_names_its_option() -> None:
    module = TasksDataModule(TASKS, train_size=0, val_size=1)
    with pytest.raises(UserError, match=r"There is no train data. Set data.train_size."):
        module.train_dataloader()
    for split in ("test", "predict"):
        assert module.split_option(split) == "data.test_size"


def test_too_small_a_task_says_so() -> None:
    module = TasksDataModule({"chain_sum": {"min_terms": 1, "max_terms": 1, "max_digits": 1}}, train_size=9, val_size=2)
    with pytest.raises(
        UserError, match=r"'chain_sum' is too small: 10 different questions .*\(2 of them held out\), but 11"
    ):
        list(module.records("train"))


def test_score_is_the_verifiers_on_the_stripped_answer(tokenizer) -> None:
    module = TasksDataModule(TASKS, train_size=5, val_size=4, tokenizer=tokenizer)
    assert isinstance(module, VerifiableDataModule)
    items = module.eval_items(3)
    assert [item.row_id for item in items] == [f"{task}/val#{i}" for task in TASKS for i in range(3)]
    assert items == module.eval_items()[:3] + module.eval_items()[4:7]
    for item in items:
        assert item.messages[-1]["role"] == "user"
        assert module.score(item, f"  {item.answer}\n") == 1.0
        assert module.score(item, "certainly not") < 1.0
        assert module.score(item, "") < 0.5
    # chain_sum's verifier takes other spellings of the same number
    number = items[3]
    assert module.score(number, f"{number.answer}.00") == 1.0
    with pytest.raises(UserError, match=r"chain_sum/val#77 is not a question of this data module"):
        module.score(TaskItem("chain_sum", number.messages, number.answer, "chain_sum/val#77"), "1")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tasks": {}}, "data.tasks is empty"),
        ({"tasks": {"spell_backwards": {}}}, "Unknown task 'spell_backwards'. Did you mean 'spell_backward'.* Valid: "),
        (
            {"tasks": {"chain_sum": {"max_term": 2}}},
            "no option 'max_term'. Did you mean 'max_terms'.* Valid: allow_neg",
        ),
        ({"tasks": {"chain_sum": {"seed": 2}}}, "'seed' is set by the data module"),
        ({"tasks": {"chain_sum": {"min_terms": 5, "max_terms": 2}}}, "is refused: max_terms must be >= min_terms"),
        ({"tasks": TASKS, "train_size": 0, "val_size": 0}, "must not all be 0"),
        ({"tasks": TASKS, "system_prompt": " "}, "system_prompt is empty"),
    ],
)
def test_wrong_arguments(arguments: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        TasksDataModule(**arguments)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r"pip install 'lit-ift\[tasks\]'"):
        TasksDataModule(TASKS)


def test_setup_encodes_both_splits(tokenizer) -> None:
    module = TasksDataModule(TASKS, train_size=6, val_size=3, tokenizer=tokenizer, batch_size=4)
    module.setup("fit")
    assert (module.reports["train"].rows_kept, module.reports["val"].rows_kept) == (12, 6)
    assert len(list(module.train_dataloader())) == 3
    assert module.test_dataloader() == []
    assert TasksDataModule(TASKS, val_size=0).val_dataloader() == []
    with pytest.raises(UserError, match=r"Set data.val_size"):
        TasksDataModule(TASKS, val_size=0).eval_items()


def test_a_task_that_depends_on_string_hashes_needs_a_fixed_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(UserError, match=r"'word_ladder' depends on Python's string hashes.*PYTHONHASHSEED=0"):
        TasksDataModule({"word_ladder": {}})
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(list(TasksDataModule({"isomorphic_strings": {}}, train_size=2).records("train"))) == 2


def test_rows_go_on_beyond_one_block_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(TasksDataModule(TASKS, train_size=25, val_size=5).records("train"))
    monkeypatch.setattr("lit_ift.data.modules.tasks.BLOCK", 7)
    assert list(TasksDataModule(TASKS, train_size=25, val_size=5).records("train")) == whole

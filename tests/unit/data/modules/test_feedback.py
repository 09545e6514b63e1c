"""FeedbackDataModule: which rows meet which module, bad pairs, parts of a mixed objective, sizes of batches."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rowfiles import feedback_rows, write_feedback
from tiny import tiny_tokenizer
from torch import nn

from lit_ift.data import FeedbackDataModule, InstructionDataModule, Source
from lit_ift.data.rows import ROW_KINDS
from lit_ift.errors import RowError, UserError

COUNTS = {"instruction": 5, "preference": 6, "unpaired": 4, "scored": 7}


class FakeModule:
    """What a data module asks of a module."""

    tokenizer = None

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def taker(*kinds: str, **attributes: Any) -> FakeModule:
    return FakeModule(kinds=frozenset(kinds), needs_gold=False, **attributes)


def with_trainer(data: Any, module: Any, fn: str = "fit") -> Any:
    data.trainer = SimpleNamespace(
        lightning_module=module,
        is_global_zero=True,
        state=SimpleNamespace(fn=fn),
        overfit_batches=0,
        accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(
            restarted_on_epoch_start=False,
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)),
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0))),
        ),
    )
    return data


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    return write_feedback(tmp_path, **COUNTS)


def jsonl(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def kinds_of(batch: dict) -> list[str]:
    return [ROW_KINDS[kind] for kind in batch["row_kinds"]]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_row_of_every_kind_comes_once(paths: dict[str, str], tokenizer, packing: bool, num_workers: int) -> None:
    data = FeedbackDataModule(
        list(paths.values()), tokenizer=tokenizer, batch_size=4, packing=packing, num_workers=num_workers, cache=False
    )
    data.setup("fit")
    rows = list(data.datasets["train"].rows)
    data.datasets["train"].reference_logps = np.arange(28, dtype=np.float32)
    expected = {row.row_id: row for row in rows}
    logps = dict(zip(expected, np.split(np.arange(28), data.datasets["train"].answer_offsets[1:]), strict=True))
    seen: list[str] = []
    for batch in data.train_dataloader():
        assert ("sequence_ids" in batch) == packing
        seen += batch["row_ids"]
        assert kinds_of(batch) == [expected[row_id].kind for row_id in batch["row_ids"]]
        assert batch["reference_logps"].tolist() == [x for row_id in batch["row_ids"] for x in logps[row_id]]
        scores = [expected[row_id].score for row_id in batch["row_ids"]]
        assert batch["scores"].nan_to_num(-1).tolist() == pytest.approx([-1 if s is None else s for s in scores])
    assert sorted(seen) == sorted(expected)
    assert data.reports["train"].kinds == COUNTS


def test_batches_of_evaluation_have_the_same_rows_however_training_batches_are_made(
    paths: dict[str, str], tokenizer
) -> None:
    """With a number of rows of its own, evaluation heeds neither a budget of tokens nor packing."""

    def rows(**options: Any) -> list[list[str]]:
        data = FeedbackDataModule(
            paths["preference"], val=paths["scored"], tokenizer=tokenizer, eval_batch_size=2, cache=False, **options
        )
        data.setup("fit")
        return [batch["row_ids"] for batch in data.val_dataloader()]

    padded = rows(batch_size=4)
    assert sorted(row_id for batch in padded for row_id in batch if row_id) == [
        f"{paths['scored']}:{i}" for i in range(1, 8)
    ]
    assert rows(batch_size=4, packing=True) == padded
    assert rows(tokens_per_batch=400) == padded
    assert rows(tokens_per_batch=400, packing=True) == padded


def test_rows_are_cached_and_parts_change_no_row(paths: dict[str, str], tokenizer, tmp_path: Path) -> None:
    folders = []
    for part in (None, "x"):
        source = Source(paths["preference"], part=part)
        data = FeedbackDataModule([source], tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"))
        data.prepare_data()
        data.setup("fit")
        folders.append(data.cache_folder("train"))
        assert data.datasets["train"].num_answers == 12
        assert data.hparams["train"] == [{**data.hparams["train"][0], "part": part}]
    assert folders[0] == folders[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(UserError, match="part=3 must be text"):
        Source(paths["preference"], part=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(COUNTS))
def test_rows_of_a_kind_that_the_module_does_not_take(paths: dict[str, str], tokenizer, kind: str) -> None:
    others = [other for other in ROW_KINDS if other != kind]
    data = FeedbackDataModule(list(paths.values()), tokenizer=tokenizer, cache=False)
    first = f"{COUNTS[kind]} rows are {kind} data, the first of them {paths[kind]}:1\\. Choose a module that takes"
    listed = " and ".join(others)
    with pytest.raises(UserError, match=f"data.train: FakeModule trains on {listed} rows, but {first} {kind} rows, or"):
        with_trainer(data, taker(*others)).setup("fit")
    with_trainer(data, taker(*ROW_KINDS)).setup("fit")
    with_trainer(data, FakeModule()).setup("fit")  # it says nothing of kinds


def test_the_match_is_looked_at_in_every_split_and_data_module(paths: dict[str, str], tokenizer) -> None:
    data = FeedbackDataModule(
        paths["preference"], val=paths["scored"], predict=paths["instruction"], tokenizer=tokenizer, cache=False
    )
    pairs_only = taker("preference")
    with pytest.raises(UserError, match=r"data.val: FakeModule trains on preference rows, but 7 rows are scored"):
        with_trainer(data, pairs_only).setup("fit")
    with_trainer(data, pairs_only, "predict").setup("predict")  # a prompt is all that it needs
    (batch,) = data.predict_dataloader()
    assert "answer_rows" not in batch
    assert [len(batch["row_ids"]), *batch["input_ids"].shape[:1]] == [5, 5]
    plain = InstructionDataModule(paths["instruction"], tokenizer=tokenizer, cache=False)
    with pytest.raises(UserError, match="trains on preference rows, but 5 rows are instruction data, the first"):
        with_trainer(plain, pairs_only).setup("fit")
    with pytest.raises(UserError, match="Use FeedbackDataModule, which takes all kinds, or set the layout to 'chosen'"):
        InstructionDataModule(paths["preference"], tokenizer=tokenizer, cache=False).setup("fit")


def test_pairs_without_the_gold_answer_that_a_loss_needs(tmp_path: Path, tokenizer) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = jsonl(tmp_path / "a.jsonl", {**pair, "gold": "c"}, pair, pair)
    data = FeedbackDataModule(path, tokenizer=tokenizer, cache=False)
    module = FakeModule(kinds=frozenset({"preference"}), needs_gold=True)
    with pytest.raises(UserError, match=r"FakeModule needs a third answer.* 2 pairs have none, .* \S*a\.jsonl:2\. Add"):
        with_trainer(data, module).setup("fit")
    whole = FeedbackDataModule(path, tokenizer=tokenizer, cache=False, max_rows=1)
    with_trainer(whole, module).setup("fit")
    (batch,) = whole.train_dataloader()
    assert batch["answer_sides"].tolist() == [1, 2, 3]


BAD = [
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected", "the same answer as 'chosen'", "field"),
    ({"prompt": "q", "chosen": "a", "rejected": " a "}, "rejected", "the same answer as 'chosen'", "field"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected", "is empty", "field"),
    ({"prompt": "q", "chosen": "", "rejected": "a"}, "chosen", "is empty", "field"),
    ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected", "is null", "layout"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "preference": 0.4}, "preference", r"outside \[0.5, 1\]", "field"),
    ({"prompt": "q", "completion": "a", "score": None}, "score", "is null", "layout"),
    ({"prompt": "q", "completion": "a", "label": None}, "label", "is null", "layout"),
    ({"prompt": "q", "completion": "a", "label": "?"}, "label", "is '\\?'", "field"),
    ({"prompt": "q", "completion": "", "score": 1}, "completion", "is empty", "field"),
    # Both answers are cut to the same tokens.
    (
        {"prompt": "q", "chosen": "z" * 99 + "1", "rejected": "z" * 99 + "2"},
        "rejected",
        "the chosen and the rejected answer are the same within max_length=60 tokens",
        "no_target",
    ),
]


@pytest.mark.parametrize(("row", "field", "problem", "reason"), BAD)
def test_bad_feedback_is_refused_or_counted(
    tmp_path: Path, tokenizer, row: dict, field: str, problem: str, reason: str
) -> None:
    kind = "preference" if "chosen" in row else "scored" if "score" in row else "unpaired"
    path = jsonl(tmp_path / "a.jsonl", feedback_rows(kind, 1)[0], row)
    with pytest.raises(RowError, match=rf"a\.jsonl:2: field '{field}'.*{problem}"):
        FeedbackDataModule(path, tokenizer=tokenizer, cache=False, max_length=60).setup("fit")
    data = FeedbackDataModule(path, tokenizer=tokenizer, cache=False, max_length=60, on_bad_row="skip")
    data.setup("fit")
    assert data.reports["train"].rows_kept == len(data.datasets["train"]) == 1
    assert data.reports["train"].skipped_by_reason == {reason: 1}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b", "preference": 1.1}, "'preference' is 1.1"),
        ({"prompt": "q", "completion": "a", "score": 1.5}, r"'score' is 1.5, outside \[0, 1\]"),
        ({"prompt": "q", "completion": "a", "label": 2}, "'label' is 2"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_values_of_another_range_stop_the_source(
    tmp_path: Path, tokenizer, row: dict, problem: str, on_bad_row: str
) -> None:
    kind = "preference" if "chosen" in row else "scored" if "score" in row else "unpaired"
    path = jsonl(tmp_path / "a.jsonl", feedback_rows(kind, 1)[0], row)
    data = FeedbackDataModule(path, tokenizer=tokenizer, max_length=60, on_bad_row=on_bad_row)
    with pytest.raises(UserError, match=rf"a\.jsonl:2: field {problem}"):
        data.setup("fit")
    assert not data.datasets


def test_answers_that_the_tokenizer_cannot_tell_apart(tmp_path: Path, make_tokenizer) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    path = jsonl(
        tmp_path / "a.jsonl", *feedback_rows("preference", 1), {"prompt": "q", "chosen": "ﬁ", "rejected": "fi"}
    )
    data = FeedbackDataModule(path, tokenizer=tokenizer, cache=False, on_bad_row="skip")
    data.setup("fit")
    assert data.reports["train"].skipped_by_reason == {"no_target": 1}
    (message,) = data.reports["train"].skipped
    assert "are the same, once they are tokenized" in message


def test_a_loss_of_soft_labels_is_warned_that_there_are_none(
    tmp_path: Path, tokenizer, recwarn: pytest.WarningsRecorder
) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    scored = {**pair, "score_chosen": 8, "score_rejected": 7}
    hard, soft = (
        jsonl(tmp_path / "hard.jsonl", scored),
        jsonl(tmp_path / "soft.jsonl", pair, {**pair, "preference": 0.9}),
    )

    def setup(source: str | Source, taker: FakeModule) -> None:
        with_trainer(FeedbackDataModule(source, tokenizer=tokenizer, cache=False), taker).setup("fit")

    gdpo = taker("preference", uses_soft_labels=True)
    setup(soft, gdpo)
    setup(Source(hard, preference_scale=1.0), gdpo)
    setup(hard, taker("preference"))
    assert not [warning for warning in recwarn if "count as certain" in str(warning.message)]
    with pytest.warns(UserWarning, match="data.train: the loss of FakeModule asks how likely .* all count as certain"):
        setup(hard, gdpo)
    with pytest.warns(UserWarning, match="the loss of the part 'preference' asks how likely"):
        setup(hard, mixed(preference=gdpo))


# Parts of a mixed objective --------------------------------------------------------------------------------------


def mixed(**parts: Any) -> FakeModule:
    return FakeModule(parts=parts, kinds=frozenset(ROW_KINDS), needs_gold=False)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_batch_has_every_part(paths: dict[str, str], tokenizer, batch_size: int) -> None:
    kto = FakeModule(kinds=frozenset({"unpaired"}), needs_gold=False, needs_mismatched=True)
    module = mixed(unpaired=kto, ift=taker("instruction", "scored"), preference=taker("preference"))
    sources = [
        Source(paths["instruction"], part="ift"),
        paths["preference"],
        Source(paths["scored"], part="ift"),
        paths["unpaired"],
    ]
    data = FeedbackDataModule(sources, val=paths["preference"], tokenizer=tokenizer, batch_size=batch_size, cache=False)
    with_trainer(data, module).setup("fit")
    dataset = data.datasets["train"]
    assert dataset.num_answers == 5 + 2 * 6 + 7 + 2 * 4
    dataset.reference_logps = np.ones(dataset.num_answers, dtype=np.float32)
    seen: dict[str, list[str]] = {name: [] for name in module.parts}
    for batch in data.train_dataloader():
        assert list(batch) == ["unpaired", "ift", "preference"]
        assert sum(len([r for r in part["row_ids"] if r]) for part in batch.values()) in (batch_size, 22 % batch_size)
        for name, part in batch.items():
            seen[name] += [row for row in part["row_ids"] if row]
            assert set(kinds_of(part)) <= module.parts[name].kinds
            if "" in part["row_ids"]:
                assert part["row_ids"] == [""]
                assert (part["labels"] == -100).all()
                assert (part["reference_logps"] == 0).all()
                mine = [sum(len(e.input_ids) for e in r.sides.values()) for r in dataset[list(range(len(dataset)))]
                        if r.kind in module.parts[name].kinds]  # fmt: skip
                assert int(part["attention_mask"].sum()) == min(mine)
            else:
                assert (part["reference_logps"] == 1).all()
    assert {name: len(rows) for name, rows in seen.items()} == {"unpaired": 4, "ift": 12, "preference": 6}
    assert len({row for rows in seen.values() for row in rows}) == 22
    assert all(list(batch) == ["preference"] for batch in data.val_dataloader())  # nothing to make a dummy of
    # The same data for a module of one objective.
    with_trainer(data, taker(*ROW_KINDS))
    with pytest.raises(
        UserError, match=r"data.train: \S*instruction.jsonl has the option part='ift', but FakeModule has"
    ):
        data.setup("fit")


def test_parts_that_do_not_fit(paths: dict[str, str], tokenizer, tmp_path: Path) -> None:
    def setup(module: Any, *sources: str | Source, cls: Any = FeedbackDataModule) -> None:
        with_trainer(cls(list(sources), tokenizer=tokenizer, cache=False), module).setup("fit")

    module = mixed(instruction=taker("instruction"), pairs=taker("preference"))
    pairs = Source(paths["preference"], part="pairs")
    setup(module, paths["instruction"], pairs)
    with pytest.raises(UserError, match=r"part='pair', but the parts of the module are instruction, pairs\. Name one"):
        setup(module, paths["instruction"], Source(paths["preference"], part="pair"))
    with pytest.raises(UserError, match=r"no part of the module is called 'preference', .*preference\.jsonl:1 goes"):
        setup(module, paths["instruction"], paths["preference"])
    with pytest.raises(UserError, match=r"data.train: no row goes to the part 'instruction' .*part: instruction"):
        setup(module, pairs)
    with pytest.raises(UserError, match="the part 'pairs' trains on preference rows, but 7 rows are scored data"):
        setup(module, paths["instruction"], pairs, Source(paths["scored"], part="pairs"))
    needs_gold = FakeModule(kinds=frozenset({"preference"}), needs_gold=True)
    with pytest.raises(UserError, match="the part 'preference' needs a third answer"):
        setup(mixed(preference=needs_gold), paths["preference"])
    with pytest.raises(UserError, match=r"FakeModule mixes objectives.*Set data: FeedbackDataModule"):
        setup(module, paths["instruction"], cls=InstructionDataModule)
    assert mixed(x=taker("scored")).parts  # modules may also keep their parts in a ModuleDict
    holder = nn.Linear(1, 1)
    holder.kinds, holder.needs_gold = frozenset({"preference"}), False  # type: ignore[assignment]
    setup(FakeModule(parts=nn.ModuleDict({"pairs": holder})), pairs)


def test_parts_take_turns(paths: dict[str, str], tokenizer) -> None:
    module = mixed(instruction=taker("instruction"), preference=taker("preference"), scored=taker("scored"))
    sources = [paths["instruction"], Source(paths["preference"], weight=0.5), paths["scored"]]
    data = FeedbackDataModule(
        sources, val=sources[2], tokenizer=tokenizer, batch_size=2, cache=False, interleave_parts=True
    )
    with_trainer(data, module).trainer.accumulate_grad_batches = 2
    data.setup("fit")
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 2 * (2 + 1 + 2)
    assert all(list(batch) == list(module.parts) for batch in batches)
    trained = ["".join(name[0] for name, part in batch.items() if part["row_ids"] != [""]) for batch in batches]
    assert trained == ["i", "i", "s", "s", "i", "", "s", "s", "p", "p"]  # The fifth instruction makes a step of two.
    rows = [row for batch in batches for part in batch.values() for row in part["row_ids"] if row]
    assert len(rows) == len(set(rows)) == 5 + 3 + 7
    assert all(list(batch) == ["scored"] for batch in data.val_dataloader())


def test_turns_that_make_no_sense(paths: dict[str, str], tokenizer) -> None:
    def setup(module: Any, *sources: str | Source, **options: Any) -> None:
        options = {"batch_size": 2, "interleave_parts": True, **options}
        data = FeedbackDataModule(list(sources), tokenizer=tokenizer, cache=False, **options)
        with_trainer(data, module).setup("fit")

    module = mixed(instruction=taker("instruction"), preference=taker("preference"))
    both = [paths["instruction"], paths["preference"]]
    setup(module, *both)
    with pytest.raises(UserError, match="interleave_parts has no effect on FakeModule, which has no parts"):
        setup(taker("preference"), paths["preference"])
    with pytest.raises(UserError, match=r"tokens_per_batch leaves open. Set data\.batch_size"):
        setup(module, *both, batch_size=None, tokens_per_batch=500)
    module.part_weights = {"instruction": 1.0, "preference": 0.5}
    with pytest.raises(UserError, match="weight of the part 'preference' has no effect with data"):
        setup(module, *both)
    with pytest.raises(UserError, match="interleave_parts='yes' must be true or false"):
        setup(module, *both, interleave_parts="yes")


def test_a_module_that_chooses_a_part_gets_rows_of_all_in_every_step(paths: dict[str, str], tokenizer) -> None:
    def made(**options: Any) -> FeedbackDataModule:
        options = {"batch_size": 2, **options}
        data = FeedbackDataModule([paths["instruction"], paths["scored"]], tokenizer=tokenizer, cache=False, **options)
        with_trainer(data, module).trainer.accumulate_grad_batches = 2
        data.setup("fit")
        return data

    module = mixed(instruction=taker("instruction"), scored=taker("scored"))
    module.choice = object()
    batches = list(made().train_dataloader())
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        for part in module.parts:
            assert any(first[part]["row_ids"] + second[part]["row_ids"])
    with pytest.raises(UserError, match=r"data\.interleave_parts .* and model\.schedule chooses .* Set one of them"):
        made(interleave_parts=True)
    with pytest.raises(UserError, match=r"model\.schedule needs .* data\.tokens_per_batch leaves open"):
        made(batch_size=None, tokens_per_batch=500)


# Mismatched answers ----------------------------------------------------------------------------------------------


def test_mismatched_sides_come_and_go_with_the_module(paths: dict[str, str], tokenizer, tmp_path: Path) -> None:
    kto = taker("unpaired", "preference", needs_mismatched=True)
    sources = [paths["preference"], paths["unpaired"]]
    data = FeedbackDataModule(sources, tokenizer=tokenizer, batch_size=99, cache=False)
    with_trainer(data, kto).setup("fit")
    dataset = data.datasets["train"]
    # Answers 0 to 11 are those of the pairs, which give the chosen and the rejected one by turns.
    assert dataset.partners.tolist() == [3, 4, 7, 8, 11, 12, 13, 14, 15, 0]
    (batch,) = data.train_dataloader()
    assert sorted(batch["answer_sides"].tolist()) == [0] * 4 + [1] * 6 + [2] * 6 + [4] * 10
    data.setup("fit")
    assert data.datasets["train"] is dataset  # with all that was computed for it
    with_trainer(data, taker("unpaired", "preference")).setup("fit")
    assert data.datasets["train"].num_answers == 16
    assert data.datasets["train"].content_digest != dataset.content_digest
    one = write_feedback(tmp_path, unpaired=1)["unpaired"]
    alone = FeedbackDataModule(one, tokenizer=tokenizer, cache=False)
    with pytest.raises(UserError, match=r"data.train: \S*unpaired.jsonl:1 is the only row with a judged"):
        with_trainer(alone, kto).setup("fit")


# Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize(("packing", "multiple"), [(False, None), (False, 16), (True, None)])
def test_batches_keep_the_token_budget(
    paths: dict[str, str], tokenizer, packing: bool, multiple: int | None, is_mixed: bool
) -> None:
    budget = 500 if packing else 700
    kto = FakeModule(kinds=frozenset({"unpaired"}), needs_gold=False, needs_mismatched=True)
    parts = {"unpaired": kto, **{k: taker(k) for k in ("instruction", "preference", "scored")}}
    data = FeedbackDataModule(
        list(paths.values()),
        tokenizer=tokenizer,
        tokens_per_batch=budget,
        packing=packing,
        pad_to_multiple_of=multiple,
        cache=False,
    )
    module = mixed(**parts) if is_mixed else taker(*ROW_KINDS, needs_mismatched=True)
    with_trainer(data, module).setup("fit")
    sizes = []
    seen: list[str] = []
    for whole in data.train_dataloader():
        batches = list(whole.values()) if is_mixed else [whole]
        counted = [(b["sequence_ids"] >= 0).sum() if packing else torch.tensor(b["input_ids"].numel()) for b in batches]
        sizes.append(int(sum(counted)))
        seen += [row for batch in batches for row in batch["row_ids"] if row]
    assert len(seen) == len(set(seen)) == 22
    assert len(sizes) > 1
    assert budget / 3 < max(sizes) <= budget
    # Stand-ins for the other parts must fit beside the rows.
    assert (data.train_dataloader().sampler.tokens_per_batch < budget) == is_mixed  # type: ignore[attr-defined]


def test_packing_does_not_change_which_rows_share_a_batch(tmp_path: Path, tokenizer) -> None:
    """A row's answers together may be longer than another's whose longest one is the longest."""
    rows = [{"prompt": "p", "chosen": "a" * (1 + i), "rejected": "b" * (1 + 7 * i % 99)} for i in range(100)]
    file = jsonl(tmp_path / "pairs.jsonl", *rows)

    def batches(packing: bool) -> list[list[str]]:
        data = FeedbackDataModule(file, tokenizer=tokenizer, batch_size=4, packing=packing, cache=False)
        data.setup("fit")
        return [batch["row_ids"] for batch in data.train_dataloader()]

    assert batches(packing=True) == batches(packing=False)


def test_a_row_that_no_batch_can_hold(paths: dict[str, str], tokenizer) -> None:
    data = FeedbackDataModule(paths["preference"], tokenizer=tokenizer, tokens_per_batch=50, cache=False)
    data.setup("fit")
    with pytest.raises(UserError, match=r"preference\.jsonl:\d takes \d+ tokens, for up to 2 answers padded alike, wh"):
        data.train_dataloader()
    two = FeedbackDataModule(
        [paths["preference"], paths["scored"]], tokenizer=tokenizer, tokens_per_batch=190, cache=False, packing=True
    )
    module = mixed(preference=taker("preference"), scored=taker("scored"))
    with_trainer(two, module).setup("fit")
    longest = max(two.datasets["train"].lengths)
    assert longest <= 190
    with pytest.raises(UserError, match=rf"takes {longest} tokens, and \d+ are set aside for stand-ins of other parts"):
        two.train_dataloader()


@pytest.mark.slow
def test_a_share_with_one_judged_row_leaves_the_run_without_validation(tmp_path: Path, caplog) -> None:
    path = jsonl(tmp_path / "thumbs.jsonl", *feedback_rows("unpaired", 10))
    kto = taker("unpaired", needs_mismatched=True)
    sizes = {}
    for fraction in (f / 100 for f in range(1, 60)):
        data = FeedbackDataModule(train=path, tokenizer=tiny_tokenizer(), val_fraction=fraction)
        data.setup("fit")
        sizes[len(data.datasets["val"])] = data
    with caplog.at_level("WARNING", logger="lit_ift"):
        with_trainer(sizes[1], kto).setup("fit")
    assert "is the only row with a judged answer" in caplog.text
    assert "The run goes without validation." in caplog.text
    assert sizes[1].val_dataloader() == []
    with_trainer(sizes[2], kto).setup("fit")
    assert len(sizes[2].datasets["val"]) == 2

"""Known data sets of the hub: each names a layout that exists, and rows as published are read by it."""

import pytest

from lit_ift.data.parse.layouts import LAYOUTS
from lit_ift.data.parse.row_parser import RowParser
from lit_ift.data.read.known_datasets import KNOWN_DATASETS, known_dataset
from lit_ift.data.read.readers import Record

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "a"}
BAD = {"role": "assistant", "content": "b"}
PAIR = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
MARKS = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
PUBLISHED = {
    "HuggingFaceH4/ultrachat_200k": {"prompt": "q", "prompt_id": "0", "messages": [USER, GOOD, USER, GOOD]},
    "HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": "q",
        "prompt_id": "0",
        **PAIR,
        "messages": [USER, GOOD],
        "score_chosen": 8.0,
        "score_rejected": 7.5,
    },
    "nvidia/HelpSteer2": {"prompt": "q", "response": "a", **MARKS},
    "Anthropic/hh-rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "Intel/orca_dpo_pairs": {"system": "", "question": "q", "chosen": "a", "rejected": "b"},
    "tatsu-lab/alpaca": {"instruction": "q", "input": "", "output": "a", "text": "Below is an instruction"},
    "yahma/alpaca-cleaned": {"output": "a", "input": "", "instruction": "q"},
    "databricks/databricks-dolly-15k": {"instruction": "q", "context": "", "response": "a", "category": "open_qa"},
    "stingning/ultrachat": {"id": "0", "data": ["q", "a", "q", "a"]},
    "trl-lib/kto-mix-14k": {"prompt": [USER], "completion": [GOOD], "label": False},
    "trl-lib/ultrafeedback_binarized": {**PAIR, "score_chosen": 8.0, "score_rejected": 7.5},
    "argilla/ultrafeedback-binarized-preferences-cleaned": {
        "source": "s",
        "prompt": "q",
        **PAIR,
        "chosen-rating": 5.0,
        "chosen-model": "m",
        "rejected-rating": 3.0,
        "rejected-model": "n",
    },
    "Open-Orca/SlimOrca": {
        "conversations": [
            {"from": "system", "value": "s", "weight": None},
            {"from": "human", "value": "q", "weight": 0.0},
            {"from": "gpt", "value": "a", "weight": 1.0},
        ]
    },
}


def test_known_data_sets_have_layouts_and_splits() -> None:
    for source, known in KNOWN_DATASETS.items():
        assert source == source.lower()
        assert known.layout in LAYOUTS
        assert "train" in known.splits
        assert set(known.splits) <= {"train", "val", "test"}
    assert known_dataset("huggingfaceh4/UltraChat_200k") is KNOWN_DATASETS["huggingfaceh4/ultrachat_200k"]
    assert known_dataset("HuggingFaceH4/ultrafeedback_binarized").splits["val"] == "test_prefs"
    assert known_dataset("ultrachat_200k") is None
    assert known_dataset("data/train.jsonl") is None


@pytest.mark.parametrize("source", PUBLISHED)
def test_rows_as_published_are_recognised_without_the_id(source: str) -> None:
    known = known_dataset(source)
    assert known is not None
    parser, local = RowParser(layout=known.layout), RowParser()
    row = parser.parse(Record(PUBLISHED[source], f"{source}/train#0"))
    assert local.parse(Record(PUBLISHED[source], f"{source}/train#0")) == row
    assert local.layout == known.layout
    first = next(iter(row.sides.values()))
    assert [m["content"] for m in first.messages if m["role"] != "system"][:2] == ["q", "a"]

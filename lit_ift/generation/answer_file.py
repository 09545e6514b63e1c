"""A file of answers: it appears whole, and answers are kept meanwhile so that a stopped call goes on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal

from lit_ift.data.rows import Document
from lit_ift.errors import UserError, told_as
from lit_ift.generation.engine import Engine, GenerationOptions
from lit_ift.generation.prompts import Prompt
from lit_ift.staging import replaced_file

Format = Literal["rows", "alpaca_eval"]

CHUNK: Final = 128
"""Prompts that are answered together; a call that goes on begins with the first chunk that is not whole."""

KEPT: Final = ".answers"
"""What the name of the file of kept answers ends with, which stands hidden beside the output."""


def kept_file(output: Path) -> Path:
    """Where the answers are kept until the output is whole."""
    return output.with_name(f".{output.name}{KEPT}")


def check_output(output: Path, *, overwrite: bool) -> None:
    """Do nothing if a file of answers may be written there.

    Raises:
        UserError: its name ends in something else than a format, or something is in the way.
    """
    if output.suffix not in (".jsonl", ".json"):
        raise UserError(f"{output}: end the name in .jsonl (a row a line) or .json (a list of all rows).")
    if output.is_dir() or (output.exists() and not overwrite):
        remedy = "name another file" if output.is_dir() else "name another file, or say --overwrite"
        raise UserError(f"{output} exists: {remedy}.")


def identity(path: str) -> list[Any]:
    """Plain values that change whenever the files of a model do; of a hub id, itself."""
    place = Path(path)
    if not place.exists():
        return [path]
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [str(place.resolve()), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def answer_all(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    output: Path,
    *,
    options: GenerationOptions,
    model: Any,
    overwrite: bool = False,
    chunk: int = CHUNK,
) -> list[list[str]]:
    """Answer all prompts, and keep the answers on the disk until `write_answers` has written them.

    Answers are the same whether a call was stopped in between or not: each chunk has a seed of its own.

    Args:
        engine: that generates.
        prompts: token ids.
        output: file that is to be written.
        options: of generation.
        model: plain values that identify the model.
        overwrite: begin anew if answers of another call are kept.
        chunk: prompts answered together.

    Returns:
        ``options.num_answers`` texts for each prompt.

    Raises:
        UserError: answers of another call are kept for this output, or nothing can be written there.
    """
    key = hashlib.sha256(json.dumps([prompts, asdict(options), model, chunk]).encode()).hexdigest()
    with _written_to(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        found = _kept(output, key, overwrite=overwrite)
    chunks = [range(start, min(start + chunk, len(prompts))) for start in range(0, len(prompts), chunk)]
    left = [indices for indices in chunks if not all(i in found for i in indices)]
    found = {i: found[i] for indices in chunks if indices not in left for i in indices}
    total = len(prompts) * options.num_answers
    with _progress(total, initial=len(found) * options.num_answers) as bar:
        for indices in left:
            seeded = replace(options, seed=options.seed + indices.start)
            for position, texts in engine.generate([prompts[i] for i in indices], seeded):
                found[indices[position]] = texts
                with _written_to(output), kept_file(output).open("a", encoding="utf-8") as file:
                    file.write(json.dumps([indices[position], texts]) + "\n")
                bar.update(len(texts))
    return [found[i] for i in range(len(prompts))]


def _kept(output: Path, key: str, *, overwrite: bool) -> dict[int, list[str]]:
    """Answers of a call with the same key that was stopped; begins the file if there are none."""
    file = kept_file(output)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if lines and lines[0] == key:
        return dict(_whole(lines[1:]))
    if lines and not overwrite:
        raise UserError(
            f"{file} keeps answers of another call for {output.name}, with another model, other prompts or options. "
            "Repeat that call to finish it, name another file, or say --overwrite to drop them."
        )
    file.write_text(key + "\n", encoding="utf-8")
    return {}


def _whole(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    for line in lines:
        try:
            index, texts = json.loads(line)
        except ValueError:  # The call was killed while it wrote.
            continue
        yield index, texts


def write_answers(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    output: Path,
    *,
    form: Format = "rows",
    generator: str = "",
    overwrite: bool = False,
) -> int:
    """Write all answers in one go, and drop the kept ones.

    Args:
        prompts: what was answered.
        answers: texts for each of them.
        output: ``.jsonl`` or ``.json``.
        form: ``rows`` have prompt and completion, as lit-ift reads them, an answer a row; ``alpaca_eval`` has the
            fields of AlpacaEval.
        generator: name of the model in ``alpaca_eval``.
        overwrite: replace an existing file.

    Returns:
        Rows that were written.

    Raises:
        UserError: the file is in the way or cannot be written.
    """
    check_output(output, overwrite=overwrite)
    if form == "alpaca_eval":
        rows = [_alpaca_eval(p, texts[0], generator) for p, texts in zip(prompts, answers, strict=True)]
    else:
        rows = [row for prompt, texts in zip(prompts, answers, strict=True) for row in _rows(prompt, texts)]
    with _written_to(output), replaced_file(output, "w", encoding="utf-8") as file:
        if output.suffix == ".json":
            json.dump(rows, file, ensure_ascii=False, indent=1)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    kept_file(output).unlink(missing_ok=True)
    return len(rows)


def check_form(prompts: Sequence[Prompt], options: GenerationOptions, form: Format) -> None:
    """Do nothing if the answers can be written in a format.

    Raises:
        UserError: AlpacaEval cannot hold them.
    """
    if form != "alpaca_eval":
        return
    if options.num_answers > 1:
        raise UserError(f"format=alpaca_eval holds one answer a prompt, not num_answers={options.num_answers}.")
    for prompt in prompts:
        if not isinstance(prompt.side, Document):
            turns = [message for message in prompt.side.messages if message["role"] != "system"]
            if len(turns) > 1:
                raise UserError(
                    f"{prompt.row_id}: format=alpaca_eval holds one instruction a row, but the prompt has {len(turns)} "
                    "turns. Leave --format out, or give rows of one question."
                )


def _rows(prompt: Prompt, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    side = prompt.side
    for sample, text in enumerate(texts):
        row: dict[str, Any] = {"row_id": prompt.row_id}
        if len(texts) > 1:
            row["sample"] = sample
        if isinstance(side, Document):
            row |= {"prompt": side.text}
        else:
            row |= {"prompt": list(side.messages), **({"tools": list(side.tools)} if side.tools else {})}
        row["completion"] = text
        yield row if prompt.expected is None else {**row, "expected": prompt.expected}


def _alpaca_eval(prompt: Prompt, text: str, generator: str) -> dict[str, str]:
    return {"instruction": prompt.question, "output": text, "generator": generator}


def _written_to(output: Path) -> AbstractContextManager[None]:
    return told_as(
        OSError, lambda error: UserError(f"{output} cannot be written: {error}. Free space or name another file.")
    )


@contextmanager
def _progress(total: int, *, initial: int) -> Iterator[Any]:
    import sys

    from tqdm import tqdm

    # In a log file, a line every ten seconds is enough.
    seconds = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, initial=initial, desc="Answers", unit="answer", mininterval=seconds) as bar:
        yield bar

"""Counts what becomes of rows while they stream by, for `report.DataReport`."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count, groupby, pairwise, takewhile
from typing import TYPE_CHECKING, Final

from lit_ift.chat.example import Example
from lit_ift.chat.templates import adds_bos, turn_end_ids
from lit_ift.constants import IGNORE_INDEX
from lit_ift.data.parse.columns import ColumnNames
from lit_ift.data.read.record import OnRowError
from lit_ift.data.report.account import FINDINGS, DataReport, Lengths, TokenCount, TurnEnd
from lit_ift.data.report.faults import FaultTally
from lit_ift.data.rows import Document, EncodedRow, Row, RowKind
from lit_ift.data.truncation import DEFAULT_OF_CONVERSATIONS, DEFAULT_OF_TEXTS, Truncation
from lit_ift.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_NAMED: Final = 100
"""Row ids kept of each finding; the rest is only counted."""

NUM_END_TOKENS: Final = 100
"""Different last tokens of turns that a report lists."""

MOST_TURNS: Final = 20
"""Conversations of more turns are counted together."""

SHORTEST_LIMIT: Final = 128
"""Smallest maximum length for which a report says how many rows it would cut [tokens]."""

NUM_BINS: Final = 20
"""Most bins of a length histogram."""


@dataclass
class _Tally:
    """Rows of a finding: all counted, the first ones named."""

    count: int = 0
    row_ids: list[str] = field(default_factory=list)

    def add(self, row_id: str, *, named: bool = True) -> None:
        self.count += 1
        if named and len(self.row_ids) < NUM_NAMED:
            self.row_ids.append(row_id)

    def __add__(self, other: "_Tally") -> "_Tally":
        return _Tally(self.count + other.count, (self.row_ids + other.row_ids)[:NUM_NAMED])


@dataclass(frozen=True)
class Check:
    """Rows are only looked at: a file that cannot be read to its end is noted, and the next one is read.

    Args:
        told: told of the split and the fault of every row that is skipped.
    """

    told: Callable[[str, RowError], None] | None = None


class _PastBadFiles:
    """A `FaultListener`."""

    def __init__(self, skip: OnRowError, unread: list[str]) -> None:
        self._skip = skip
        self._unread = unread

    def __call__(self, error: RowError) -> None:
        self._skip(error)

    def file_fault(self, error: UserError) -> None:
        self._unread.append(str(error))


class ReportBuilder:
    """Counts rows as they pass. Memory grows by one hash a prompt and with nothing else.

    Args:
        split: train, val, test or predict.
        tokenizer: the one that encoded the rows.
        max_length: longest allowed conversation [tokens].
        truncation: what is done with longer ones, in a word; None for what is usual for their kind.
        weights: how often an epoch takes the rows of a source; once where it is not named.
        check: how the rows are checked, if that is all that is done with them.
    """

    def __init__(
        self,
        split: str,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int,
        truncation: Truncation | None,
        weights: Mapping[str, float] | None = None,
        check: Check | None = None,
    ) -> None:
        self.check = check
        self.split = split
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self.weights = weights or {}
        self._bos = tokenizer.bos_token_id if adds_bos(tokenizer) else None
        self._control_ids = control_ids(tokenizer)
        self._rows_kept = self._num_texts = self._num_pieces = 0
        self._rows_with_stop = 0
        self._tokens_cut = 0
        self._findings = {name: _Tally() for name in FINDINGS}
        self._skipped: dict[str, _Tally] = defaultdict(_Tally)
        self._faults: dict[str, FaultTally] = defaultdict(FaultTally)
        self._unread: list[str] = []
        self._prompts: set[int] = set()
        self._prompts_twice: set[int] = set()
        self._turn_ends: Counter[int] = Counter()
        self._plain_ends: dict[int | None, _Tally] = defaultdict(_Tally)
        self._turns_cut = 0
        self._turn_weights: Counter[float] = Counter()
        self._names: list[ColumnNames] = []
        self._kinds: Counter[RowKind] = Counter()
        self._turns: Counter[int] = Counter()
        self._sides: dict[str, Counter[str]] = defaultdict(Counter)
        self._sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._input_lengths: Counter[int] = Counter()
        self._target_lengths: Counter[int] = Counter()
        self._whole_lengths: Counter[int] = Counter()

    def skip(self, error: RowError) -> None:
        """Count a row that was left out."""
        self._skipped[error.reason].add(error.origin)
        self._faults[error.reason].add(error)
        if error.num_tokens is not None:
            self._whole_lengths[error.num_tokens] += 1
        if self.check is not None and self.check.told is not None:
            self.check.told(self.split, error)

    @property
    def listener(self) -> OnRowError:
        """What readers tell of rows that they cannot read; in a check also of files."""
        return self.skip if self.check is None else _PastBadFiles(self.skip, self._unread)

    def note_columns(self, names: ColumnNames) -> None:
        """Take over by which names the columns of a source were read, and which were not."""
        self._names.append(names)

    def keep(self, row: Row, *encoded: EncodedRow, source: str = "") -> None:
        """Count a row that is trained on, as it is after truncation.

        Args:
            row: before it was tokenized.
            *encoded: the same row tokenized; several where a text was split into pieces.
            source: the name under which its tokens are counted.
        """
        row_id = row.origin
        self._rows_kept += 1
        self._kinds[row.kind] += 1
        self._note_messages(row)
        self._note_prompt(row.key, row_id)
        if len(encoded) > 1:
            self._findings["split"].add(row_id)
            self._num_pieces += len(encoded)
        examples = [example for piece in encoded for example in piece.sides.values()]
        num_cut = sum(example.num_cut for example in examples)
        self._tokens_cut += num_cut
        # A text has one side, and its pieces together are as long as it was.
        longest = [max(len(e.input_ids) + e.num_cut for e in piece.sides.values()) for piece in encoded]
        self._whole_lengths[sum(longest)] += 1
        counted = self._sources[source]
        counted["rows"] += len(encoded)
        num_targets = 0
        for side, example in ((side, example) for piece in encoded for side, example in piece.sides.items()):
            tokens, targets = len(example.input_ids), example.num_targets
            num_targets += targets
            self._input_lengths[tokens] += 1
            self._target_lengths[targets] += 1
            counted.update(tokens=tokens, target_tokens=targets)
            if row.kind == "preference":
                self._sides[side].update(rows=1, tokens=tokens, target_tokens=targets)
        weights = [weight for example in examples for weight in _turn_weights(example)]
        self._turn_weights.update(weights)
        starts = encoded[0].sides.values()  # A text begins with its first piece and ends with its last one.
        self._note_turn_ends(encoded[-1].sides.values(), row_id)
        found = {
            "truncated": num_cut > 0,
            "no_target": num_targets == 0,
            "lookalike": any(example.num_lookalikes for example in examples),
            "dropped_thoughts": any(example.num_dropped_thoughts for example in examples),
            "weighted": bool(weights),
            "split_start": any(example.num_split_starts for example in examples),
            "without_bos": self._bos is not None and any(e.input_ids[:1] != [self._bos] for e in starts),
        }
        for name, is_so in found.items():
            if is_so:
                self._findings[name].add(row_id)

    def build(self) -> DataReport:
        """The report of the rows so far."""
        turn_ends = self._judged_turn_ends()
        stops = {end.token_id for end in turn_ends if end.stops}
        findings = dict(self._findings)
        for token_id, tally in self._plain_ends.items():
            if token_id not in stops:
                findings["unstopped"] += tally
        num_skipped = sum(tally.count for tally in self._skipped.values())
        row_ids = {name: tally.row_ids for name, tally in findings.items()}
        row_ids |= {f"skipped/{reason}": tally.row_ids for reason, tally in self._skipped.items()}
        input_lengths, target_lengths = _lengths(self._input_lengths), _lengths(self._target_lengths)
        columns = [column for names in self._names for column in names.given]
        found = {column for names in self._names for column in names.found}
        return DataReport(
            split=self.split,
            max_length=self.max_length,
            truncation=self._truncation(),
            rows_read=self._rows_kept + num_skipped,
            rows_kept=self._rows_kept,
            rows_skipped=num_skipped,
            **{field: findings[name].count for name, field in FINDINGS.items()},
            pieces=self._num_pieces,
            turns_weighted=self._turn_weights.total(),
            turn_weights=(min(self._turn_weights), max(self._turn_weights)) if self._turn_weights else (),
            rows_with_stop=self._rows_with_stop,
            duplicate_prompts=len(self._prompts_twice),
            tokens=input_lengths.total,
            target_tokens=target_lengths.total,
            tokens_cut=self._tokens_cut,
            longest=input_lengths.longest,
            trained_turns=self._turn_ends.total() + self._turns_cut,
            turns_cut=self._turns_cut,
            turns_unstopped=sum(end.turns for end in turn_ends if not end.stops),
            turn_ends=turn_ends[:NUM_END_TOKENS],
            skipped_by_reason={reason: tally.count for reason, tally in self._skipped.items()},
            unread=tuple(self._unread),
            messages={reason: faults.messages() for reason, faults in self._faults.items()},
            row_ids={name: tuple(ids) for name, ids in row_ids.items() if ids},
            kinds={str(kind): count for kind, count in self._kinds.items()},
            turns={f"{n}+" if n == MOST_TURNS else str(n): self._turns[n] for n in sorted(self._turns)},
            sides={side: TokenCount(**counted) for side, counted in self._sides.items()},
            sources={
                source: TokenCount(**counted, weight=self.weights.get(source, 1.0))
                for source, counted in self._sources.items()
            },
            input_lengths=input_lengths,
            target_lengths=target_lengths,
            whole_lengths=_lengths(self._whole_lengths),
            rows_longer=_longer(self._whole_lengths, self.max_length),
            columns_left_out=dict(sum((names.left_out for names in self._names), Counter[str]()).most_common()),
            columns_renamed={old: new for names in self._names for old, new in names.renamed.items()},
            columns_missing=tuple(column for column in dict.fromkeys(columns) if column not in found),
        )

    def _note_messages(self, row: Row) -> None:
        side = next(iter(row.sides.values()))
        if isinstance(side, Document):
            self._num_texts += 1
        else:
            self._turns[min(len(side.messages), MOST_TURNS)] += 1

    def _truncation(self) -> str:
        if self.truncation is not None:
            return self.truncation
        if not self._num_texts:
            return DEFAULT_OF_CONVERSATIONS
        only_texts = self._num_texts == self._rows_kept
        return DEFAULT_OF_TEXTS if only_texts else f"{DEFAULT_OF_CONVERSATIONS}, of texts {DEFAULT_OF_TEXTS}"

    def _note_prompt(self, prompt: str, row_id: str) -> None:
        key = hash(prompt)
        if key in self._prompts:
            self._prompts_twice.add(key)
            self._findings["duplicate"].add(row_id)
        else:
            self._prompts.add(key)

    def _note_turn_ends(self, examples: Iterable[Example], row_id: str) -> None:
        ends: set[int] = set()
        trains_stop = was_cut = False
        for example in examples:
            labels = example.labels
            trains_stop |= self.tokenizer.eos_token_id in labels
            complete = [
                label for label, following in pairwise(labels) if following == IGNORE_INDEX and label != IGNORE_INDEX
            ]
            if labels and labels[-1] != IGNORE_INDEX:
                last = self._last_shown(labels)
                if example.num_cut and last not in self._control_ids:
                    self._turns_cut += 1
                    was_cut = True
                else:
                    complete.append(last)
            self._turn_ends.update(complete)
            ends.update(complete)
        self._rows_with_stop += trains_stop
        if was_cut:
            self._findings["cut_turn"].add(row_id)
        plain = ends - self._control_ids
        if plain:
            key = plain.pop() if len(plain) == 1 else None
            self._plain_ends[key].add(row_id, named=len(self._plain_ends) <= NUM_END_TOKENS)

    def _last_shown(self, labels: Sequence[int]) -> int:
        """The last trained token that is more than white space, which a template may write after a turn."""
        trained = takewhile(lambda label: label != IGNORE_INDEX, reversed(labels))
        return next((label for label in trained if not self.tokenizer.decode([label]).isspace()), labels[-1])

    def _judged_turn_ends(self) -> tuple[TurnEnd, ...]:
        # A text may end in any plain token, so only those that the template writes say that the turn is over.
        written = turn_end_ids(self.tokenizer) if self._plain_ends else frozenset()
        return tuple(
            TurnEnd(
                token_id=token_id,
                token=self.tokenizer.decode([token_id], skip_special_tokens=False),
                turns=turns,
                is_control=token_id in self._control_ids,
                stops=token_id in self._control_ids or token_id in written,
            )
            for token_id, turns in self._turn_ends.most_common()
        )


def control_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids of the tokens that a text cannot hold: special ones, and the end-of-sequence token in any case."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added.union(tokenizer.all_special_ids))


def _turn_weights(example: Example) -> Iterator[float]:
    """The weights of its trained turns that are not 1."""
    trained = [label != IGNORE_INDEX for label in example.labels]
    for (is_trained, weight), _ in groupby(zip(trained, example.weights or (), strict=False)):
        if is_trained and weight != 1:
            yield weight


def _lengths(counted: Counter[int]) -> Lengths:
    if not counted:
        return Lengths()
    ordered = sorted(counted)
    longest = ordered[-1]
    width = next(w for w in _round_numbers() if (longest // w + 1) <= NUM_BINS)
    edges = tuple(range(0, (longest // width + 2) * width, width))
    counts = [0] * (len(edges) - 1)
    for length, number in counted.items():
        counts[length // width] += number
    return Lengths(
        total=sum(length * number for length, number in counted.items()),
        longest=longest,
        median=_quantile(counted, ordered, 0.5),
        p95=_quantile(counted, ordered, 0.95),
        edges=edges,
        counts=tuple(counts),
    )


def _longer(counted: Counter[int], max_length: int) -> dict[str, int]:
    """How many are longer than `max_length`, and than each power of two up to the first that cuts nothing."""
    longest = max(counted, default=0)
    powers = (SHORTEST_LIMIT << k for k in range(max(0, longest.bit_length() - SHORTEST_LIMIT.bit_length()) + 2))
    limits = sorted({max_length, *(power for power in powers if power < 2 * longest)})
    return {str(limit): sum(n for length, n in counted.items() if length > limit) for limit in limits if counted}


def _round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50 and so on."""
    return (digit * 10**power for power in count() for digit in (1, 2, 5))


def _quantile(counted: Counter[int], ordered: Sequence[int], share: float) -> int:
    """The smallest length that at least `share` of the conversations do not exceed."""
    sums = list(accumulate(counted[length] for length in ordered))
    return ordered[bisect_left(sums, share * sums[-1])]

from .batch.collate import Batch, FeedbackColumns, PackedBatch, collate, collate_feedback, collate_packed
from .batch.dataset import EncodedDataset
from .batch.sampler import LengthGroupedBatchSampler, SequentialBatchSampler
from .modules.conversation import ConversationDataModule
from .modules.feedback import FeedbackDataModule
from .modules.instruction import InstructionDataModule
from .modules.tasks import TasksDataModule
from .modules.verifiable import TaskItem, VerifiableDataModule
from .parse.layouts import LAYOUTS, Layout
from .parse.row_parser import RowParser, to_row
from .read.known_datasets import KNOWN_DATASETS, KnownDataset, known_dataset
from .read.readers import Record, read_records
from .read.sources import Source
from .report.account import DataReport, NoUsableRowError
from .report.builder import ReportBuilder
from .rows import EncodedRow, Row

__all__ = [
    "KNOWN_DATASETS",
    "LAYOUTS",
    "Batch",
    "ConversationDataModule",
    "DataReport",
    "EncodedDataset",
    "EncodedRow",
    "FeedbackColumns",
    "FeedbackDataModule",
    "InstructionDataModule",
    "KnownDataset",
    "Layout",
    "LengthGroupedBatchSampler",
    "NoUsableRowError",
    "PackedBatch",
    "Record",
    "ReportBuilder",
    "Row",
    "RowParser",
    "SequentialBatchSampler",
    "Source",
    "TaskItem",
    "TasksDataModule",
    "VerifiableDataModule",
    "collate",
    "collate_feedback",
    "collate_packed",
    "known_dataset",
    "read_records",
    "to_row",
]

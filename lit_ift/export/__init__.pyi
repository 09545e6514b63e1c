from .card import ExportMetadata
from .verify import verify_export
from .write import export_model

__all__ = ["ExportMetadata", "export_model", "verify_export"]

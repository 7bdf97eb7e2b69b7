"""Export of trained models to torch.export and ONNX, for programs without detris_peft."""

from .exporter import ExportResult, export_model

__all__ = ["ExportResult", "export_model"]

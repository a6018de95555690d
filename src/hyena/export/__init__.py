"""Models outside of PyTorch: plain aten, ONNX files, steps of decoding as plain tensors, packages for C++."""

from hyena.export.decompose import decompose
from hyena.export.onnx import OnnxFile, to_onnx
from hyena.export.package import Package, library, schemas, to_package, write_schemas
from hyena.export.step import StepModel, step_model

__all__ = [
    "OnnxFile",
    "Package",
    "StepModel",
    "decompose",
    "library",
    "schemas",
    "step_model",
    "to_onnx",
    "to_package",
    "write_schemas",
]

"""The registered ops (``torch.ops.hyena``), with a checked Python call for each."""

from hyena.ops._checks import check_cu_seqlens, check_gated_conv, check_row
from hyena.ops._extension import EXTENSION
from hyena.ops._kept import check_instructions, clear_tables
from hyena.ops._layout import compute_dtype, empty_result, from_blocks, to_order_of, transform_length
from hyena.ops._library import fallback_only, find_kernels, has_kernel
from hyena.ops._modules import (
    autocasts,
    fusible,
    has_plain_weights,
    is_hooked,
    is_plain,
    is_plain_tensor,
    run_as_written,
    with_tensors,
    without_autocast,
)
from hyena.ops._packing import check_bounds, longest_row, map_rows, row_bounds
from hyena.ops.add_conv import add_conv_
from hyena.ops.direct_conv import direct_conv, is_direct
from hyena.ops.direct_recurrence import direct_recurrence
from hyena.ops.gated_conv import gated_conv
from hyena.ops.implicit_filter import implicit_filter
from hyena.ops.project import LinearWithoutBias, linear, project, project_for_mixing
from hyena.ops.recurrence import recurrence
from hyena.ops.report import backend_report, library_file, op_names
from hyena.ops.sections import section_length
from hyena.ops.short_conv import check_short_conv, short_conv
from hyena.ops.spectrum import filter_spectrum, move_spectrum, spectrum_room
from hyena.ops.steps import gated_modal_step_, gated_window_step_, modal_step_, short_step_, window_step_

EXTENSION.load()
find_kernels()
check_instructions()

__all__ = [
    "LinearWithoutBias",
    "add_conv_",
    "autocasts",
    "backend_report",
    "check_bounds",
    "check_cu_seqlens",
    "check_gated_conv",
    "check_row",
    "check_short_conv",
    "clear_tables",
    "compute_dtype",
    "direct_conv",
    "direct_recurrence",
    "empty_result",
    "fallback_only",
    "filter_spectrum",
    "from_blocks",
    "fusible",
    "gated_conv",
    "gated_modal_step_",
    "gated_window_step_",
    "has_kernel",
    "has_plain_weights",
    "implicit_filter",
    "is_direct",
    "is_hooked",
    "is_plain",
    "is_plain_tensor",
    "library_file",
    "linear",
    "longest_row",
    "map_rows",
    "modal_step_",
    "move_spectrum",
    "op_names",
    "project",
    "project_for_mixing",
    "recurrence",
    "row_bounds",
    "run_as_written",
    "section_length",
    "short_conv",
    "short_step_",
    "spectrum_room",
    "to_order_of",
    "transform_length",
    "window_step_",
    "with_tensors",
    "without_autocast",
]

// Registers the CPU kernels under the ops that Python defines. Stable ABI: this file serves every torch from 2.11
// on.

#include "ops.h"

#include "../fft/plan.h"
#include "../kernels/memory.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(hyena, CPU, m) {
    m.impl("short_conv", TORCH_BOX(&hyena::short_conv));
    m.impl("short_conv_backward", TORCH_BOX(&hyena::short_conv_backward));
    m.impl("filter_spectrum", TORCH_BOX(&hyena::filter_spectrum));
    m.impl("filter_spectrum_backward", TORCH_BOX(&hyena::filter_spectrum_backward));
    m.impl("gated_conv", TORCH_BOX(&hyena::gated_conv));
    m.impl("add_conv_", TORCH_BOX(&hyena::add_conv));
    m.impl("gated_conv_backward", TORCH_BOX(&hyena::gated_conv_backward));
    m.impl("direct_conv", TORCH_BOX(&hyena::direct_conv));
    m.impl("direct_conv_backward", TORCH_BOX(&hyena::direct_conv_backward));
    m.impl("recurrence", TORCH_BOX(&hyena::recurrence));
    m.impl("project", TORCH_BOX(&hyena::project));
    m.impl("project_channel_blocked", TORCH_BOX(&hyena::project_channel_blocked));
    m.impl("project_from_channel_blocked", TORCH_BOX(&hyena::project_from_channel_blocked));
    m.impl("project_backward", TORCH_BOX(&hyena::project_backward));
    m.impl("recurrence_backward", TORCH_BOX(&hyena::recurrence_backward));
    m.impl("direct_recurrence", TORCH_BOX(&hyena::direct_recurrence));
    m.impl("direct_recurrence_backward", TORCH_BOX(&hyena::direct_recurrence_backward));
    m.impl("short_step_", TORCH_BOX(&hyena::short_step));
    m.impl("modal_step_", TORCH_BOX(&hyena::modal_step));
    m.impl("window_step_", TORCH_BOX(&hyena::window_step));
    m.impl("gated_modal_step_", TORCH_BOX(&hyena::gated_modal_step));
    m.impl("gated_window_step_", TORCH_BOX(&hyena::gated_window_step));
    m.impl("implicit_filter", TORCH_BOX(&hyena::implicit_filter));
    m.impl("implicit_filter_backward", TORCH_BOX(&hyena::implicit_filter_backward));
}

// For Python: frees the tables of transforms and the working memory that are kept between calls, as far as they are not
// in use.
extern "C" __attribute__((visibility("default"))) void hyena_clear_tables() noexcept {
    hyena::clear_plans();
    hyena::clear_memory();
}

// For Python: bytes of the tables of transforms that are kept.
extern "C" __attribute__((visibility("default"))) int64_t hyena_table_bytes() noexcept {
    return hyena::bytes_of_plans();
}

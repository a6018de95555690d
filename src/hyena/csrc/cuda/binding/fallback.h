// Whether kernels take a tensor, and the call of an op's fallback where they do not.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <type_traits>
#include <utility>

#include "arrays.h"

namespace hyena::cuda {

inline bool takes(const Tensor& t) {
    const ScalarType type = t.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::BFloat16 && type != ScalarType::Half) return false;
    return supported(std::max(0, int(t.get_device_index())));
}
// Transforms of so many points too.
inline bool takes(const Tensor& t, int64_t points) {
    return takes(t) && has_plan(points, std::max(0, int(t.get_device_index())));
}

// Kernels of the CPU alone convolve long rows with short spectra.
inline void refuse_sections(bool sectioned) {
    if (sectioned) require(false, "sectioned=True is for a CPU: on a GPU make the spectrum as long as the row");
}

template <class Result, size_t... I>
Result results(StableIValue* stack, std::index_sequence<I...>) {
    return {torch::stable::detail::to<Tensor>(stack[I])...};
}

// hyena::<name>_fallback, which Python registers beside hyena::<name>.
template <class Result, class... Args>
Result fallback(const char* name, const Args&... args) {
    constexpr size_t kResults = [] {
        if constexpr (std::is_same_v<Result, Tensor>)
            return size_t(1);
        else
            return std::tuple_size_v<Result>;
    }();
    std::array<StableIValue, std::max(sizeof...(Args), kResults)> stack{torch::stable::detail::from(args)...};
    call_op(name, "", stack.data());
    if constexpr (std::is_same_v<Result, Tensor>)
        return torch::stable::detail::to<Tensor>(stack[0]);
    else
        return results<Result>(stack.data(), std::make_index_sequence<kResults>{});
}

}  // namespace hyena::cuda

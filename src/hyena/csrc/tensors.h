// What the registration of the CPU's and the GPU's kernels share: dtypes, memory order, transform lengths. Stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

namespace hyena {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// Calls an op; arguments in, results out of the stack.
inline void call_op(const char* name, const char* overload, StableIValue* stack) {
#if defined(STABLE_TORCH_ERROR_CODE_CHECK)  // which later torches have: it keeps the message
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
#else
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
#endif
}

// Whether z of shape (B, L, C) lies in memory as (B, C, L).
inline bool is_channel_major(const Tensor& z) {
    return z.size(1) > 1 && z.size(2) > 1 && z.stride(1) == 1 && z.stride(2) != 1;
}

// Positions of a row are followed by unused ones up to a multiple of this many (_ROW_STEP in ops/_layout.py).
constexpr int64_t kRowStep = 8;

// Uninitialised (B, L, C) that lies in memory as (B, C, L).
inline Tensor new_channel_major(const Tensor& like, int64_t batch, int64_t length, int64_t channels,
                                std::optional<ScalarType> type = std::nullopt) {
    Tensor room =
        torch::stable::new_empty(like, {batch, channels, (length + kRowStep - 1) / kRowStep * kRowStep}, type);
    return torch::stable::transpose(torch::stable::narrow(room, 2, 0, length), 1, 2);
}

// Parameters in arithmetic precision, contiguous.
inline Tensor parameter(const Tensor& t, ScalarType type) {
    return torch::stable::contiguous(t.scalar_type() == type ? t : torch::stable::to(t, type));
}
inline Optional parameter(const Optional& t, ScalarType type) {
    if (!t) return t;
    return parameter(*t, type);
}

// A gradient in the dtype of what it is of.
inline Tensor back(const Tensor& gradient, const Tensor& like) {
    return gradient.scalar_type() == like.scalar_type() ? gradient : torch::stable::to(gradient, like.scalar_type());
}
inline Tensor back(const Tensor& gradient, const Optional& like) { return like ? back(gradient, *like) : gradient; }

// The longest fast length (2^a 3^b 5^c, above 64 a multiple of 16) that a spectrum of `size` points has room for.
inline int64_t points_of(int64_t size) {
    const auto fast = [](int64_t n) {
        if (n > 64 && n % 16 != 0) return false;
        for (int64_t p : {2, 3, 5})
            while (n % p == 0) n /= p;
        return n == 1;
    };
    while (!fast(size)) size -= size <= 64 || size % 16 == 0 ? 1 : size % 16;
    return size;
}

}  // namespace hyena

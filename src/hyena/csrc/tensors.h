// Tensors in both bindings: dtypes, memory order, transform lengths, errors of torch's. Stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <iomanip>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

// In torch 2.13 and later, null otherwise.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace hyena {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// Unless `holds`, throws std::invalid_argument, a ValueError in Python, with all the parts in a row. From torch 2.15 on
// Python knows it by its first word alone (ops/_derivatives.py): other errors begin with "hyena failed".
template <class... Parts>
void require(bool holds, const Parts&... parts) {
    if (holds) return;
    std::ostringstream text;
    text << "hyena: ";
    ((text << parts), ...);
    throw std::invalid_argument(text.str());
}

// What torch says of the last error in this thread; only later ones than the oldest that this is built for do.
inline std::string torch_error() {
    if (torch_exception_get_what_without_backtrace == nullptr) return "";
    const char* what = torch_exception_get_what_without_backtrace();
    return what == nullptr ? "" : what;
}

// Calls an op; arguments in, results out of the stack.
inline void call_op(const char* name, const char* overload, StableIValue* stack) {
    if (torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS) return;
    const std::string what = torch_error();
    throw std::runtime_error(what.empty() ? std::string("hyena failed: ") + name : what);
}

// make(), which is to give a tensor of so many elements. If torch cannot, the error says how many bytes were asked for.
template <class Make>
Tensor made(double elements, ScalarType type, Make&& make) {
    try {
        return make();
    } catch (const std::exception&) {
        const double bytes = elements * (type == ScalarType::Double || type == ScalarType::Long ? 8
                                         : type == ScalarType::Float                            ? 4
                                                                                                : 2);
        std::ostringstream text;
        text << "hyena failed: out of memory: could not make a tensor of " << std::fixed << std::setprecision(0)
             << bytes << " bytes. " << torch_error();
        throw std::runtime_error(text.str());
    }
}

// Uninitialised memory, zeros, a contiguous tensor and one of another dtype.
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
inline double elements_of(const Sizes& sizes) {
    double count = 1;
    for (const int64_t n : sizes) count *= double(n);
    return count;
}
inline std::array<int64_t, 8> contiguous_strides(const Sizes& sizes) {
    std::array<int64_t, 8> strides{};
    require(sizes.size() <= strides.size(), "a tensor of ", sizes.size(), " dimensions");
    int64_t step = 1;
    for (size_t i = sizes.size(); i-- > 0; step *= sizes[i] > 1 ? sizes[i] : 1) strides[i] = step;
    return strides;
}
inline Tensor allocate(const Tensor& like, Sizes sizes, std::optional<ScalarType> type = std::nullopt) {
    const ScalarType element = type.value_or(like.scalar_type());
    // Not torch's new_empty, which is found by its name at every call and takes longer than a small kernel.
    return made(elements_of(sizes), element, [&] {
        const std::array<int64_t, 8> strides = contiguous_strides(sizes);
        int32_t device_type, device_index;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
        const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(element));
        AtenTensorHandle handle;
        TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), dtype,
                                                        device_type, device_index, &handle));
        return Tensor(handle);
    });
}
inline Tensor zeros(const Tensor& like, Sizes sizes, std::optional<ScalarType> type = std::nullopt) {
    return made(elements_of(sizes), type.value_or(like.scalar_type()),
                [&] { return torch::stable::new_zeros(like, sizes, type); });
}
inline Tensor dense(const Tensor& t) {
    if (t.is_contiguous()) return t;  // what torch would find out, at the price of a call of an op
    return made(double(t.numel()), t.scalar_type(), [&] { return torch::stable::contiguous(t); });
}
inline Tensor converted(const Tensor& t, ScalarType type) {
    return made(double(t.numel()), type, [&] { return torch::stable::to(t, type); });
}

// The dtype of the arithmetic.
inline ScalarType compute_type(const Tensor& t) {
    return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Channels of a block of a sequence in channel blocks, (B, C / 16, L, 16) (CHANNEL_BLOCK in ops/_layout.py).
constexpr int64_t kChannelBlock = 16;

// Whether a sequence is in channel blocks, and not (B, L, C).
inline bool is_blocked(const Tensor& z) { return z.dim() == 4; }
inline int64_t length_of(const Tensor& z) { return z.size(is_blocked(z) ? 2 : 1); }
inline int64_t channels_of(const Tensor& z) { return is_blocked(z) ? z.size(1) * z.size(3) : z.size(2); }

// Into channel blocks and out of them, for kernels that take none.
inline Tensor to_blocks(const Tensor& y) {
    const int64_t blocks = y.size(2) / kChannelBlock;
    const Tensor apart = torch::stable::reshape(y, {y.size(0), y.size(1), blocks, kChannelBlock});
    return torch::stable::contiguous(torch::stable::transpose(apart, 1, 2));
}
inline Tensor from_blocks(const Tensor& z) {
    return torch::stable::reshape(torch::stable::transpose(z, 1, 2), {z.size(0), length_of(z), channels_of(z)});
}

// Whether z of shape (B, L, C) lies in memory as (B, C, L).
inline bool is_channel_major(const Tensor& z) {
    return z.dim() == 3 && z.size(1) > 1 && z.size(2) > 1 && z.stride(1) == 1 && z.stride(2) != 1;
}

// Positions of a row are followed by unused ones up to a multiple of this many (_ROW_STEP in ops/_layout.py).
constexpr int64_t kRowStep = 8;

// Uninitialised (B, L, C) that lies in memory as (B, C, L).
inline Tensor new_channel_major(const Tensor& like, int64_t batch, int64_t length, int64_t channels,
                                std::optional<ScalarType> type = std::nullopt) {
    Tensor room = allocate(like, {batch, channels, (length + kRowStep - 1) / kRowStep * kRowStep}, type);
    return torch::stable::transpose(torch::stable::narrow(room, 2, 0, length), 1, 2);
}

// Parameters in arithmetic precision, contiguous.
inline Tensor parameter(const Tensor& t, ScalarType type) {
    return dense(t.scalar_type() == type ? t : converted(t, type));
}
inline Optional parameter(const Optional& t, ScalarType type) {
    if (!t) return t;
    return parameter(*t, type);
}

// A gradient in the dtype of what it is of.
inline Tensor back(const Tensor& gradient, const Tensor& like) {
    return gradient.scalar_type() == like.scalar_type() ? gradient : converted(gradient, like.scalar_type());
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

#include "arrays.h"

#include <atomic>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include "../kernels/memory.h"

namespace hyena {
namespace {

Storage storage_of(const Tensor& t) {
    switch (t.scalar_type()) {
        case ScalarType::Float: return Storage::kFloat;
        case ScalarType::Double: return Storage::kDouble;
        case ScalarType::BFloat16: return Storage::kBFloat16;
        case ScalarType::Half: return Storage::kFloat16;
        default: throw std::invalid_argument("hyena: expected float64, float32, bfloat16 or float16");
    }
}

int64_t element_size(ScalarType type) { return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2; }

}  // namespace

Pool pool() {
    return {int(torch::stable::get_num_threads()), [](int64_t count, void (*body)(void*, int64_t), void* context) {
                // An exception must not cross torch's C interface, which would put a message of its own in its place.
                std::exception_ptr error;
                std::atomic<bool> failed{false};
                torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
                    try {
                        for (int64_t i = begin; i < end && !failed.load(std::memory_order_relaxed); ++i)
                            body(context, i);
                    } catch (...) {
                        if (!failed.exchange(true)) error = std::current_exception();
                    }
                });
                if (error) std::rethrow_exception(error);
            }};
}

Tensor channels_last(const Tensor& t) {
    const int64_t last = t.dim() - 1;
    return t.size(last) == 1 || t.stride(last) == 1 ? t : dense(t);
}
Optional channels_last(const Optional& t) {
    if (!t) return std::nullopt;
    return channels_last(*t);
}

Array array(const Tensor& t) {
    static_assert(kLaneBlock == kChannelBlock);
    if (is_blocked(t)) return {t.data_ptr(), t.stride(0), t.stride(2), t.stride(1)};
    return {t.data_ptr(), t.stride(0), t.stride(1)};
}
Array array(const Optional& t) { return t ? array(*t) : Array{}; }

Tensor result(const Tensor& like, Sizes sizes, std::optional<ScalarType> type) {
    const ScalarType element = type.value_or(like.scalar_type());
    const double bytes = elements_of(sizes) * double(element_size(element));
    if (bytes < double(kLongResult) || bytes > 1e18) return allocate(like, sizes, type);  // torch says what is too much
    return made(elements_of(sizes), element, [&] {
        const size_t count = size_t(bytes);
        void* data = take_result(count);
        const auto strides = contiguous_strides(sizes);
        using torch::stable::detail::from, torch::stable::detail::to;
        AtenTensorHandle handle;
        const AOTITorchError error = torch_from_blob(
            data, int64_t(sizes.size()), sizes.data(), strides.data(), 0, to<int32_t>(from(element)),
            aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
            [](void* memory, void* length) { give_back_result(memory, reinterpret_cast<size_t>(length)); },
            reinterpret_cast<void*>(count));
        if (error != AOTI_TORCH_SUCCESS) {
            give_back_result(data, count);
            throw std::runtime_error(torch_error());
        }
        return Tensor(handle);
    });
}

Tensor empty(const Tensor& like, int64_t channels, std::optional<ScalarType> type) {
    const int64_t batch = like.size(0), length = length_of(like);
    if (is_blocked(like)) return result(like, {batch, channels / kChannelBlock, length, kChannelBlock}, type);
    return result(like, {batch, length, channels}, type);
}

Tensor in_order_of(const Tensor& y, const Tensor& z) {
    if (!is_channel_major(z)) return y;
    Tensor swapped = new_channel_major(y, y.size(0), y.size(1), y.size(2));
    torch::stable::copy_(swapped, y);
    return swapped;
}
Tensor in_order_of(const Tensor& y, const Optional& z) { return z ? in_order_of(y, *z) : y; }

SequenceRows::SequenceRows(const Tensor& z, const Optional& given, const Optional& cu_seqlens, int64_t longest) {
    const int64_t batch = z.size(0), length = length_of(z);
    if (cu_seqlens) {
        Tensor offsets = parameter(*cu_seqlens, ScalarType::Long);
        const int64_t* at = static_cast<const int64_t*>(offsets.const_data_ptr());
        const int64_t count = offsets.size(0);
        require(at[0] == 0 && at[count - 1] == length, "cu_seqlens must rise from 0 to the packed length ", length,
                " of one row");
        for (int64_t i = 0; i + 1 < count; ++i) {
            require(at[i] <= at[i + 1] && at[i + 1] - at[i] <= longest, "cu_seqlens holds a row of ", at[i + 1] - at[i],
                    " positions, but its spectrum serves rows of 0 to ", longest);
            if (at[i] < at[i + 1]) rows.push_back({0, at[i], at[i + 1] - at[i]});
        }
    } else {
        require(length <= longest, "a row of ", length, " positions needs a spectrum of that size, not ", longest);
        for (int64_t b = 0; b < batch; ++b) rows.push_back({b, 0, length});
    }
    const uint8_t* keep = nullptr;
    if (given) {
        mask = dense(*given);
        keep = static_cast<const uint8_t*>(mask.const_data_ptr());
    }
    sequence = {rows.data(), int64_t(rows.size()), keep, length, storage_of(z), pool()};
}

Spectra spectra(const Tensor& t, int64_t filters) {
    const int64_t channels = t.size(t.dim() - 3), size = t.size(t.dim() - 2) - 1;
    return {t.data_ptr(), channels * (size + 1) * 2, filters, channels, points_of(size)};
}

Tensor empty_spectrum(const Tensor& like, int64_t filters, int64_t channels, int64_t size) {
    Tensor t = result(like, {filters, channels, size + 1, 2});
    const int64_t used = channels * points_of(size) * 2, all = channels * (size + 1) * 2,
                  bytes = element_size(t.scalar_type());
    if (t.numel() == 0) return t;
    for (int64_t f = 0; f < filters; ++f)
        std::memset(static_cast<char*>(t.data_ptr()) + (f * all + used) * bytes, 0, (all - used) * bytes);
    return t;
}

ShortFilter short_filter(const Tensor& weight, const Tensor& bias) {
    return {weight.data_ptr(), bias.data_ptr(), weight.size(1)};
}

ChannelBiasArgs channel_bias_args(const Tensor& x) {
    ChannelBiasArgs args{};
    args.x = array(x);
    args.batch = x.size(0);
    args.length = length_of(x);
    args.channels = channels_of(x);
    args.storage = storage_of(x);
    args.pool = pool();
    return args;
}

Tensor bias_or_zeros(const Optional& bias, const Tensor& weight, ScalarType type) {
    return bias ? parameter(*bias, type) : zeros(weight, {weight.size(0)}, type);
}

}  // namespace hyena

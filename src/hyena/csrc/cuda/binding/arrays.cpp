#include "arrays.h"

#include <algorithm>
#include <stdexcept>

namespace hyena::cuda {
namespace {

Storage storage_of(const Tensor& t) {
    switch (t.scalar_type()) {
        case ScalarType::BFloat16: return Storage::kBFloat16;
        case ScalarType::Half: return Storage::kFloat16;
        case ScalarType::Float: return Storage::kFloat;
        default: throw std::invalid_argument("hyena: expected float32, bfloat16 or float16");
    }
}

}  // namespace

Tensor positions_last(const Tensor& t) {
    if (t.size(1) == 1 || t.stride(1) == 1) return t;
    Tensor copy = new_channel_major(t, t.size(0), t.size(1), t.size(2));
    torch::stable::copy_(copy, t);
    return copy;
}
Optional positions_last(const Optional& t) {
    if (!t) return t;
    return positions_last(*t);
}

Array array(const Tensor& t) {
    const Storage storage = storage_of(t);
    return {t.data_ptr(), storage, t.stride(0) << shift_of(storage), t.stride(2) << shift_of(storage)};
}
Operand operand(const Tensor& t) { return {array(t), nullptr, nullptr, 0}; }
Operand operand(const Optional& t) { return t ? operand(*t) : Operand{}; }

Tensor empty(const Tensor& like, int64_t channels, std::optional<ScalarType> type) {
    return new_channel_major(like, like.size(0), like.size(1), channels, type);
}

Tensor in_order_of(const Tensor& y, const Tensor& z) { return is_channel_major(z) ? y : dense(y); }
Tensor in_order_of(const Tensor& y, const Optional& z) { return z ? in_order_of(y, *z) : y; }

Tensor spectrum_memory(const Tensor& t) {
    const Tensor dense = parameter(t, kCompute);
    return reinterpret_cast<uintptr_t>(dense.data_ptr()) % alignof(Cx) == 0 ? dense : torch::stable::clone(dense);
}

Spectra spectra_of(const Tensor& t, int64_t channels) {
    const int64_t groups = t.size(t.dim() - 3);
    return {static_cast<Cx*>(t.data_ptr()), groups, t.size(t.dim() - 2), channels / std::max<int64_t>(groups, 1)};
}

int64_t size_of(const Tensor& spectrum) { return points_of(spectrum.size(spectrum.dim() - 2) - 1); }

Array part(Array a, int64_t first) {
    a.data = static_cast<char*>(a.data) + first * a.channel_stride;
    return a;
}

Projections::Projections(const Tensor& z_in, const Tensor& weight_in, const Optional& bias_in,
                         const Optional& z_bias_in)
    : weight(parameter(weight_in, kCompute)),
      bias(parameter(bias_in, kCompute)),
      z_bias(parameter(z_bias_in, kCompute)),
      z(array(z_in)) {}

Input::Input(const Tensor& z, const Optional& given, const Optional& cu_seqlens, int64_t longest, int64_t channels) {
    Sequences s;
    s.count = z.size(0);
    s.length = s.longest = z.size(1);
    require(s.length <= INT32_MAX / 2, "rows of ", s.length, " positions are longer than kernels take, ",
            INT32_MAX / 2);
    if (cu_seqlens) {
        offsets = dense(torch::stable::to(*cu_seqlens, z.device()));
        offsets = parameter(offsets, ScalarType::Long);
        s.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
        s.count = offsets.size(0) - 1;
        s.longest = std::min(s.longest, longest);
    } else {
        require(s.length <= longest, "a row of ", s.length, " positions needs a spectrum of that size, not ", longest);
    }
    if (given) {
        mask = dense(*given);
        s.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
    }
    call = {device_of(z), z, s, channels};
}

}  // namespace hyena::cuda

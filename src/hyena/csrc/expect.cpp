#include "expect.h"

#include <utility>

namespace hyena {

std::string name_of(ScalarType type) {
    switch (type) {
        case ScalarType::Float: return "float32";
        case ScalarType::Double: return "float64";
        case ScalarType::Half: return "float16";
        case ScalarType::BFloat16: return "bfloat16";
        case ScalarType::Bool: return "bool";
        case ScalarType::Int: return "int32";
        case ScalarType::Long: return "int64";
        case ScalarType::ComplexFloat: return "complex64";
        case ScalarType::ComplexDouble: return "complex128";
        default: return torch::headeronly::toString(type);
    }
}

namespace {

std::string device_of(const Tensor& t) {
    const auto device = t.device();
    std::string name;
    switch (device.type()) {
        case torch::headeronly::DeviceType::CPU: return "cpu";
        case torch::headeronly::DeviceType::CUDA: name = "cuda"; break;
        case torch::headeronly::DeviceType::Meta: return "meta";
        default: name = "device type " + std::to_string(int(device.type())); break;
    }
    return name + ":" + std::to_string(int(device.index()));
}

bool same_device(const Tensor& a, const Tensor& b) {
    return a.device().type() == b.device().type() && a.get_device_index() == b.get_device_index();
}

// Whether every element lies inside the tensor's storage, which another view may have emptied.
bool has_memory(const Tensor& t) {
    if (t.numel() == 0) return true;
    int64_t last = t.storage_offset(), bytes = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
    return (last + 1) * int64_t(t.element_size()) <= bytes;
}

}  // namespace

void expect(const char* name, const Tensor& t, std::initializer_list<int64_t> sizes, const Types& types,
            const Tensor& beside) {
    if (!t.defined()) require(false, name, " must be ", types.text, " of shape ", shape_of(sizes), ", got None");
    bool fits = t.dim() == int64_t(sizes.size()) && types.take(t.scalar_type()) && same_device(t, beside);
    int64_t i = 0;
    if (fits)
        for (const int64_t n : sizes) fits = (n == kAny || t.size(i) == n) && fits, ++i;
    if (!fits)
        require(false, name, " must be ", types.text, " of shape ", shape_of(sizes), " on ", device_of(beside),
                ", got ", name_of(t.scalar_type()), " of shape ", shape_of(t.sizes()), " on ", device_of(t));
    if (!has_memory(t))
        require(false, name, " of shape ", shape_of(t.sizes()),
                " has no memory for its elements: its storage was resized");
}
void expect(const char* name, const Optional& t, std::initializer_list<int64_t> sizes, const Types& types,
            const Tensor& beside) {
    if (t) expect(name, *t, sizes, types, beside);
}

void expect_like(const char* name, const Tensor& t, const Tensor& z) {
    expect(name, t, {z.size(0), z.size(1), z.size(2)}, only(z.scalar_type()), z);
}
void expect_like(const char* name, const Optional& t, const Tensor& z) {
    if (t) expect_like(name, *t, z);
}

// From the innermost dimension on, each must begin behind the last.
void expect_one_place(const char* name, const Tensor& t) {
    if (t.numel() == 0) return;
    std::array<std::pair<int64_t, int64_t>, 3> dims;
    for (int64_t i = 0; i < 3; ++i) dims[size_t(i)] = {t.stride(i), t.size(i)};
    std::sort(dims.begin(), dims.end());
    int64_t reach = 0;
    for (const auto& [stride, size] : dims) {
        if (size > 1 && stride <= reach)
            require(false, name, " of shape ", shape_of(t.sizes()), " and strides ", shape_of(t.strides()),
                    " has elements that share memory, and is written: pass a copy");
        reach += (size - 1) * stride;
    }
}

}  // namespace hyena

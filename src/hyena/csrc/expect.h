// What checks of arguments are made of: an argument's shape, dtype, device and memory, and the error where they do not
// fit.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <sstream>
#include <string>

#include "tensors.h"

namespace hyena {

constexpr int64_t kAny = -1;  // a size that another argument does not fix

std::string name_of(ScalarType type);

template <class Sizes>
std::string shape_of(const Sizes& sizes) {
    std::ostringstream text;
    text << '(';
    int64_t count = 0;
    for (const int64_t n : sizes) {
        text << (count++ > 0 ? ", " : "");
        if (n == kAny)
            text << "any";
        else
            text << n;
    }
    text << (count == 1 ? ",)" : ")");
    return text.str();
}

// What a dtype must be.
struct Types {
    std::string text;
    std::array<ScalarType, 4> allowed;

    bool take(ScalarType type) const { return std::find(allowed.begin(), allowed.end(), type) != allowed.end(); }
};
inline const Types kFloats{"float64, float32, bfloat16 or float16",
                           {ScalarType::Double, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}};
inline const Types kNarrow{"float32, bfloat16 or float16, since the input is not float64,",
                           {ScalarType::Float, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}};
inline const Types kBool{"bool", {ScalarType::Bool, ScalarType::Bool, ScalarType::Bool, ScalarType::Bool}};
inline const Types kOffsets{"int32 or int64", {ScalarType::Int, ScalarType::Long, ScalarType::Int, ScalarType::Long}};
inline const Types kWide{"float32 or float64",
                         {ScalarType::Float, ScalarType::Double, ScalarType::Float, ScalarType::Double}};
inline Types only(ScalarType type) { return {name_of(type), {type, type, type, type}}; }

// Raises unless an argument has this shape, dtype, device (that of `beside`) and memory for its elements.
void expect(const char* name, const Tensor& t, std::initializer_list<int64_t> sizes, const Types& types,
            const Tensor& beside);
void expect(const char* name, const Optional& t, std::initializer_list<int64_t> sizes, const Types& types,
            const Tensor& beside);

// Another of the same shape and dtype.
void expect_like(const char* name, const Tensor& t, const Tensor& z);
void expect_like(const char* name, const Optional& t, const Tensor& z);

// Raises where elements share memory: what is written several times would be added to several times.
void expect_one_place(const char* name, const Tensor& t);

}  // namespace hyena

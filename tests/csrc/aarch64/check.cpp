// The baseline kernels alone, without torch, against sums in double precision: for instruction sets that only an
// emulator runs. Built and run by run.sh. Prints one line for each comparison, and fails if an error is larger than its
// limit.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels.h"

using namespace hyena;

namespace {

int failures = 0;

void expect(const char* what, double error, double limit) {
    std::printf("%-32s error %.1e, limit %.1e\n", what, error, limit);
    if (!(error <= limit)) ++failures;
}

uint32_t state = 1;
double uniform() {  // -1 … 1, a multiple of 1/128, so that every storage holds it
    state = state * 1664525u + 1013904223u;
    return (int(state >> 24) - 128) / 128.0;
}
std::vector<double> random(size_t count) {
    std::vector<double> x(count);
    for (double& v : x) v = uniform();
    return x;
}

// The compiler's own half precision is the measure of the kernels' conversions.
struct BFloat16 {
    uint16_t bits;
    BFloat16(double v = 0) {
        const float f = float(v);
        uint32_t w;
        std::memcpy(&w, &f, 4);
        bits = std::isnan(f) ? uint16_t(w >> 16 | 0x40) : uint16_t((w + 0x7fff + (w >> 16 & 1)) >> 16);
    }
    operator double() const {
        const uint32_t w = uint32_t(bits) << 16;
        float f;
        std::memcpy(&f, &w, 4);
        return f;
    }
};

template <class To>
std::vector<To> as(const std::vector<double>& x) {
    return std::vector<To>(x.begin(), x.end());
}

template <class A, class B>
double largest_difference(const std::vector<A>& a, const std::vector<B>& b) {
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i) worst = std::fmax(worst, std::abs(double(a[i]) - double(b[i])));
    return worst;
}

Pool serial() {
    return {1, [](int64_t count, void (*body)(void*, int64_t), void* context) {
                for (int64_t i = 0; i < count; ++i) body(context, i);
            }};
}

template <class IO>
Array array(std::vector<IO>& x, int64_t stride) {
    return {x.data(), 0, stride};
}

// post * (h conv (pre * v) + d * pre * v), by transforms and tap by tap, and the whole mixing step that contains it.
template <class T, class IO>
void convolutions(const char* name, Storage storage, double limit) {
    constexpr int64_t L = 301, C = 6, P = 320;
    char what[64];
    const Row row{0, 0, L};
    const Sequence sequence{&row, 1, nullptr, 0, storage, serial()};
    const auto z = random(L * 3 * C), h = random(L * C), d = random(C);
    std::vector<double> y(L * C);
    for (int64_t t = 0; t < L; ++t)
        for (int64_t c = 0; c < C; ++c) {
            const auto product = [&](int64_t s) { return z[s * 3 * C + C + c] * z[s * 3 * C + 2 * C + c]; };
            double sum = d[c] * product(t);
            for (int64_t s = 0; s <= t; ++s) sum += h[(t - s) * C + c] * product(s);
            y[t * C + c] = z[t * 3 * C + c] * sum;
        }

    auto taps = as<T>(h), skip = as<T>(d);
    std::vector<T> spectrum(2 * (P + 1) * C), ones(3 * C, T(1)), zeros(3 * C, T(0));
    SpectrumArgs s{};
    s.spectra = {spectrum.data(), 0, 1, C, P};
    s.taps = taps.data();
    s.lags = L;
    s.causal = true;
    s.is_double = sizeof(T) == 8;
    s.pool = serial();
    kernels().spectrum(s);

    auto io = as<IO>(z);
    std::vector<IO> got(L * C);
    GatedConvArgs g{};
    g.seq = sequence;
    g.channels = C;
    g.post = {io.data(), 0, 3 * C};
    g.pre = {io.data() + C, 0, 3 * C};
    g.v = {io.data() + 2 * C, 0, 3 * C};
    g.y = array(got, C);
    g.spectra = s.spectra;
    g.d = skip.data();
    kernels().gated_conv(g);
    std::snprintf(what, sizeof what, "gated_conv %s", name);
    expect(what, largest_difference(got, y), limit);

    RecurrenceArgs m{};
    m.seq = sequence;
    m.channels = C;
    m.order = 2;
    m.z = array(io, 3 * C);
    m.y = array(got, C);
    m.short_filter = {ones.data(), zeros.data(), 1};
    m.spectra = s.spectra;
    m.d = skip.data();
    kernels().recurrence(m);
    std::snprintf(what, sizeof what, "recurrence %s", name);
    expect(what, largest_difference(got, y), limit);

    DirectConvArgs direct{};
    direct.seq = sequence;
    direct.channels = direct.filters = C;
    direct.taps = L;
    direct.causal = true;
    direct.v = g.v;
    direct.pre = g.pre;
    direct.post = g.post;
    direct.y = array(got, C);
    direct.h = taps.data();
    direct.d = skip.data();
    kernels().direct_conv(direct);
    std::snprintf(what, sizeof what, "direct_conv %s", name);
    expect(what, largest_difference(got, y), limit);
}

// Every 16-bit number is read, multiplied in float and rounded, as the compiler would do it.
template <class IO>
void conversions(const char* name, Storage storage) {
    std::vector<IO> x(65536), y(65536);
    for (int i = 0; i < 65536; ++i) {
        const uint16_t bits = uint16_t(i);
        std::memcpy(static_cast<void*>(&x[i]), &bits, 2);
    }
    int wrong = 0;
    for (const float factor : {1.0f, 0.7f, 1e-5f, 1e4f}) {
        const std::vector<float> weight(65536, factor), bias(65536, 0.0f);
        const Row row{0, 0, 1};
        ShortConvArgs a{};
        a.seq = {&row, 1, nullptr, 0, storage, serial()};
        a.channels = 65536;
        a.z = array(x, 65536);
        a.y = array(y, 65536);
        a.filter = {weight.data(), bias.data(), 1};
        kernels().short_conv(a);
        for (int i = 0; i < 65536; ++i) {
            const IO want = IO(float(double(x[i])) * factor + 0.0f);
            const bool same = std::isnan(double(want)) ? std::isnan(double(y[i])) : double(want) == double(y[i]);
            wrong += !same;
        }
    }
    std::printf("%-32s %d of 4 x 65536 wrong\n", name, wrong);
    failures += wrong > 0;
}

template <class T>
void filter(const char* name, double limit) {
    constexpr int64_t K = 131, E = 5, H = 9, C = 7;
    const auto x = random(K * E), first = random(H * E), inner = random(H * H), biases = random(2 * H),
               freq = random(H);
    const auto out = random(C * H), deltas = random(C);
    std::vector<double> time(K), want(K * C);
    for (int64_t t = 0; t < K; ++t) {
        time[t] = t / 128.0;
        std::vector<double> a(H), b(H);
        for (int64_t i = 0; i < H; ++i) {
            double sum = biases[i];
            for (int64_t j = 0; j < E; ++j) sum += first[i * E + j] * x[t * E + j];
            a[i] = std::sin(freq[i] * sum);
        }
        for (int64_t i = 0; i < H; ++i) {
            double sum = biases[H + i];
            for (int64_t j = 0; j < H; ++j) sum += inner[i * H + j] * a[j];
            b[i] = std::sin(freq[i] * sum);
        }
        for (int64_t c = 0; c < C; ++c) {
            double sum = 0;
            for (int64_t i = 0; i < H; ++i) sum += out[c * H + i] * b[i];
            want[t * C + c] = sum * (std::exp(-time[t] * std::abs(deltas[c])) + 0.5);
        }
    }
    auto tx = as<T>(x), tt = as<T>(time), tf = as<T>(first), ti = as<T>(inner), tb = as<T>(biases), tq = as<T>(freq);
    auto to = as<T>(out), td = as<T>(deltas);
    std::vector<T> got(K * C);
    ImplicitFilterArgs a{};
    a.taps = K;
    a.features = E;
    a.width = H;
    a.inner_layers = 1;
    a.filters = 1;
    a.channels = C;
    a.is_double = sizeof(T) == 8;
    a.shift = 0.5;
    a.input = tx.data();
    a.time = tt.data();
    a.first = tf.data();
    a.inner = ti.data();
    a.biases = tb.data();
    a.freq = tq.data();
    a.out = to.data();
    a.deltas = td.data();
    a.h = got.data();
    a.pool = serial();
    kernels().implicit_filter(a);
    expect(name, largest_difference(got, want), limit);
}

}  // namespace

int main() {
    std::printf("instructions: %s\n", kernels().name);
    // Outputs are up to a few units large; 16-bit ones are rounded by half of their last place at that size.
    convolutions<double, double>("float64", Storage::kDouble, 1e-13);
    convolutions<float, float>("float32", Storage::kFloat, 3e-5);
    convolutions<float, BFloat16>("bfloat16", Storage::kBFloat16, 4e-2);
    convolutions<float, __fp16>("float16", Storage::kFloat16, 8e-3);
    conversions<BFloat16>("bfloat16 conversions", Storage::kBFloat16);
    conversions<__fp16>("float16 conversions", Storage::kFloat16);
    filter<double>("implicit_filter float64", 1e-13);
    filter<float>("implicit_filter float32", 3e-5);
    return failures > 0;
}

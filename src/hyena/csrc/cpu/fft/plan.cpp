#include "plan.h"

#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace hyena {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Rows up to this long are transformed in one go: their points (128 bytes each with AVX-512) fill a first-level cache.
// Longer transforms are cut in two about evenly.
constexpr int64_t kSingleRow = 256;

template <class T>
struct Tables {
    Plan<T> plan;
    std::vector<std::vector<T>> arrays;

    T* table(size_t complex_numbers) {
        arrays.emplace_back(2 * complex_numbers);
        return arrays.back().data();
    }
};

// exp(2 i pi num / den). The angle is reduced exactly to half a right angle before it is rounded: an angle near 2 pi,
// rounded, would be off by several eps of its sine.
template <class T>
void put_root(T* at, int64_t num, int64_t den) {
    num %= den;
    if (num < 0) num += den;
    const int64_t octant = 8 * num / den, past = 8 * num - octant * den;
    const bool before = octant % 2 != 0;  // closer to the next right angle than to the last
    const double angle = kPi / 4 * ((double)(before ? den - past : past) / (double)den);
    double re = std::cos(angle), im = before ? -std::sin(angle) : std::sin(angle);
    for (int64_t right_angles = (octant + 1) / 2; right_angles > 0; --right_angles) {
        const double turned = re;
        re = -im;
        im = turned;
    }
    at[0] = (T)re;
    at[1] = (T)im;
}

template <class T>
Factors<T> factorise(int64_t n, Tables<T>& tables) {
    Factors<T> f;
    f.n = (int)n;
    std::vector<int> odd;
    int64_t rest = n;
    for (int p : {5, 3})
        while (rest % p == 0) {
            odd.push_back(p);
            rest /= p;
        }
    int twos = 0;
    while (rest % 2 == 0) {
        rest /= 2;
        ++twos;
    }
    if (rest != 1) throw std::invalid_argument("not a product of 2, 3 and 5: " + std::to_string(n));
    for (int r : odd) f.radix[f.stages++] = r;
    // As many eights as leave no lone two: 2^4 is 4 * 4, not 8 * 2.
    int fours = twos % 3 == 1 ? (twos >= 4 ? 2 : 0) : (twos % 3 == 2 ? 1 : 0);
    int lone = twos == 1 ? 1 : 0;
    int eights = (twos - 2 * fours - lone) / 3;
    for (int i = 0; i < eights; ++i) f.radix[f.stages++] = 8;
    for (int i = 0; i < fours; ++i) f.radix[f.stages++] = 4;
    if (lone) f.radix[f.stages++] = 2;
    int64_t m = n;
    for (int s = 0; s < f.stages; ++s) {
        const int r = f.radix[s];
        const int64_t q = m / r;
        T* tw = tables.table(q * (r - 1));
        f.twiddles[s] = tw;
        for (int64_t j = 0; j < q; ++j)
            for (int k = 1; k < r; ++k, tw += 2) put_root(tw, -j * k, m);
        m = q;
    }
    return f;
}

// Which frequency stands at each position after the forward stages.
template <class T>
std::vector<int64_t> order_of(const Factors<T>& f) {
    std::vector<int64_t> frequency(f.n);
    for (int64_t at = 0; at < f.n; ++at) {
        int64_t rest = at, m = f.n, k = 0, step = 1;
        for (int s = 0; s < f.stages; ++s) {
            m /= f.radix[s];
            k += step * (rest / m);
            rest %= m;
            step *= f.radix[s];
        }
        frequency[at] = k;
    }
    return frequency;
}

// The number of points of a column transform: the divisor nearest to the square root, preferring multiples of 8.
int64_t columns_of(int64_t points) {
    if (points <= kSingleRow) return 1;
    const double root = std::sqrt((double)points);
    int64_t best = 1;
    double worst = 1e300;
    for (int64_t d = 2; d <= points / 2; ++d) {
        if (points % d != 0) continue;
        const double off =
            std::abs(std::log((double)d / root)) + (d % 8 == 0 ? 0.0 : 0.5) + ((points / d) % 8 == 0 ? 0.0 : 0.5);
        if (off < worst) {
            worst = off;
            best = d;
        }
    }
    return best;
}

template <class T>
std::unique_ptr<Tables<T>> make(int64_t points) {
    auto tables = std::make_unique<Tables<T>>();
    tables->arrays.reserve(40);
    Plan<T>& plan = tables->plan;
    plan.size = points;
    const int64_t p1 = columns_of(points), p2 = points / p1;
    plan.column = factorise<T>(p1, *tables);
    plan.row = factorise<T>(p2, *tables);
    T* twist = tables->table(p1);
    plan.twist = twist;
    for (int64_t n1 = 0; n1 < p1; ++n1) put_root(twist + 2 * n1, n1, 4 * p1);
    T* between = tables->table(points);
    plan.between = between;
    const auto frequency = order_of(plan.column);
    for (int64_t i = 0; i < p1; ++i)
        for (int64_t n2 = 0; n2 < p2; ++n2)
            put_root(between + 2 * (i * p2 + n2), n2 * (1 - 4 * frequency[i]), 4 * points);
    // Neighbouring columns share the cache lines and pages of a position's neighbours; 64 KiB of them stay in the
    // second cache level beside the rows being read.
    plan.columns_at_once = std::max<int64_t>(1, std::min<int64_t>(8, 512 / p1));
    return tables;
}

}  // namespace

template <class T>
const Plan<T>& plan_for(int64_t points) {
    static std::mutex mutex;
    static std::map<int64_t, std::unique_ptr<Tables<T>>> plans;
    std::lock_guard<std::mutex> lock(mutex);
    auto& slot = plans[points];
    if (!slot) slot = make<T>(points);
    return slot->plan;
}

template const Plan<float>& plan_for<float>(int64_t);
template const Plan<double>& plan_for<double>(int64_t);

}  // namespace hyena

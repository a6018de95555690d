#include "plan.h"

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace hyena {
namespace {

constexpr double kPi = 3.14159265358979323846;

template <class T>
struct Tables {
    Plan<T> plan;
    std::vector<std::vector<T>> arrays;

    int64_t bytes() const {
        int64_t sum = 0;
        for (const auto& array : arrays) sum += int64_t(array.size() * sizeof(T));
        return sum;
    }

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
    // As many eights as leave no lone two: 2^4 is 4 * 4, not 8 * 2.
    int fours = twos % 3 == 1 ? (twos >= 4 ? 2 : 0) : (twos % 3 == 2 ? 1 : 0);
    int lone = twos == 1 ? 1 : 0;
    int eights = (twos - 2 * fours - lone) / 3;
    for (int i = 0; i < eights; ++i) f.radix[f.stages++] = 8;  // first: see Passes::outer_eight
    for (int r : odd) f.radix[f.stages++] = r;
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

// In rising order.
std::vector<int64_t> divisors_of(int64_t n) {
    std::vector<int64_t> low, high;
    for (int64_t d = 1; d * d <= n; ++d) {
        if (n % d != 0) continue;
        low.push_back(d);
        if (d * d < n) high.push_back(n / d);
    }
    low.insert(low.end(), high.rbegin(), high.rend());
    return low;
}

// The number of points of a column transform: the divisor nearest to the square root, preferring multiples of 8.
int64_t columns_of(int64_t points, int64_t single_row) {
    if (points <= single_row) return 1;
    const double root = std::sqrt((double)points);
    int64_t best = 1;
    double worst = 1e300;
    for (const int64_t d : divisors_of(points)) {
        if (d == 1 || d == points) continue;
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
std::unique_ptr<Tables<T>> make(int64_t points, int64_t single_row) {
    auto tables = std::make_unique<Tables<T>>();
    tables->arrays.reserve(40);
    Plan<T>& plan = tables->plan;
    plan.size = points;
    const int64_t p1 = columns_of(points, single_row), p2 = points / p1;
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

// Plans that nobody uses at the moment are kept up to so many bytes of tables, of float32 and float64 together: a
// transform of 1M points has 8 MiB in float32. The last one used stays whatever its size, or a loop over one long row
// would make it each time.
constexpr int64_t kKeptTables = int64_t(64) << 20;

template <class T>
struct Known {
    std::unique_ptr<Tables<T>> tables;
    int users = 0;
    int64_t used_at = 0;
};

// Everything about the plans that there are. Never destroyed, since threads may outlive static destruction; the mutex
// is a constant initialisation, so that no fork can find it half made.
struct Plans {
    std::map<int64_t, Known<float>> of_float;
    std::map<int64_t, Known<double>> of_double;
    int64_t bytes = 0, clock = 0;

    template <class T>
    std::map<int64_t, Known<T>>& of() {
        if constexpr (sizeof(T) == sizeof(float))
            return of_float;
        else
            return of_double;
    }

    // Frees what is not in use, the longest unused first, until `most` bytes are left; the plan used at `except` stays.
    void shrink(int64_t most, int64_t except) {
        while (bytes > most) {
            int64_t oldest = INT64_MAX;
            for_each([&](auto&, auto& entry) {
                if (entry.second.users == 0 && entry.second.used_at != except)
                    oldest = std::min(oldest, entry.second.used_at);
            });
            if (oldest == INT64_MAX) return;
            drop(of_float, oldest);
            drop(of_double, oldest);
        }
    }

    template <class F>
    void for_each(F&& f) {
        for (auto& entry : of_float) f(of_float, entry);
        for (auto& entry : of_double) f(of_double, entry);
    }

  private:
    template <class Map>
    void drop(Map& plans, int64_t used_at) {
        for (auto it = plans.begin(); it != plans.end(); ++it)
            if (it->second.used_at == used_at) {
                bytes -= it->second.tables->bytes();
                plans.erase(it);
                return;
            }
    }
};

std::mutex mutex;

Plans& plans() {
    static Plans& all = *new Plans;
    return all;
}

// A fork waits until no thread is inside, so that the child finds plans and lock as they should be. Threads that had
// plans are not there in the child: nobody uses any.
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); },
                   [] {
                       plans().for_each([](auto&, auto& entry) { entry.second.users = 0; });
                       mutex.unlock();
                   });

}  // namespace

template <class T>
const Plan<T>& take_plan(int64_t points, int64_t single_row) {
    std::lock_guard<std::mutex> lock(mutex);
    Plans& all = plans();
    Known<T>& known = all.of<T>()[points];
    if (!known.tables) {
        try {
            known.tables = make<T>(points, single_row);
        } catch (const std::bad_alloc&) {
            all.of<T>().erase(points);
            throw std::runtime_error("hyena failed: out of memory: the tables of a transform of " +
                                     std::to_string(points) + " points take about " +
                                     std::to_string(2 * points * int64_t(sizeof(T))) + " bytes");
        } catch (...) {
            all.of<T>().erase(points);
            throw;
        }
        all.bytes += known.tables->bytes();
    }
    ++known.users;
    known.used_at = ++all.clock;
    all.shrink(kKeptTables, known.used_at);
    return known.tables->plan;
}

template <class T>
void give_back_plan(const Plan<T>& plan) {
    std::lock_guard<std::mutex> lock(mutex);
    Plans& all = plans();
    Known<T>& known = all.of<T>()[plan.size];
    --known.users;
    all.shrink(kKeptTables, all.clock);
}

void clear_plans() {
    std::lock_guard<std::mutex> lock(mutex);
    plans().shrink(0, -1);
}

int64_t bytes_of_plans() {
    std::lock_guard<std::mutex> lock(mutex);
    return plans().bytes;
}

template const Plan<float>& take_plan<float>(int64_t, int64_t);
template const Plan<double>& take_plan<double>(int64_t, int64_t);
template void give_back_plan<float>(const Plan<float>&);
template void give_back_plan<double>(const Plan<double>&);

}  // namespace hyena

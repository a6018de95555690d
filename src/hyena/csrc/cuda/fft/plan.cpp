#include "plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "../device/tuning.h"

namespace hyena::cuda {
namespace {

// Points that a block should have at least: smaller transforms share one. 128 threads of 16 points.
constexpr int64_t kBlockPoints = 2048;
// Blocks of up to this many points are several to a multiprocessor of 228 KiB.
constexpr int64_t kSharedBlockPoints = 12288;
// Points of a block of columns: three such blocks fit a multiprocessor of 228 KiB.
constexpr int64_t kColumnPoints = 8192;
// Neighbouring columns that a block takes at least: 16 of 8 bytes fill a 128-byte line of the scratch memory.
constexpr int64_t kLeastLanes = 16;

// Odd radices first, then as many sixteens as leave no lone two, last: so every stride but the last is a multiple of 16
// where the number of points is (see Transform::pad).
std::vector<int> radices_of(int64_t n) {
    std::vector<int> radices;
    const int64_t whole = n;
    for (int p : {5, 3})
        for (; n % p == 0; n /= p) radices.push_back(p);
    int twos = 0;
    for (; n % 2 == 0; n /= 2) ++twos;
    if (n != 1) throw std::invalid_argument("hyena: " + std::to_string(whole) + " is not a product of 2, 3 and 5");
    int sixteens = twos / 4;
    switch (twos % 4) {
        case 1:
            if (const int64_t way = tuned(Choice::kRadices, 0); sixteens >= 2 && way != 1) {
                --sixteens;
                if (way == 2 && sixteens >= 2) {
                    --sixteens;
                    radices.push_back(16);
                }
                radices.insert(radices.end(), {8, 4});
            } else {
                radices.push_back(2);
            }
            break;
        case 2: radices.push_back(4); break;
        case 3: radices.push_back(8); break;
        default: break;
    }
    radices.insert(radices.end(), sixteens, 16);
    // The first and the last pass do different things: there are always two.
    while (radices.size() < 2) radices.insert(radices.begin(), 1);
    if (radices.size() > size_t(kMaxPasses))
        throw std::invalid_argument("hyena: " + std::to_string(whole) + " points take too many passes");
    return radices;
}

}  // namespace

int threads_for(int64_t size) {
    const int64_t wanted = (size / 16 + 31) / 32 * 32, most = size <= kSharedBlockPoints ? kManyThreads : kMaxThreads;
    return int(tuned(Choice::kThreads, std::clamp<int64_t>(wanted, 64, most)));
}

int threads_beside(int64_t size, int64_t sets, const Beside& beside, const Limits& limits) {
    const int wanted = threads_for(size);
    for (int threads = wanted; 3 * threads >= 2 * wanted; threads -= 32)
        if (shared_bytes(size, beside.floats(threads, sets)) <= limits.shared) return threads;
    return 0;
}

int64_t shared_bytes(int64_t size, int64_t extra) {
    return buffer_places(uint32_t(size)) * int64_t(sizeof(Cx)) + extra * 4;
}

namespace {

// Whether a block can hold so many points and what a kernel has beside them.
struct Room {
    const Limits& limits;
    const Beside& beside;

    bool fits(int64_t size, int64_t sets) const { return threads_beside(size, sets, beside, limits) > 0; }
};

class Tables {
  public:
    explicit Tables(Plan& plan) : plan_(plan) {}

    // Lays out the passes of `t` and the tables they need; offsets stand in for pointers.
    void transform(Transform& t, int64_t points, int64_t sets, int64_t lanes, bool twist) {
        t.points = uint32_t(points);
        t.scale = 1.f / float(points);
        t.sets = uint32_t(sets);
        t.lanes = uint32_t(lanes);
        while ((int64_t(1) << t.lane_shift) < lanes) ++t.lane_shift;
        const std::vector<int> radices = radices_of(points);
        t.passes = int(radices.size());
        if (points * lanes % 16 == 0) t.pad_shift = 4;
        int64_t m = points;
        Region table{Region::kRoots, 0, 0, twist ? 1 : 0, 1, 0, {}};
        for (int s = 0; s < t.passes; ++s) {
            Pass& pass = t.pass[s];
            pass.radix = radices[size_t(s)];
            pass.blocks = uint32_t(points / m);
            pass.by_blocks = FastDiv(pass.blocks);
            m /= pass.radix;
            pass.stride = uint32_t(m * lanes);
            pass.step = t.pad(pass.stride);
            pass.by_stride = FastDiv(pass.stride);
            const bool last = s + 1 == t.passes;
            if (t.pad_shift == 4 && pass.stride % 16 != 0 && !(last && 16 % pass.radix == 0))
                throw std::logic_error("hyena: stride " + std::to_string(pass.stride) + " of " +
                                       std::to_string(points) + " points");
            table.kind = last ? Region::kLastRoots : Region::kRoots;
            table.den = pass.blocks;
            table.own = pass.radix;
            table.passes = s;
            table.count = pass.blocks * (last ? pairs_of(pass.radix) : pass.radix);
            if (last)
                pass.roots = at<RootPair>(table);
            else if (s > 0)
                pass.roots = at<Cx>(table);
            table.radix[s] = pass.radix;
        }
    }

    void between(Between& b, const Transform& columns) {
        b.period = uint32_t(4 * plan_.points);
        while ((int64_t(1) << (2 * b.shift)) < 4 * plan_.points) ++b.shift;
        const int64_t low = int64_t(1) << b.shift, high = (4 * plan_.points + low - 1) / low;
        b.low = at<Cx>({Region::kTurns, 0, low, 1, 2 * plan_.points, 0, {}});
        b.high = at<Cx>({Region::kTurns, 0, high, low, 2 * plan_.points, 0, {}});
        Region order{Region::kOrder, 0, columns.points, 0, columns.points, columns.passes, {}};
        for (int s = 0; s < columns.passes; ++s) order.radix[s] = columns.pass[s].radix;
        b.frequency = at<uint32_t>(order);
    }

  private:
    template <class Entry>
    const Entry* at(Region region) {
        region.offset = plan_.table_bytes;
        plan_.table_bytes += (region.count * int64_t(sizeof(Entry)) + 255) / 256 * 256;
        plan_.regions.push_back(region);
        return reinterpret_cast<const Entry*>(region.offset);
    }

    Plan& plan_;
};

// The row length of a split transform: near the square root, so that few points are in flight in either pass, rather
// longer than the columns, whose blocks must also hold neighbours. 0 where nothing fits.
int64_t row_length(int64_t points, const Room& room) {
    const double aim = 2 * std::sqrt(double(points));
    int64_t best = 0;
    for (int64_t p1 = 2; p1 <= points / 16 && room.fits(p1 * kLeastLanes, 1); ++p1) {
        if (points % p1 != 0) continue;
        const int64_t p2 = points / p1;
        if (p2 % kLeastLanes != 0 || !room.fits(p2, 1)) continue;
        if (best == 0 || std::abs(std::log(double(p2) / aim)) < std::abs(std::log(double(best) / aim))) best = p2;
    }
    return best;
}

template <class Entry>
void move(const Entry*& pointer, const char* memory) {
    pointer = reinterpret_cast<const Entry*>(memory + reinterpret_cast<int64_t>(pointer));
}

void move(Transform& t, const char* memory) {
    for (int s = 1; s < t.passes; ++s) move(t.pass[s].roots, memory);
}

}  // namespace

bool has_plan(int64_t points, const Limits& limits, const Beside& beside) {
    const Room room{limits, beside};
    return room.fits(points, 1) || row_length(points, room) > 0;
}

Plan::Plan(int64_t p, int64_t channels, const Limits& limits, const Beside& beside) : points(p) {
    const Room room{limits, beside};
    Tables tables(*this);
    if (room.fits(points, 1)) {
        int64_t sets = std::clamp<int64_t>(kBlockPoints / points, 1, std::min(channels, kMaxSets));
        while (sets > 1 && !room.fits(sets * points, sets)) --sets;
        tables.transform(whole, points, sets, 1, true);
        return;
    }
    split = true;
    const int64_t p2 = row_length(points, room);
    if (p2 == 0)
        throw std::invalid_argument("hyena: a transform of " + std::to_string(points) +
                                    " points does not fit this device, whose blocks have " +
                                    std::to_string(limits.shared) + " bytes of shared memory");
    const int64_t p1 = points / p2;
    int64_t lanes = kLeastLanes;
    while (p2 % (2 * lanes) == 0 && 2 * lanes * p1 <= kColumnPoints && room.fits(2 * lanes * p1, 1)) lanes *= 2;
    tables.transform(columns, p1, 1, lanes, true);
    int64_t sets = std::max<int64_t>(1, std::min(p1, kBlockPoints / p2));
    while (p1 % sets != 0 || !room.fits(sets * p2, sets)) --sets;
    tables.transform(rows, p2, sets, 1, false);
    tables.between(between, columns);
}

void Plan::place_tables(const void* memory) {
    const char* at = static_cast<const char*>(memory);
    if (!split) {
        move(whole, at);
        return;
    }
    move(columns, at);
    move(rows, at);
    move(between.high, at);
    move(between.low, at);
    move(between.frequency, at);
}

}  // namespace hyena::cuda

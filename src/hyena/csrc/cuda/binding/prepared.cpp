#include "prepared.h"

#if !defined(HYENA_EMULATE_CUDA)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "../device/tuning.h"

namespace hyena::cuda {
namespace {

#if defined(HYENA_EMULATE_CUDA)
void* current_stream(int) { return nullptr; }
#else
// Looked up at run time, so that the library also loads into a torch without CUDA.
void* current_stream(int device) {
    using Getter = int32_t (*)(int32_t, void**);
    static const Getter getter = [] {
        void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        return reinterpret_cast<Getter>(library == nullptr ? nullptr
                                                           : dlsym(library, "aoti_torch_get_current_cuda_stream"));
    }();
    void* stream = nullptr;
    if (getter == nullptr || getter(device, &stream) != 0)
        throw std::runtime_error("hyena failed: this torch tells no current CUDA stream");
    return stream;
}
#endif

}  // namespace

Device device_of(const Tensor& t) {
    const int index = std::max(0, int(t.get_device_index()));
    return {index, current_stream(index), limits_of(index)};
}

bool has_plan(int64_t points, int device) { return has_plan(points, limits_of(device), kBackwardBeside); }

std::shared_ptr<const Prepared> prepare(int64_t points, int64_t channels, const Tensor& like, const Device& device) {
    using Key = std::tuple<int, int64_t, int64_t, int64_t, int64_t>;
    // Never destroyed: at exit, the device may be gone before these.
    static auto& mutex = *new std::mutex;
    static auto& known = *new std::map<Key, std::shared_ptr<const Prepared>>;
    std::lock_guard<std::mutex> lock(mutex);
    // Plans for more channels than a block takes are the same.
    const Key key{device.index, points, std::clamp<int64_t>(channels, 1, kMaxSets), tuned(Choice::kThreads),
                  tuned(Choice::kRadices)};
    if (const auto found = known.find(key); found != known.end()) return found->second;
    Plan plan(points, std::get<2>(key), device.limits, kBackwardBeside);
    // While a graph is recorded nothing runs yet, and memory belongs to the graph: tables made then serve that call
    // alone. Those that are kept must not be torch's memory at any other time either, since what is run to warm up
    // before a recording may get it from the graph's pool.
    const bool capturing = is_capturing(device);
    void* memory = capturing ? nullptr : permanent_memory(device, std::max<int64_t>(plan.table_bytes, 1));
    const bool keeps = memory != nullptr;
    Tensor tables;
    if (!keeps) {
        tables = allocate(like, {plan.table_bytes / 4}, ScalarType::Float);
        memory = tables.data_ptr();
    }
    for (const Region& region : plan.regions)
        launch("table of twiddles", FillTable{region, static_cast<char*>(memory)}, kMaxThreads, 0, device);
    plan.place_tables(memory);
    auto prepared = std::make_shared<const Prepared>(Prepared{std::move(plan), tables});
    if (keeps) {
        wait_for(device);  // once for each length: other streams may read the tables from here on
        known.emplace(key, prepared);
    }
    return prepared;
}

}  // namespace hyena::cuda

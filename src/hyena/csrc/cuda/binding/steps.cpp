#include "steps.h"

#include <algorithm>
#include <string>
#include <vector>

namespace hyena::cuda {
namespace {

// Rows whose gradients of a filter are added one after the other, in float32; sums of these are added in float64.
constexpr int64_t kRowsOfSum = 256;
// Times that slices of rows may fill the device with blocks: each slice has sums of its own in memory.
constexpr int64_t kMostRounds = 4;

// Blocks of a program that run at once. A multiprocessor has 1 KiB of shared memory more than a block may have, and
// takes 1 KiB of it for every block.
template <template <class> class Program>
int64_t places(const Device& device, int threads, int64_t bytes) {
    constexpr int kThreads = Program<AnyKind>::kBlocksTogether * kManyThreads, kOwn = 1024;
    const int64_t by_registers = (threads <= kManyThreads ? std::max(kThreads, kMaxThreads) : kMaxThreads) / threads;
    const int64_t by_memory = (device.limits.shared + kOwn) / (bytes + kOwn);
    return device.limits.multiprocessors * std::max<int64_t>(1, std::min(by_registers, by_memory));
}

// Into how many parts, `least` or more, to divide the rows of each of `groups`, a block for each part: where blocks of
// equal length come to an end together, so many that few places of the device are then empty. A block takes a quarter
// of a row's time to begin. With `most` times as many blocks as places, no place is empty for long.
int64_t parts_of_rows(int64_t rows, int64_t groups, int64_t places, int64_t least, int64_t most) {
    groups = std::max<int64_t>(groups, 1);
    int64_t best = least, best_time = INT64_MAX;
    for (int64_t parts = least; parts <= std::max(rows, least); ++parts) {
        const int64_t rounds = (groups * parts + places - 1) / places, each = (rows + parts - 1) / parts;
        const int64_t time = rounds * (4 * each + 1);
        if (time < best_time) best = parts, best_time = time;
        if (groups * parts >= most * places) break;
    }
    return best;
}

Cx* complex(const Tensor& t) { return static_cast<Cx*>(t.data_ptr()); }

void forward_split(const Call& call, const Plan& plan, const Step& step, const Array& y) {
    const int64_t bytes = plan.points * int64_t(sizeof(Cx));
    const Rounds rounds(call, call.sequences.count, bytes);
    const Tensor scratch = call.scratch(rounds.pairs() * plan.points * 2);
    rounds.each([&](const Pairs& pairs) {
        const Columns columns = columns_of(plan, pairs, complex(scratch));
        run_columns(call, "columns in", ColumnsIn{call.sequences, columns, step.value, step.pre}, plan);
        run_rows(
            call, "rows",
            RowsConvolve{call.sequences, rows_of(plan), pairs, step.spectra, step.filter, step.d, complex(scratch)},
            plan);
        run_columns(call, "columns out", ColumnsOut{call.sequences, columns, 1, {step.post}, {y}}, plan);
    });
}

void backward_split(const Call& call, const Plan& plan, const Step& step, const Operand& dy, StepGradients& to) {
    const int64_t bytes = 3 * plan.points * int64_t(sizeof(Cx));
    const Rounds rounds(call, call.sequences.count, bytes, Rounds::First::kChannels);
    const int64_t size = rounds.pairs() * plan.points * 2;
    const Tensor input = call.scratch(size), gradient = call.scratch(size), kept = call.scratch(size);
    // Where every channel has its own filter, sums go to where they are wanted.
    const bool direct = step.spectra.width == 1;
    const int64_t stride = direct ? step.spectra.room : plan.points;
    Tensor memory;
    if (!direct) memory = call.scratch(call.channels * stride * 2);
    float* dspectra = direct ? to.dspectrum : floats(memory);
    clear(call.device, dspectra, call.channels * stride * int64_t(sizeof(Cx)));
    const bool outer = step.post.given();
    rounds.each([&](const Pairs& pairs) {
        const Columns in = columns_of(plan, pairs, complex(input)), g = columns_of(plan, pairs, complex(gradient));
        run_columns(call, "columns in", ColumnsIn{call.sequences, in, step.value, step.pre}, plan);
        run_columns(call, "columns of the gradient in", ColumnsIn{call.sequences, g, dy, step.post}, plan);
        Spectra spectra = step.spectra;
        spectra.data = spectra.at(step.filter, 0);
        run_rows(call, "gradient rows",
                 RowsBackward{call.sequences, rows_of(plan), pairs, spectra, step.d, complex(input), complex(gradient),
                              outer, complex(kept), reinterpret_cast<Cx*>(dspectra), stride},
                 plan);
        if (outer) run_columns(call, "columns out", ColumnsOut{call.sequences, in, 1, {dy}, {to.dpost}}, plan);
        ColumnsOut inner{call.sequences, g, 1, {step.pre}, {to.dvalue}};
        if (step.pre.given()) {
            inner.count = 2;
            inner.factors[1] = step.value;
            inner.results[1] = to.dpre;
        }
        run_columns(call, "columns of the gradient out", inner, plan);
    });
    if (!direct)
        reduce(call, dspectra, 1, step.spectra.groups, step.spectra.width, 2 * stride, 2 * step.spectra.room,
               to.dspectrum);
    if (to.dd == nullptr) return;
    dot(call, step.value, step.pre, dy, step.post, to.dd);
}

// Runs a program for rows in one block: as it is compiled for this transform, number of threads, dtype and number of
// taps, if it is; or as it is compiled for any. `operands` have short convolutions of `taps`, `arrays` none; not all of
// them need be given.
template <template <class> class Program>
void run_whole(const Call& call, const char* name, const Program<AnyKind>& program, int threads, int64_t bytes,
               const std::vector<Operand>& operands, const std::vector<Array>& arrays) {
    const int32_t taps = program.value.taps;
    const Storage storage = program.value.array.storage;
    bool alike = call.sequences.mask == nullptr && tuned(Choice::kFixed, 1) != 0;
    const auto look = [&](const Array& a) { alike = alike && (a.data == nullptr || a.storage == storage); };
    for (const Operand& o : operands) {
        look(o.array);
        alike = alike && (!o.given() || o.taps == taps);
    }
    for (const Array& a : arrays) look(a);
    const auto run_as = [&](auto kind) {
        using Kind = decltype(kind);
        if (!alike || storage != Kind::storage || taps != Kind::taps || threads != Kind::kThreads) return false;
        if (!Kind::OwnTransform::is_this(program.transform)) return false;
        Program<Kind> fixed;
        static_cast<typename Program<Kind>::Arguments&>(fixed) = program;
        fixed.transform = typename Kind::OwnTransform(program.transform);
        call.run((std::string(name) + " of one length").c_str(), fixed, threads, bytes);
        return true;
    };
    const auto run_with = [&](auto which, auto count) {
        constexpr Storage kStorage = Storage(decltype(which)::value);
        constexpr int kTaps = decltype(count)::value;
        return run_as(Kind512<kStorage, kTaps>{}) || run_as(Kind1K<kStorage, kTaps>{}) ||
               run_as(Kind2K<kStorage, kTaps>{}) || run_as(Kind4K<kStorage, kTaps>{}) ||
               run_as(Kind8K<kStorage, kTaps>{}) || run_as(Kind16K<kStorage, kTaps>{});
    };
    const auto run_of = [&](auto which) { return run_with(which, Int<0>{}) || run_with(which, Int<3>{}); };
    if (!run_of(Int<int(Storage::kBFloat16)>{}) && !run_of(Int<int(Storage::kFloat16)>{}))
        call.run(name, program, threads, bytes);
}

// A program for rows in one block, with what a step's convolution and its gradient need alike.
template <class Program>
Program program_of(const Call& call, const Plan& plan, const Step& step) {
    Program program;
    program.sequences = call.sequences;
    program.transform = plan.whole;
    program.spectra = step.spectra;
    program.spectra.data = step.spectra.at(step.filter, 0);
    program.d = step.d;
    program.channels = call.channels;
    program.value = step.value;
    return program;
}

void backward_whole(const Call& call, const Plan& plan, const Step& step, const Operand& dy, bool adjoint,
                    StepGradients& to) {
    auto program = program_of<ConvolveBackward<AnyKind>>(call, plan, step);
    const int threads = threads_beside(plan.whole.size(), plan.whole.sets, kBackwardBeside, call.device.limits);
    const int64_t bytes = shared_bytes(plan.whole.size(), kBackwardBeside.floats(threads, plan.whole.sets));
    // Every slice has its own sums.
    const int64_t rows = call.sequences.count, exact = std::max<int64_t>(1, (rows + kRowsOfSum - 1) / kRowsOfSum);
    const int64_t slices = parts_of_rows(rows, program.channel_blocks(),
                                         places<ConvolveBackward>(call.device, threads, bytes), exact, kMostRounds);
    program.slices = std::clamp<int64_t>(tuned(Choice::kSlices, slices), 1, std::max<int64_t>(1, rows));
    program.pre = step.pre;
    program.post = step.post;
    program.dy = dy;
    program.adjoint = adjoint;
    program.dvalue = to.dvalue;
    program.dpre = to.dpre;
    program.dpost = to.dpost;
    const bool direct = step.spectra.width == 1 && program.slices == 1;
    program.spectrum_stride = direct ? step.spectra.room : plan.points;
    Tensor dspectra;
    if (!direct) dspectra = call.scratch(program.slices * call.channels * plan.points * 2);
    const Tensor sums = call.scratch(program.slices * call.channels * kSums);
    const Tensor kept = call.scratch(program.blocks() * plan.whole.size() * 2);
    program.dspectra = direct ? reinterpret_cast<Cx*>(to.dspectrum) : complex(dspectra);
    program.sums = floats(sums);
    program.kept = complex(kept);
    // Where an operand has taps, kernels for one length go back through them.
    const std::vector<Array> arrays{dy.array, to.dvalue, to.dpre, to.dpost};
    if (adjoint == (step.value.taps > 0))
        run_whole<ConvolveBackward>(call, "convolution's gradient", program, threads, bytes,
                                    {step.value, step.pre, step.post}, arrays);
    else
        call.run("convolution's gradient", program, threads, bytes);
    if (!direct)
        reduce(call, floats(dspectra), program.slices, step.spectra.groups, step.spectra.width, 2 * plan.points,
               2 * step.spectra.room, to.dspectrum);
    to.sums = call.scratch(call.channels * kSums);
    reduce(call, floats(sums), program.slices, call.channels, 1, kSums, kSums, floats(to.sums));
    // The first of a channel's sums is that of d.
    if (to.dd != nullptr)
        call.run("gradient of d", TapGradients{call.channels, kSums, 0, 0, 0, floats(to.sums), nullptr, nullptr, to.dd},
                 kMaxThreads);
}

}  // namespace

void forward(const Call& call, const Prepared& prepared, const Step& step, const Array& y) {
    const Plan& plan = prepared.plan;
    if (plan.split) {
        forward_split(call, plan, step, y);
        return;
    }
    auto program = program_of<Convolve<AnyKind>>(call, plan, step);
    program.filters = 1;
    program.gates[0] = step.pre;
    program.gates[1] = step.post;
    program.y = y;
    convolve(call, "convolution", program);
}

void convolve(const Call& call, const char* name, Convolve<AnyKind> program) {
    const int64_t size = program.transform.size(), bytes = shared_bytes(size), rows = call.sequences.count;
    const int threads = threads_for(size);
    const int64_t least =
        std::max<int64_t>(1, (rows + ConvolveArguments::kMaxRowsEach - 1) / ConvolveArguments::kMaxRowsEach);
    const int64_t parts =
        parts_of_rows(rows, program.channel_blocks(), places<Convolve>(call.device, threads, bytes), least, 16);
    program.rows_each = tuned(Choice::kRowsEach, std::max<int64_t>(1, (rows + parts - 1) / parts));
    std::vector<Operand> operands{program.value};
    operands.insert(operands.end(), std::begin(program.gates), std::end(program.gates));
    run_whole<Convolve>(call, name, program, threads, bytes, operands, {program.y});
}

void backward(const Call& call, const Prepared& prepared, const Step& step, const Operand& dy, bool adjoint,
              StepGradients& to) {
    if (prepared.plan.split)
        backward_split(call, prepared.plan, step, dy, to);
    else
        backward_whole(call, prepared.plan, step, dy, adjoint, to);
}

void reduce(const Call& call, const float* in, int64_t outer, int64_t groups, int64_t width, int64_t inner,
            int64_t room, float* out) {
    call.run("sums", Reduce(outer, groups, width, inner, room, in, out), Reduce::kThreads, Reduce::kShared);
}

void multiply(const Call& call, const Operand& a, const Operand& b, const Array& y) {
    const Pieces pieces(call.sequences, call.channels, Multiply::kPositions);
    call.run("products", Multiply{pieces, a, b, y}, Multiply::kPositions / kChunk);
}

void dot(const Call& call, const Operand& a, const Operand& b, const Operand& c, const Operand& e, float* out) {
    const Pieces pieces(call.sequences, call.channels, Dot::kPositions);
    const Tensor sums = call.scratch(pieces.count());
    const int threads = 256;
    call.run("sums of products", Dot{pieces, a, b, c, e, floats(sums)}, threads, (threads + 1) * 4);
    reduce(call, floats(sums), pieces.tiles.count(), call.channels, 1, 1, 1, out);
}

void short_conv_gradient(const Call& call, const Operand& z, const Operand& dy, const Array& dz, float* dweight,
                         float* dbias, float* dz_bias) {
    const Pieces pieces(call.sequences, call.channels, ShortConvBackward::kPositions);
    const int64_t width = ShortConvBackward::width(z.taps);
    const Tensor sums = call.scratch(pieces.count() * width), total = call.scratch(call.channels * width);
    const int threads = 256;
    call.run("short convolution's gradient", ShortConvBackward{pieces, z, dy, dz, floats(sums)}, threads,
             ShortConvBackward::shared(threads));
    reduce(call, floats(sums), pieces.tiles.count(), call.channels, 1, width, width, floats(total));
    call.run("gradients of taps",
             TapGradients{call.channels, width, width - 2, width - 1, z.taps, floats(total), z.z_bias, dweight, dbias,
                          dz_bias},
             kMaxThreads);
}

}  // namespace hyena::cuda

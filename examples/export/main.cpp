// Runs what export.py compiled: ./hyena_export build/export
//
// The ops come from two libraries: their schemas, which this program is linked with (CMakeLists.txt), and their
// kernels, which it opens as torch.ops.load_library does. Both register themselves.

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Checked before: an error inside the model, on several threads, would end the process.
void check(torch::inductor::AOTIModelPackageLoader& model, const at::Tensor& tokens) {
    auto limits = model.get_metadata();
    const int64_t longest = std::stoll(limits.at("l_max")), vocabulary = std::stoll(limits.at("vocab_size"));
    const int64_t low = tokens.min().item<int64_t>(), high = tokens.max().item<int64_t>();
    if (tokens.size(1) <= longest && low >= 0 && high < vocabulary) return;
    std::ostringstream text;
    text << tokens.size(1) << " tokens from " << low << " to " << high << ": the model takes up to " << longest
         << ", from 0 to " << vocabulary - 1;
    throw std::invalid_argument(text.str());
}

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s folder\n", argv[0]);
        return 2;
    }
    const std::string folder = argv[1];
    if (!dlopen((folder + "/_kernels.so").c_str(), RTLD_NOW | RTLD_LOCAL)) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    torch::inductor::AOTIModelPackageLoader model(folder + "/model.pt2");
    const at::Tensor tokens = at::arange(200, at::kLong).unsqueeze(0).remainder(65);
    check(model, tokens);
    const std::vector<at::Tensor> outputs = model.run({tokens});
    std::printf("logits of %lld tokens sum to %.4f\n", (long long)tokens.size(1), outputs[0].sum().item<double>());
    for (const at::Tensor& wrong : {at::zeros({1, 1025}, at::kLong), at::full({1, 3}, 65, at::kLong)}) try {
            check(model, wrong);
        } catch (const std::invalid_argument& error) {
            std::printf("%s\n", error.what());
        }
    return 0;
}

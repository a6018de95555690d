// Runs what export.py compiled: ./hyena_export build/export
//
// The ops come from two libraries: their schemas, which this program is linked with (CMakeLists.txt), and their kernels,
// which it opens as torch.ops.load_library does. Both register themselves.

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <dlfcn.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

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
    const std::vector<at::Tensor> outputs = model.run({tokens});
    std::printf("logits of %lld tokens sum to %.4f\n", (long long)tokens.size(1), outputs[0].sum().item<double>());
    try {
        model.run({at::zeros({1, 1025}, at::kLong)});
    } catch (const std::exception& error) {
        std::printf("1025 tokens: %.40s\n", error.what());
    }
    return 0;
}

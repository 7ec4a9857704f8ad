// Python's way to what of exllamav2's extension is C++ for processors.

#include <torch/extension.h>

#include "cpp/generator.h"
#include "ext_sampling.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module)
{
    module.def("apply_rep_penalty", &apply_rep_penalty);
    module.def("dump_profile_results", &dump_profile_results);
    module.def("fast_copy_cpu", &fast_copy_cpu);
    module.def("fast_fadd_cpu", &fast_fadd_cpu);
    module.def("fast_fill_cpu_ones_bool", &fast_fill_cpu_ones_bool);
    module.def("logit_filter_exclusive", &logit_filter_exclusive);
    module.def("partial_strings_match", &partial_strings_match);
    module.def("sample_basic", &sample_basic);
}

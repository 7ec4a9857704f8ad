"""Compiles as much of flash-attn as exllamav2 needs for models in fp16: forward, some sizes of heads, one
kind of GPU. Makes OUT/flash_attn_2_cuda.so; payload.py runs it, in an environment that has torch.

    python test/gpu/trimmed_flash_attn.py SOURCE OUT --head-dims 64,128 --arch 9.0 --jobs 2

Source: https://github.com/Dao-AILab/flash-attention/tree/v2.8.3/csrc/flash_attn (setup.py has the options)
"""

import argparse
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

NAME = "flash_attn_2_cuda"
LEFT_OUT = ("BACKWARD", "DROPOUT", "ALIBI", "SOFTCAP", "LOCAL", "UNEVEN_K")
NVCC_OPTIONS = (
    "-O3",
    "-std=c++17",
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
    "-Xcompiler",
    "-fPIC",
)


def trimmed(api: str, head_dims: Sequence[int]) -> str:
    """flash_api.cpp, with a choice between what is compiled, and without the way back."""
    begin, end = api.index("void run_mha_fwd(Flash_fwd_params"), api.index("// Find the number of splits")
    api = api[:begin] + _choice(head_dims) + api[end:]
    begin, end = api.index("void run_mha_bwd("), api.index("std::vector<at::Tensor>\nmha_fwd_kvcache")
    api = api[:begin] + api[end:]
    return re.sub(r'.*m\.def\("(bwd|varlen_bwd)".*\n', "", api)


def _choice(head_dims: Sequence[int]) -> str:
    lines = [
        "void run_mha_fwd(Flash_fwd_params &params, cudaStream_t stream, bool force_split_kernel=false) {",
        '    TORCH_CHECK(!params.is_bf16, "only fp16 was compiled");',
        "    const bool split = params.num_splits > 1 || force_split_kernel;",
    ]
    for dim in head_dims:
        for causal in ("true", "false"):
            kinds = f"<cutlass::half_t, {dim}, {causal}>(params, stream); return;"
            lines += [
                f"    if (params.d == {dim} && params.is_causal == {causal}) {{",
                f"        if (split) {{ run_mha_fwd_splitkv_dispatch{kinds} }}",
                f"        run_mha_fwd_{kinds}",
                "    }",
            ]
    return "\n".join([*lines, '    TORCH_CHECK(false, "this size of heads was not compiled");', "}", "", ""])


@dataclass(frozen=True, slots=True)
class Build:
    """`source`: csrc of flash-attn. `arch`: such as 90."""

    source: Path
    out: Path
    cuda: Path
    arch: str

    @property
    def _common(self) -> list[str]:
        import torch
        from torch.utils import cpp_extension

        nvidia = Path(torch.__file__).parents[1] / "nvidia"
        # What the compiler has by itself has to stay behind the others.
        shared = [it for it in cpp_extension.include_paths("cuda") if it != "/usr/local/include"]
        shared += [str(self.cuda / "include"), sysconfig.get_paths()["include"]]
        shared += map(str, nvidia.glob("cu*/include"))
        own = [
            self.source / "flash_attn",
            self.source / "flash_attn" / "src",
            self.source / "cutlass/include",
        ]
        return [
            *(f"-I{folder}" for folder in own),
            *(word for folder in dict.fromkeys(shared) for word in ("-isystem", folder)),
            *(f"-DFLASHATTENTION_DISABLE_{feature}" for feature in LEFT_OUT),
            f"-DTORCH_EXTENSION_NAME={NAME}",
            "-DTORCH_API_INCLUDE_EXTENSION_H",
        ]

    def commands(self, head_dims: Sequence[int]) -> dict[Path, list[str]]:
        """What makes each object file; those that take longest come first."""
        code, common = f"-gencode=arch=compute_{self.arch},code=sm_{self.arch}", self._common
        made: dict[Path, list[str]] = {}
        for kind in ("fwd_split", "fwd"):
            for dim in head_dims:
                for causal in ("_causal", ""):
                    name = f"flash_{kind}_hdim{dim}_fp16{causal}_sm80.cu"  # for 8.0 and all that is newer
                    object_file = self.out / f"{name}.o"
                    compiled = ["-c", str(self.source / "flash_attn" / "src" / name), "-o", str(object_file)]
                    nvcc = str(self.cuda / "bin" / "nvcc")
                    made[object_file] = [nvcc, *NVCC_OPTIONS, code, *common, *compiled]
        api, object_file = self.out / "flash_api.cpp", self.out / "flash_api.o"
        compiled = ["-c", str(api), "-o", str(object_file)]
        made[object_file] = ["c++", "-O2", "-std=c++17", "-fPIC", *common, *compiled]
        return made

    def link(self, objects: Sequence[Path]) -> list[str]:
        import torch
        from torch.utils import cpp_extension

        nvidia = Path(torch.__file__).parents[1] / "nvidia"
        runtime = min(nvidia.glob("cu*/lib/libcudart.so.*"))
        folders = [f"-L{folder}" for folder in cpp_extension.library_paths("cuda")]
        libraries = [
            f"-l{name}" for name in ("c10", "torch_cpu", "torch", "torch_python", "c10_cuda", "torch_cuda")
        ]
        result = self.out / f"{NAME}.so"
        return [
            "c++",
            "-shared",
            "-o",
            str(result),
            *map(str, objects),
            *folders,
            *libraries,
            str(runtime),
            "-s",
        ]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="trimmed_flash_attn.py", description="Compile a part of flash-attn."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--head-dims", default="64,128", metavar="N,…")
    parser.add_argument("--arch", default="9.0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cuda", type=Path, default=Path("/usr/local/cuda"), metavar="DIR")
    parser.add_argument("--print", action="store_true", help="say what would be run, and run nothing")
    asked = parser.parse_args(arguments)
    head_dims = [int(dim) for dim in asked.head_dims.split(",")]
    build = Build(
        asked.source.resolve() / "csrc", asked.out.resolve(), asked.cuda, asked.arch.replace(".", "")
    )
    build.out.mkdir(parents=True, exist_ok=True)
    api = (build.source / "flash_attn" / "flash_api.cpp").read_text(encoding="utf-8")
    (build.out / "flash_api.cpp").write_text(trimmed(api, head_dims), encoding="utf-8")
    commands = build.commands(head_dims)
    if asked.print:
        print(*(" ".join(it) for it in [*commands.values(), build.link(list(commands))]), sep="\n")
        return
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(_make, commands, commands.values()))
    subprocess.run(build.link(list(commands)), check=True)


def _make(object_file: Path, command: Sequence[str]) -> None:
    """Raises CalledProcessError. What was made before an interruption is kept."""
    if object_file.exists():
        return
    unfinished = object_file.with_suffix(".unfinished")
    subprocess.run([*command[:-1], str(unfinished)], check=True)
    unfinished.rename(object_file)
    print(f"made {object_file.name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

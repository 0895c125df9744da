"""Compiles a kernel for a GPU that is not here, with the tools in Triton's own wheel."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from harness_zoo.ops.common_kernel import FUSION
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {  # the device, and its shared memory a program in bytes
    "sm_90": (GPUTarget("cuda", 90, 32), 232448),
    "sm_80": (GPUTarget("cuda", 80, 32), 166912),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65536),
}
TRITON_TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


def cross_compile(kernel, target: str, types: dict, constants: dict, aligned: tuple[str, ...] = ()):
    """Returns the compiled kernel, or fails where it spills registers or needs more shared memory than there is.

    `types` maps run-time arguments to types, a tuple to a tuple of types; pointers and the `aligned` integers are taken
    as multiples of 16, as a launch with such values finds them. `constants` are those of the launch, with its num_warps
    and num_stages; arguments that are in neither are None.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    values = {name: constants.get(name) for name, kind in signature.items() if kind == "constexpr"}
    sixteen = [["tt.divisibility", 16]]
    attrs = {}
    for i, (name, kind) in enumerate(signature.items()):
        if isinstance(kind, tuple) and name in aligned:
            attrs |= {(i, j): sixteen for j in range(len(kind))}
        elif kind[0] == "*" or name in aligned:
            attrs[i,] = sixteen
    device, shared_bytes = TARGETS[target]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attrs)
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    compiled = triton.compile(source, target=device, options={**FUSION, **options})
    assert compiled.metadata.shared <= shared_bytes, "more shared memory than the device has"
    assert spilled_bytes(compiled) == 0, "registers spill to memory"
    return compiled


def spilled_bytes(compiled) -> int:
    """Returns the bytes of stack a thread uses, read from the machine code."""
    if "amdgcn" in compiled.asm:
        return int(re.search(r"\.private_segment_fixed_size: +(\d+)", compiled.asm["amdgcn"]).group(1))
    return int(re.search(r"STACK:(\d+)", resource_usage(compiled)).group(1))


def resource_usage(compiled) -> str:
    """Returns what cuobjdump says of registers, stack and shared memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def widest_load(compiled) -> int:
    """Returns the bits of the widest load from global memory in the PTX."""
    widths = [
        int(n or 1) * int(b) for n, b in re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bu](\d+)", assembly(compiled))
    ]
    return max(widths)


def assembly(compiled) -> str:
    """Returns the PTX, or for AMD the assembly."""
    return compiled.asm.get("ptx") or compiled.asm["amdgcn"]

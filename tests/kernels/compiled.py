"""Triton kernels compiled for cards that are not there: what they need of one."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMED = dict.fromkeys(("factor", "bound", "scaling"), "fp32")
NAMED |= dict.fromkeys(("lse_ptr", "delta_ptr", "sums_ptr"), "*fp32")
INDICES = ("end_ptr", "depth_ptr", "list_ptr", "full_ptr", "seen_ptr", "table_ptr")


def shared_bytes(kernel, constants, tile, capability, dtype):
    """Shared memory of a program of a kernel of tree attention, in states of a type such as ``bf16``."""
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    types = {name: "*i32" if name in INDICES else f"*{dtype}" if name.endswith("_ptr") else "i32" for name in names}
    types |= {name: kind for name, kind in NAMED.items() if name in names} | dict.fromkeys(constants, "constexpr")
    aligned = [i for i, name in enumerate(names) if name.endswith(("_ptr", "head_stride"))]
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

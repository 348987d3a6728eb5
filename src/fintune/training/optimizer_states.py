"""The optimiser's states, made before its first update instead of within it.

Enters: an optimiser whose parameters have gradients. Leaves: the same optimiser with the states that its step would
have begun with. An update then allocates next to nothing, so memory runs out before any weight has changed, and another
try applies nothing twice: bitsandbytes makes the states of one weight after it has updated the one before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Adam, Muon

from fintune.inference.out_of_memory import is_out_of_memory
from fintune.training.muon import MuonAndAdamW

STATES_REMEDY = (
    "Free memory on the device and start the same command again, which goes on from the newest checkpoint; or train "
    "afresh with training.optimizer=paged_adamw_8bit, a smaller adapter.rank or model.quantization=nf4, into another "
    "--output-dir."
)


def begin_states(optimizer: Any) -> bool:
    """Makes the states of all parameters that have a gradient and none yet; False, and none are made, out of memory.

    Args:
        optimizer: PyTorch's Adam or Muon, ours of both, or one of bitsandbytes; others are left as they are.
    """
    parts = optimizer.parts() if isinstance(optimizer, MuonAndAdamW) else [optimizer]
    known = {parameter for parameter, states in optimizer.state.items() if states}
    try:
        for part in parts:
            _begin(part)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        for parameter in [own for own in optimizer.state if own not in known]:
            del optimizer.state[parameter]  # perhaps half made, which the optimiser would take for whole
        return False
    return True


def _begin(optimizer: Any) -> None:
    if hasattr(optimizer, "init_state"):
        _begin_8bit(optimizer)
        return
    filled = 6 if isinstance(optimizer, Adam) else 3 if isinstance(optimizer, Muon) else 0  # lists, not needed here
    for group in optimizer.param_groups if filled else ():
        lists: list[list[Tensor]] = [[] for _ in range(filled)]
        optimizer._init_group(group, *lists)


def _begin_8bit(optimizer: Any) -> None:
    """What ``step`` of bitsandbytes does before it updates a weight, for all weights."""
    if not optimizer.initialized:
        optimizer.check_overrides()
        optimizer.to_gpu()
        optimizer.initialized = True
    for group_number, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            if parameter.grad is not None and not optimizer.state[parameter]:
                optimizer.init_state(group, parameter, group_number, number)

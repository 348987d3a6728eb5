"""FSDP2: each process holds a part of every weight, and gathers the whole of a layer while it computes it.

Enters: a model that lies whole in every process. Leaves: the same model with its parameters sharded, and for
checkpoints their whole values, so that a run may go on with another number of processes, or with one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from fintune.schema.errors import ModelError
from fintune.training.ranks import Ranks

PYTORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def shard_model(model: nn.Module, ranks: Ranks, *, offload: bool) -> None:
    """Shards every decoder layer by itself, and the rest together; gradients are summed over the processes.

    Args:
        model: with adapters attached; changed in place.
        ranks: the processes among which it is shared.
        offload: keep the shards in the host's memory.

    Raises:
        ModelError: 4-bit weights, which PyTorch before 2.13 cannot share out.
    """
    if not all(p.is_floating_point() for p in model.parameters()) and PYTORCH < (2, 13):
        raise ModelError(
            f"PyTorch {torch.__version__} cannot share out weights held in NF4.",
            "Install PyTorch 2.13 or newer, or set distributed.strategy=zero3 or model.quantization=none.",
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(ranks.device, (ranks.world,))
    policy = CPUOffloadPolicy(pin_memory=ranks.device == "cuda") if offload else OffloadPolicy()
    for layer in _decoder_layers(model):
        fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)
    for module in _shards(model):
        module.set_gradient_divide_factor(1.0)  # the loss is divided already, by the weight of the whole step
        module.set_force_sum_reduction_for_comms(True)


class FsdpShards:
    """A model under FSDP2, with what ``ZeroShards`` offers too.

    Args:
        model: sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def backward(self, loss: Tensor) -> None:
        """The gradients of the whole step: each process keeps its part of their sum."""
        torch.autograd.backward(loss)

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, whole and on the host; every process has to ask."""
        return {name: whole(p.detach()) for name, p in self.model.named_parameters() if p.requires_grad}

    def states(self, optimizer: Any) -> dict[str, Any]:
        """The optimiser's ``state_dict`` as one process would have it; every process has to ask."""
        states: dict[str, Any] = whole(optimizer.state_dict())
        return states

    def load_states(self, optimizer: Any, states: dict[str, Any]) -> None:
        """Takes over states that ``states`` gave, or an optimiser in one process."""
        optimizer.load_state_dict(states)
        share_out_states(optimizer)

    def gather(self) -> None:
        """Makes the model whole in every process, which can then compute by itself; ``state_dict`` would undo it."""
        for module in _shards(self.model):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def drop_gathered(self) -> None:
        """Leaves only this process's parts of layers that a forward pass without a backward one has gathered."""
        for module in _shards(self.model):
            module.reshard()


def _shards(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules: the decoder layers of every architecture at hand."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of layers to share out.", "Set distributed.strategy=ddp.")
    return max(lists, key=len)


def is_sharded(model: nn.Module) -> bool:
    """Whether parts of the model lie in other processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: Any) -> Any:
    """Tensors in dictionaries and lists with all their parts, on the host; every process has to ask."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def part_like(parameter: Tensor, value: Tensor) -> Tensor:
    """This process's part of a whole value, shared out as ``parameter`` is; the value itself where that is whole."""
    if not isinstance(parameter, DTensor):
        return value
    device = parameter.device_mesh.device_type
    part = distribute_tensor(value.to(device, parameter.dtype), parameter.device_mesh, parameter.placements)
    return part.to(parameter.device)


def share_out_states(optimizer: Any) -> None:
    """Replaces the whole states of a loaded optimiser by this process's parts of them."""
    for parameter, name, value in list(_states(optimizer)):
        if isinstance(parameter, DTensor) and value.shape == parameter.shape and not isinstance(value, DTensor):
            optimizer.state[parameter][name] = part_like(parameter, value)


def _states(optimizer: Any) -> Iterator[tuple[Tensor, str, Tensor]]:
    for parameter, states in optimizer.state.items():
        for name, value in states.items():
            if isinstance(value, Tensor):
                yield parameter, name, value

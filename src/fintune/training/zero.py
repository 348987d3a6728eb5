"""DeepSpeed's ZeRO: optimiser states and gradients (stage 2), and weights too (stage 3), shared out over the processes.

Enters: a model that lies whole in every process, and its AdamW. Leaves: the engine that runs them, and for checkpoints
whole weights and states in the form of one process, so that a run may go on with another number of them.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fintune.schema.errors import DependencyError
from fintune.training.ranks import Ranks

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class ZeroSettings:
    """What is shared out and what lies in the host's memory."""

    stage: Literal[2, 3]
    offload_optimizer: bool = False
    offload_param: bool = False


def require_deepspeed() -> None:
    """Fails before anything is loaded where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise DependencyError(
            "distributed.strategy asks for ZeRO, which is DeepSpeed's, and DeepSpeed is not installed.",
            "Run `pip install fintune[deepspeed]`, or set distributed.strategy=fsdp2.",
        )


def zero_config(settings: ZeroSettings, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration; a step's batches are counted by us, and weights keep their types."""
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = host
    if settings.offload_param:
        zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on the host too, without a build
        "steps_per_print": None,
    }


class ZeroShards:
    """A model under DeepSpeed.

    Args:
        model: with adapters attached.
        optimizer: AdamW over its trained parameters; DeepSpeed puts its parts in their place.
        ranks: the processes.
        settings: what is shared out.
        max_grad_norm: at which DeepSpeed clips; 0 for never.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        settings: ZeroSettings,
        max_grad_norm: float,
    ) -> None:
        self.model = model
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.trained = {names[id(parameter)]: parameter for parameter in order}
        self.inner = optimizer
        self.settings = settings
        self.world = ranks.world
        self._groups = optimizer.state_dict()["param_groups"]
        self._steps = 0
        if ranks.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # by DeepSpeed's hooks
        with _quietly():
            import deepspeed

            self.engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=zero_config(settings, max_grad_norm),
                dist_init_required=False,
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Where the schedule sets the learning rate."""
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """DeepSpeed drops gradients itself."""

    def step(self) -> None:
        """Nothing: ``update`` has done it, since only then the gradient norm is known."""

    def backward(self, loss: Tensor) -> None:
        """Adds up gradients over the processes; DeepSpeed takes their mean, so the loss is multiplied."""
        with _quietly():
            self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def update(self) -> float:
        """Makes the update, and returns the norm of the gradient before it was clipped."""
        with _quietly():
            self.engine.step()
        self._steps += 1
        return float(self.engine.get_global_grad_norm() or 0.0)

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, whole and on the host; every process has to ask."""
        with self._gathered(list(self.trained.values())):
            return {name: parameter.detach().cpu().clone() for name, parameter in self.trained.items()}

    def states(self, optimizer: Any) -> dict[str, Any]:
        """AdamW's ``state_dict`` as one process would have it; every process has to ask."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._steps:
            return {"state": {}, "param_groups": self._current_groups()}
        step = torch.tensor(float(self._steps))
        found: dict[int, dict[str, Tensor]] = {}
        with _quietly():
            for number, parameter in enumerate(self.trained.values()):
                whole = {key: safe_get_full_optimizer_state(parameter, key).detach().cpu().clone() for key in _MOMENTS}
                found[number] = {"step": step.clone(), **whole}
        return {"state": found, "param_groups": self._current_groups()}

    def _current_groups(self) -> list[dict[str, Any]]:
        rate = self.inner.param_groups[0]["lr"]
        return [group | {"lr": rate} for group in self._groups]

    def load_states(self, optimizer: Any, states: dict[str, Any]) -> None:
        """Takes over states that ``states`` gave, or AdamW in one process."""
        from deepspeed.utils import safe_set_full_optimizer_state

        if not states["state"]:
            return
        self._begin_states()
        for number, parameter in enumerate(self.trained.values()):
            for key in _MOMENTS:
                value = states["state"][number][key].to(self.engine.device)
                safe_set_full_optimizer_state(parameter, value, key)
        self._steps = int(states["state"][0]["step"])
        for own in self.inner.state.values():
            if "step" in own:
                own["step"].fill_(self._steps)
        for group in self.inner.param_groups:
            group["lr"] = states["param_groups"][0]["lr"]

    def _begin_states(self) -> None:
        """States of zeros, which AdamW makes no sooner than in its first step, for DeepSpeed to find by its parts."""
        inside = self.engine.optimizer
        is_third = self.settings.stage == 3
        for part in inside.fp32_partitioned_groups_flat if is_third else inside.single_partition_of_fp32_groups:
            own = {key: torch.zeros_like(part) for key in _MOMENTS}
            self.inner.state[part] = {"step": torch.zeros((), device=part.device), **own}
        if not is_third:
            inside._lazy_init_hp_params_optimizer_state()

    def drop_gathered(self) -> None:
        """Nothing: DeepSpeed lets go of a layer when it was computed."""

    def gather(self) -> None:
        """Makes the model whole again in every process, which can then compute by itself; training is over."""
        parameters = list(self.model.parameters())
        with self._gathered(parameters):
            whole = [parameter.data.clone() for parameter in parameters]
        with _quietly():
            self.engine.destroy()
        for parameter, value in zip(parameters, whole, strict=True):
            for mark in [name for name in vars(parameter) if name.startswith("ds_")]:
                delattr(parameter, mark)  # by which DeepSpeed would gather it once more
            parameter.data = value
        for module in self.model.modules():
            module._parameters = dict(module._parameters)
        for hook in (self.engine.module_forward_pre_hook, self.engine.module_forward_post_hook):
            hook.remove()

    @contextmanager
    def _gathered(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        if self.settings.stage < 3:
            yield
            return
        import deepspeed

        with _quietly(), deepspeed.zero.GatheredParameters(parameters):
            yield


@contextmanager
def _quietly() -> Iterator[None]:
    """DeepSpeed calls functions that torch has renamed, which is no concern of whoever trains."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        yield

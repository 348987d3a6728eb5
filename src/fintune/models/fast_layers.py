"""The decoder layers of a ``transformers`` model run by our own kernels, its modules and parameters left in place.

Enters: a causal language model, with or without peft's LoRA. Leaves: the same model whose decoder layers, called with
a token tree, run ``kernels.decoder_layer`` on the modules' own parameters; called in any other way they run as ever.
Where something is not as the kernels assume, the reason why not, and the model stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fintune.kernels.decoder_layer import decoder_layer, final_norm
from fintune.kernels.hashed_dropout import layer_seeds
from fintune.kernels.layer_parts import DecoderLayer, Pass
from fintune.kernels.lora_group import refresh
from fintune.kernels.offload import Offload
from fintune.kernels.tree_attention import tree_attention
from fintune.models.fast_build import (
    FAMILIES,
    NotFast,
    OwnForward,
    are_hooked,
    layer_of,
    linear_modules,
    merged_adapters,
    norm_of,
)
from fintune.schema.errors import ModelError

log = logging.getLogger(__name__)

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_HEAD_NORMS = ("q_norm", "k_norm")
_ATTRIBUTE = "_fintune_fast_layers"
Memory = Literal["ready", "keep", "recompute", "offload"]  # from most to least
KEEPS_ALL: tuple[Memory, ...] = ("ready", "keep")  # nothing is computed again, so passes may be recorded as CUDA graphs
NOT_OFFLOADED = 2  # last layers, whose tensors are wanted at once


@dataclass(frozen=True, eq=False)
class _Call:
    """One forward pass over the model: its layers, seeds of their dropout, and what is kept for the backward pass."""

    layers: FastLayers
    seeds: Tensor
    memory: Memory
    whole_layers: int


@dataclass
class FastLayers:
    """The layers of one model as the kernels take them.

    Attributes:
        modules: the decoder layers.
        layers: what they compute, one each.
        call: the forward pass under way; None outside one, when layers run on the plain path.
        offload: where kept tensors wait.
        is_ready: whether weights are held as products take them.
    """

    modules: Sequence[nn.Module]
    layers: list[DecoderLayer]
    call: _Call | None = None
    offload: Offload = field(default_factory=Offload)
    is_ready: bool = False

    @contextmanager
    def active(self, memory: Memory, whole_layers: int = 0) -> Iterator[None]:
        """Runs the layers by our kernels within the block, on fresh working copies of the adapters.

        Args:
            memory: ``keep`` everything for the backward pass; beyond that hold NF4 weights unpacked and fp8 weights
                transposed too (``ready``); compute the MLP's outputs again (``recompute``); or also move what is kept
                to the host while it is not needed (``offload``). None changes more than the rounding of a result.
            whole_layers: so many layers, the last ones, keep everything under ``recompute`` and ``offload`` too.
        """
        if torch.is_grad_enabled():  # an evaluation between two steps takes the weights as they are
            self._hold_ready(memory == "ready")
        refresh([group for layer in self.layers for group in layer.groups])
        device = self.layers[0].input_norm.weight.device
        seed = torch.zeros((), dtype=torch.int64, device=device)
        # An evaluation between two steps must not move the random numbers of training.
        if any(layer.dropout and module.training for layer, module in zip(self.layers, self.modules, strict=True)):
            seed.random_()
        self.call = _Call(self, layer_seeds(seed, len(self.layers)), memory, whole_layers)
        try:
            yield
        finally:
            self.call = None

    def release(self) -> None:
        """Gives back, after training, what only training is quicker with: weights held ready, and pinned memory."""
        self._hold_ready(False)
        self.offload = Offload()

    def _hold_ready(self, wanted: bool) -> None:
        if wanted == self.is_ready:
            return
        groups = [group for layer in self.layers for group in layer.groups]
        try:
            for group in groups if wanted else ():
                group.weight.hold_ready(group.dtype)
            self.is_ready = wanted
        finally:  # should memory end half way, none is held
            for group in () if self.is_ready else groups:
                group.weight.drop_ready()

    def run(self, call: _Call, index: int, hidden: Tensor, rotation: tuple[Tensor, Tensor], tree: Any) -> Tensor:
        """The output of layer ``index`` for (1, T, H) hidden states."""
        module: Any = self.modules[index]
        attention = module.self_attn
        window = getattr(attention, "sliding_window", None)
        if type(attention).__name__ == "MistralAttention":
            window = getattr(attention.config, "sliding_window", None)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out, _ = tree_attention(
                attention,
                query,
                key,
                value,
                None,
                dropout=attention.attention_dropout if module.training else 0.0,
                scaling=attention.scaling,
                sliding_window=window,
                softcap=getattr(attention, "attn_logit_softcapping", None),
                tree=tree,
            )
            return out.flatten(2).squeeze(0)  # indexing instead would copy the gradient

        cos, sin = (part.squeeze(0) for part in rotation)
        from_end = len(self.layers) - index
        keeps_all = call.memory in KEEPS_ALL
        keep_mlp = keeps_all or from_end <= call.whole_layers
        given = Pass(cos, sin, call.seeds[index], module.training, keep_mlp, unpack_ahead=not keeps_all)
        stays = from_end <= max(NOT_OFFLOADED, call.whole_layers)
        moving = self.offload.layer(index, stays=stays) if call.memory == "offload" else nullcontext()
        with torch.autocast(hidden.device.type, enabled=False), moving:
            return decoder_layer(hidden.squeeze(0), self.layers[index], given, attend).unsqueeze(0)


def fast_layers(model: Any, compute_dtype: torch.dtype) -> FastLayers | str:
    """The model's layers, built at the first call and whenever its adapters have changed; or why they cannot be.

    Args:
        model: a model of ``transformers``, or peft's wrapper of one.
        compute_dtype: type of matrix products.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = vars(base).get(_ATTRIBUTE)
    if known is not None and known.signature == _signature(base, compute_dtype, known.parts):
        kept: FastLayers | str = known.found
        return kept
    found: FastLayers | str
    try:
        found = _build(base, compute_dtype)
    except (NotFast, ModelError) as reason:
        found = str(reason).rstrip(".")
    # Taken again: weights that share an input have moved into one piece of memory.
    parts = [module for layer in _decoder_layers(base) for module in layer.modules()]
    vars(base)[_ATTRIBUTE] = _Known(_signature(base, compute_dtype, parts), found, parts)
    return found


@dataclass(eq=False)
class _Known:
    """What is known of a model; copies of the model, in memory or pickled, know nothing yet."""

    signature: tuple[Any, ...] | None = None
    found: FastLayers | str = ""
    parts: Sequence[nn.Module] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Known:
        return _Known()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Known, ()


@cache
def say_plain(name: str, reason: str) -> None:
    """Logs, once per model and reason, that the layers run on the plain path."""
    log.info("%s runs on the plain path: %s.", name, reason)


def _decoder_layers(base: Any) -> Sequence[nn.Module]:
    layers: Sequence[nn.Module] = getattr(getattr(base, "model", None), "layers", ())
    return layers


def _signature(base: Any, compute_dtype: torch.dtype, parts: Sequence[nn.Module]) -> tuple[Any, ...]:
    """Changes when adapters are added, switched, scaled, merged or disabled, or weights replaced or unfrozen.

    Computed at every forward pass, hence ``parts``: all modules of the layers, which take long to walk through.
    """
    modules = _decoder_layers(base)
    marks: list[Any] = [compute_dtype, len(modules), are_hooked(parts)]
    for layer in modules:
        for module in linear_modules(layer):
            frozen = getattr(module, "base_layer", module)
            names = tuple(getattr(module, "active_adapters", ()))
            marks.append((id(module), names, getattr(module, "disable_adapters", False), bool(merged_adapters(module))))
            marks += _identity(frozen.weight) + _identity(getattr(frozen, "bias", None))
            for name in names:
                if name in getattr(module, "lora_A", {}):
                    for matrix in (module.lora_A[name].weight, module.lora_B[name].weight):
                        marks += [id(matrix), matrix.data_ptr()]
                    marks += [module.scaling[name], getattr(module.lora_dropout[name], "p", 0.0)]
        attention = getattr(layer, "self_attn", None)
        norms = [getattr(layer, name, None) for name in _NORMS]
        for norm in (*norms, *(getattr(attention, name, None) for name in _HEAD_NORMS)):
            marks += _identity(getattr(norm, "weight", None))
            marks.append(getattr(norm, "variance_epsilon", getattr(norm, "eps", None)))
    return tuple(marks)


def _identity(weight: Tensor | None) -> list[Any]:
    return [None] if weight is None else [weight.data_ptr(), weight.dtype, weight.requires_grad]


def _build(base: Any, compute_dtype: torch.dtype) -> FastLayers:
    modules = list(_decoder_layers(base))
    if not modules:
        raise NotFast("it has no decoder layers where they are looked for")
    family = type(modules[0]).__module__.split(".")
    if family[:2] != ["transformers", "models"] or family[2] not in FAMILIES:
        raise NotFast(f"layers of {type(modules[0]).__name__} are not known to the fast path")
    layers: list[DecoderLayer] = []
    for module in modules:
        layers.append(layer_of(module, compute_dtype, layers[-1] if layers else None))
    found = FastLayers(modules, layers)
    for index, module in enumerate(modules):
        if "forward" not in vars(module):
            vars(module)["forward"] = _Forward(base, index, module.forward)
    last: Any = getattr(base.model, "norm", None)
    if last is not None and "forward" not in vars(last) and not are_hooked([last]):
        vars(last)["forward"] = _NormForward(base, last.forward)
    return found


@dataclass(frozen=True, eq=False)
class _Forward(OwnForward):
    """In the place of a layer's forward: runs ours when the model is called with a tree while ``FastLayers.active``.

    Not a closure, because a copy of the model must come to hold its own layers.
    """

    base: Any
    index: int
    plain: Callable[..., Any]

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        tree, rotation = kwargs.get("tree"), kwargs.get("position_embeddings")
        known = vars(self.base).get(_ATTRIBUTE)
        if tree is None or rotation is None or args or kwargs.get("past_key_values") is not None or known is None:
            return self.plain(hidden_states, *args, **kwargs)
        if isinstance(known.found, FastLayers) and known.found.call is not None:
            tree.layers = known.found.call
        # Left with the tree, for layers that are recomputed in the backward pass, when no pass is under way.
        call: _Call | None = tree.layers
        if call is None:
            return self.plain(hidden_states, *args, **kwargs)
        run = partial(call.layers.run, call, self.index, rotation=rotation, tree=tree)
        recompute = _recomputation(call.layers.modules[self.index])
        return run(hidden_states) if recompute is None else recompute(run, hidden_states)


@dataclass(frozen=True, eq=False)
class _NormForward:
    """In the place of the forward of the norm behind the last layer: runs ours where the layers run theirs.

    That of transformers holds five fp32 copies of the hidden states in its backward pass, the most of any operation.
    """

    base: Any
    plain: Callable[..., Any]

    def __call__(self, hidden_states: Tensor) -> Any:
        known = vars(self.base).get(_ATTRIBUTE)
        norm = self.base.model.norm
        is_active = known is not None and isinstance(known.found, FastLayers) and known.found.call is not None
        if not is_active or norm.weight.requires_grad or norm.weight.dtype != hidden_states.dtype:
            return self.plain(hidden_states)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return final_norm(hidden_states.flatten(0, -2), norm_of(norm)).view_as(hidden_states)


def _recomputation(module: Any) -> Callable[..., Any] | None:
    """What recomputes a layer in the backward pass where transformers was asked to, and does it in ``forward``."""
    wanted = module.training and getattr(module, "gradient_checkpointing", False)
    if not wanted or type(module).__call__ is not nn.Module.__call__:  # transformers before 5.20 does it in __call__
        return None
    recompute: Callable[..., Any] = module._gradient_checkpointing_func
    return recompute

"""Holds ``torch.compile`` to what the kernels keep for the backward pass.

Enters: nothing but the block to run. The compiler sees forward and backward at once and, left alone, keeps whatever a
matrix product of the backward pass reads, such as the hidden state of an MLP, though it can be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_KEPT_BY_DEFAULT = (
    "ban_recompute_materialized_backward",
    "ban_recompute_used_far_apart",
    "ban_recompute_long_fusible_chains",
)


@contextmanager
def recompute_elementwise() -> Iterator[None]:
    """Lets functions compiled inside the block compute elementwise results again, for less memory and some time.

    It decides at compilation, that is, in the first call of a compiled function for new sizes.
    """
    import torch._functorch.config as settings

    known = {name: False for name in _KEPT_BY_DEFAULT if hasattr(settings, name)}
    with settings.patch(known):
        yield

import pytest
import torch
from torch import nn

from fintune.schema.errors import ModelError
from fintune.training import sharding
from fintune.training.ranks import Ranks


def test_old_pytorch_refuses_to_share_out_4_bit_weights_in_one_sentence(monkeypatch):
    model = nn.Linear(2, 2)
    model.packed = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setattr(sharding, "PYTORCH", (2, 12))
    with pytest.raises(ModelError, match="NF4.*2.13.*zero3"):
        sharding.shard_model(model, Ranks(), offload=False)

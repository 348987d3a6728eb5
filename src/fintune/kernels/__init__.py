"""One operation per file, each beside its plain PyTorch twin.

Enters and leaves: tensors. ``tree_attention`` sees a token's ancestors only; ``edge_loss`` sums cross-entropy over
loss edges; ``decoder_layer`` trains adapters (``lora_group``) on a ``frozen_weight`` (dense, NF4, ``fp8_weight``).
"""

"""Running a model over token trees: logits at loss edges, and the likelihood of answers.

Enters: a ``transformers`` model and batches. Leaves: logits, losses, log-likelihoods.
"""

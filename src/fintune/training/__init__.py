"""Training on ``transformers.Trainer``: the step plan executed, checkpoints that survive a crash, metrics.

Enters: a model, encoded examples, a recipe. Leaves: a run directory with checkpoints, metrics and the adapter.
"""

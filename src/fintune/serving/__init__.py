"""Using what was trained: labels for bare texts, from Python or the command line.

Enters: a run directory, an adapter folder or a base model. Leaves: labels with probabilities.
"""

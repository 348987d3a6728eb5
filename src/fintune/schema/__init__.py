"""The words everyone speaks: recipe, example, results, run directory, errors. Pydantic only, no torch.

Enters: YAML, dicts, overrides. Leaves: frozen, validated objects that every other room takes as arguments.
"""

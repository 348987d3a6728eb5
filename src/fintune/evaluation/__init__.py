"""Tasks x systems: one record per document first, aggregates with intervals second.

Enters: loaded tasks, a model, classical baselines. Leaves: ``DocumentRecord``s and ``EvaluationResults``.
"""

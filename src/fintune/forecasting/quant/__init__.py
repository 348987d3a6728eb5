"""Next-day distributions: a GPT over price tokens beside random walks, n-grams and GARCH, on the same bins.

Enters: a folder that ``build`` wrote and a trained model. Leaves: ``QuantEvaluation``: every model's log-likelihood of
what happened, with intervals by day and paired tests.
"""

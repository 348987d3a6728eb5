"""Daily prices as something a language model reads: a few tokens a day, or a line of words.

Enters: a price table. Leaves: ``Moves`` of each ticker, their tokens (``Codec``) and their lines. Every number of a day
is scaled by what was known the day before.
"""

"""``fintune serve``: models behind HTTP, in OpenAI's wire format.

Enters: requests. Leaves: answers written by one thread that owns the model, whole or as they come. From the outside in:
``guard`` (keys, sizes, metrics, log), ``app`` (routes), ``asking`` (a request becomes jobs), ``engine`` (jobs become
tokens), ``lanes`` (one batch for each adapter).
"""

"""What people read of a finished run: HTML page, Markdown, LaTeX tables, figures, model card.

Enters: ``Recipe``, ``EvaluationResults``, ``DocumentRecord``s, the lines of ``metrics.jsonl`` and facts about the
model. Leaves: files in the run directory. Nothing here computes a score; it words, tabulates and draws them.
"""

from fintune.reporting.card import write_model_card
from fintune.reporting.report import write_report

__all__ = ["write_model_card", "write_report"]

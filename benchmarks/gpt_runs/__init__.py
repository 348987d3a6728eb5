"""What ``gpt_from_scratch.py`` runs: variants, the models behind them, tokens, and processes that answer commands."""

"""What weekly forecasts would have earned: from predictions and a price table to a backtest beside doing nothing.

Enters: forecasts of stocks by date, and daily prices. Leaves: returns after costs, their statistics, and whether they
can be told from chance. No model is loaded here.
"""

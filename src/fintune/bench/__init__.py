"""What each optimisation buys, measured: every one taken from the full set and added to the base, in one table.

Enters: a device, a size, a text. Leaves: a folder with results.json, table.md and figure.png; and models side by side.
"""

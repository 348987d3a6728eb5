"""What ``benchmarks/peers.py`` measures: shapes, settings, data, and how each library takes its steps."""

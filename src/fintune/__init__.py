"""fintune."""

"""Numbers from records: data frames, metrics, and intervals."""

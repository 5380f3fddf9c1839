"""Numbers from records: data frames, metrics, and intervals. Imports only store and util."""

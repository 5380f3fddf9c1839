"""Models, targets, records, and servers that tests share."""

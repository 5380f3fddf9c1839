"""The command line: one thin file a command. No other package imports it."""

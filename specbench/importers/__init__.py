"""Importers: answer files of other tools, converted to run directories."""

"""Flags and programs. Only this package and the programs read command-line arguments."""

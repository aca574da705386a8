"""The door: flags and programs. Nothing below this package knows of argv."""

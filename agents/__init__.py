"""Who drives, how drivers are scored; the command line."""

TRACEBACK = "WORLDLOOP_TRACEBACK"
"""Environment variable that makes errors that are told in a line show where they came from."""

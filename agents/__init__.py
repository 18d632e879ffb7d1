"""Who drives, how drivers are scored; the command line."""

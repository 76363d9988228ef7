"""Origins of rows, one per file."""

"""Glue to other libraries, one file for each; none is imported before you import it."""

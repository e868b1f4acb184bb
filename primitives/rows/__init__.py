"""Functions of rows on threads."""

"""Searches over merges: what is searched, in which order, and what was found."""

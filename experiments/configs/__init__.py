"""One file for each comparison, with a function ``get_config() -> Settings``."""

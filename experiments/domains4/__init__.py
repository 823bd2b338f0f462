"""A small language model and the base folder that its adapters belong to."""

"""Adapters of JAX libraries: trees of factors as they train and save them."""

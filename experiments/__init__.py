"""Experiments: each folder has a main job, its inputs and its results."""

"""Eight real image tasks, one small vision tower, eight LoRA adapters.

``python -m experiments.vision8.train`` pretrains the tower without the tasks' labels,
fits a linear head to each task, trains the adapters and writes ``metrics.json``;
`experiments.vision8.suite.load_suite` reads them.
"""

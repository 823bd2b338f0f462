"""What adapters have in common, before they are merged: numbers, no data needed.

Every function takes the `AdapterStack` of one module, so `jaxmerge.map_modules` runs
it over a model; `diagnose` runs all of them in one program. No update is formed as a
whole: all but `sign_conflict` work on Gram matrices of the factors. `task_jacobian` and
what follows from it need a model and batches.
"""

from jaxmerge.diagnostics.clusters import cluster_adapters, task_similarities
from jaxmerge.diagnostics.conflict import (
    SignConflict,
    norm_ratio,
    sign_conflict,
    task_cosines,
)
from jaxmerge.diagnostics.crowding import Crowding, crowding, sharing_scores
from jaxmerge.diagnostics.module import Diagnosis, diagnose
from jaxmerge.diagnostics.overlap import Overlaps, above_random, overlaps
from jaxmerge.diagnostics.ranks import (
    EffectiveRanks,
    condition_number,
    effective_ranks,
    energy_kept,
    stable_rank,
)
from jaxmerge.diagnostics.sensitivity import (
    TaskJacobian,
    TaskRows,
    jacobian_rows,
    mean_jacobian,
    misalignment,
    sensitivity,
    task_jacobian,
)

__all__ = [
    "Crowding",
    "Diagnosis",
    "EffectiveRanks",
    "Overlaps",
    "SignConflict",
    "TaskJacobian",
    "TaskRows",
    "above_random",
    "cluster_adapters",
    "condition_number",
    "crowding",
    "diagnose",
    "effective_ranks",
    "energy_kept",
    "jacobian_rows",
    "mean_jacobian",
    "misalignment",
    "norm_ratio",
    "overlaps",
    "sensitivity",
    "sharing_scores",
    "sign_conflict",
    "stable_rank",
    "task_cosines",
    "task_jacobian",
    "task_similarities",
]

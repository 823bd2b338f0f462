"""Everything that `jaxmerge` exports, grouped by level."""

from jaxmerge import diagnostics, io, linalg, models
from jaxmerge.calibration import calibrate, pico
from jaxmerge.collection import collect, collector
from jaxmerge.compression import compressed, ctm
from jaxmerge.directions import adamerging, compose, tara_a, tara_b
from jaxmerge.dropout import dare, della, della_probabilities
from jaxmerge.election import (
    elect,
    keep_largest,
    largest_of_agreeing,
    magnitude_threshold,
    mean_of_agreeing,
    sign_of_count,
    sign_of_sum,
    sum_of_agreeing,
    ties,
    trim,
)
from jaxmerge.emr_merging import EmrParts, emr, emr_parts, emr_rescalers
from jaxmerge.factors import lora_lego, robust_merge
from jaxmerge.fitting import (
    Fitted,
    History,
    Progress,
    entropies,
    fit,
    null_space_ratios,
    single_adapter_losses,
)
from jaxmerge.gauge import balance, balanced
from jaxmerge.iterative import ModelSample, iteris
from jaxmerge.linear import average, concat, mean, task_arithmetic, total
from jaxmerge.mapping import map_modules, module_mesh, trim_whole_model
from jaxmerge.moments import (
    Moments,
    Sketch,
    equal_parts,
    mean_square,
    merge_moments,
    moments_of,
    shrink_off_diagonal,
    sketch_of,
    spectrum,
    stack_moments,
    times_gram,
)
from jaxmerge.objectives import (
    effective_rank,
    entropy,
    linear_scalarisation,
    null_space_ratio,
    row_basis,
    smooth_tchebycheff,
)
from jaxmerge.osrm import kaiming_init, osrm_init, osrm_null_space, osrm_project
from jaxmerge.regression import merge_with_stats, regmean, ssr
from jaxmerge.singular import cart, iso_c, iso_cts, tsv, tsv_m
from jaxmerge.spaces import (
    core,
    core_space,
    full,
    full_space,
    in_space,
    knots,
    knots_space,
    knots_unscaled,
    knots_unscaled_space,
)
from jaxmerge.spec import Pipeline, PipelineError, parse
from jaxmerge.types import (
    AdapterStack,
    Learned,
    LowRank,
    Merger,
    Post,
    Rule,
    Space,
    Update,
    stack_adapters,
)
from jaxmerge.updates import (
    dense,
    isotropize,
    norm,
    scale,
    svc,
    task_norms,
    then,
    truncate,
)

__all__ = [
    # types
    "AdapterStack", "Learned", "LowRank", "Merger", "Post", "Rule", "Space", "Update",
    "stack_adapters",
    # rules: T matrices to one
    "cart", "elect", "emr", "iso_c", "iso_cts", "mean", "ties", "total", "tsv",
    # rule to rule
    "dare", "della", "trim",
    # steps of rules
    "EmrParts", "della_probabilities", "emr_parts", "emr_rescalers", "keep_largest",
    "largest_of_agreeing", "magnitude_threshold", "mean_of_agreeing", "sign_of_count",
    "sign_of_sum", "sum_of_agreeing",
    # spaces
    "core", "full", "knots", "knots_unscaled",
    # rank to space
    "compressed",
    # space and rule to merger, rule to merger
    "in_space", "core_space", "ctm", "full_space", "knots_space",
    "knots_unscaled_space",
    # mergers: the T adapters of a module to an update
    "average", "concat", "lora_lego", "regmean", "robust_merge", "ssr",
    "task_arithmetic", "tsv_m",
    # merger to merger
    "balanced", "pico", "then",
    # stack to stack
    "balance", "calibrate",
    # posts: update to update, and what can be asked of an update
    "dense", "isotropize", "norm", "scale", "svc", "task_norms", "truncate",
    # learned coefficients, and objectives without labels
    "Fitted", "History", "Progress", "adamerging", "compose", "entropies", "fit",
    "null_space_ratios", "single_adapter_losses", "tara_a", "tara_b",
    "effective_rank", "entropy", "linear_scalarisation", "null_space_ratio",
    "row_basis", "smooth_tchebycheff",
    # rows of A before training
    "kaiming_init", "osrm_init", "osrm_null_space", "osrm_project",
    # statistics of inputs
    "Moments", "Sketch", "collect", "collector", "equal_parts", "mean_square",
    "merge_moments", "moments_of", "shrink_off_diagonal", "sketch_of", "spectrum",
    "stack_moments", "times_gram",
    # whole models
    "ModelSample", "iteris", "map_modules", "merge_with_stats", "module_mesh",
    "trim_whole_model",
    # pipelines as text
    "Pipeline", "PipelineError", "parse",
    # packages of their own
    "diagnostics", "io", "linalg", "models",
]  # fmt: skip

"""Everything that `jaxmerge` exports, grouped by level."""

from jaxmerge import diagnostics, io, linalg, models, reports, tasks
from jaxmerge.jobs.baking import bake
from jaxmerge.jobs.checking import check
from jaxmerge.jobs.clustering import cluster
from jaxmerge.jobs.collecting import collect
from jaxmerge.jobs.compressing import compress, restore
from jaxmerge.jobs.converting import convert
from jaxmerge.jobs.evaluating import evaluate
from jaxmerge.jobs.extracting import extract
from jaxmerge.jobs.fitting import learn
from jaxmerge.jobs.inspecting import inspect
from jaxmerge.jobs.merging import merge
from jaxmerge.jobs.planning import plan
from jaxmerge.jobs.pushing import push
from jaxmerge.jobs.running import recipe_of, recipe_text, run_recipe
from jaxmerge.jobs.tuning import tune
from jaxmerge.jobs.verifying import verify
from jaxmerge.learning.apply import apply_learned
from jaxmerge.learning.blockwise import fit_blocks
from jaxmerge.learning.coefficients import adamerging, compose, tara_a, tara_b
from jaxmerge.learning.distillation import (
    Taught,
    distillation,
    feature_distillation,
    teacher_answers,
    token_distillation,
)
from jaxmerge.learning.entropies import entropies, information, token_entropies
from jaxmerge.learning.fit import Fitted, History, Progress, fit
from jaxmerge.learning.least_squares import solve_blocks
from jaxmerge.learning.null_space import null_space_ratios
from jaxmerge.learning.objectives import (
    cosine_distance,
    divergence,
    effective_rank,
    entropy,
    linear_scalarisation,
    mean_prediction_entropy,
    null_space_ratio,
    relative_distance,
    row_basis,
    smooth_tchebycheff,
    squared_distance,
)
from jaxmerge.learning.optimizers import decay_to_start, tail_average
from jaxmerge.learning.router import core_router
from jaxmerge.learning.start import Start, search_start
from jaxmerge.learning.step import single_adapter_losses
from jaxmerge.learning.token_logits import AdaptedHead
from jaxmerge.learning.token_objectives import (
    token_divergence,
    token_entropy,
    token_nats,
)
from jaxmerge.learning.top_tokens import TopTokens, top_tokens
from jaxmerge.mapping import map_modules
from jaxmerge.mergers.balance import balance, balanced
from jaxmerge.mergers.ctm import compressed, ctm
from jaxmerge.mergers.dare import dare, della, della_probabilities
from jaxmerge.mergers.emr import EmrParts, emr, emr_parts, emr_rescalers
from jaxmerge.mergers.factored import lora_lego, robust_merge
from jaxmerge.mergers.iteris import ModelSample, iteris
from jaxmerge.mergers.linear import average, concat, mean, task_arithmetic, total
from jaxmerge.mergers.pico import calibrate, pico, restore_norm
from jaxmerge.mergers.regmean import regmean, regmean_adapters, ssr
from jaxmerge.mergers.reversible import (
    CompressionCurve,
    ReversibleMerge,
    compress_adapters,
    compression_curve,
    restore_adapter,
)
from jaxmerge.mergers.routed import fixed_update, route_cores
from jaxmerge.mergers.singular import cart, iso_c, iso_cts, tsv, tsv_m
from jaxmerge.mergers.soft_threshold import shrink_updates, soft_threshold
from jaxmerge.mergers.spaces import (
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
from jaxmerge.mergers.thresholds import magnitude_threshold
from jaxmerge.mergers.ties import (
    elect,
    largest_of_agreeing,
    mean_of_agreeing,
    sign_of_count,
    sign_of_sum,
    sum_of_agreeing,
    ties,
)
from jaxmerge.mergers.trim import keep_largest, trim
from jaxmerge.mergers.whole_model import (
    calibrated_model,
    each_module,
    trim_whole_model,
)
from jaxmerge.refusals import Refusal
from jaxmerge.spec import (
    Pipeline,
    PipelineError,
    layer_of,
    module_values,
    parse,
    register_step,
)
from jaxmerge.spread import by_rules, data_mesh, module_mesh
from jaxmerge.stacks import leave_out, stack_adapters, task_norms, task_updates
from jaxmerge.stats.collection import collect_inputs, collector
from jaxmerge.stats.moments import (
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
from jaxmerge.stats.osrm import (
    kaiming_init,
    osrm_init,
    osrm_null_space,
    osrm_project,
)
from jaxmerge.types import (
    AdapterStack,
    Calibration,
    Learned,
    LowRank,
    Merger,
    ModelMerger,
    Post,
    RoutedCores,
    Router,
    Rule,
    Space,
    Update,
)
from jaxmerge.updates import (
    calibrated,
    dense,
    isotropize,
    norm,
    scale,
    svc,
    then,
    truncate,
)

__all__ = [
    # the main jobs, from folders to a folder
    "merge", "learn", "tune", "evaluate", "check", "collect", "inspect", "plan",
    "cluster", "compress", "restore", "convert", "bake", "extract", "verify",
    "run_recipe", "push", "recipe_of", "recipe_text",
    # types
    "AdapterStack", "Calibration", "Learned", "LowRank", "Merger", "ModelMerger",
    "Post", "RoutedCores", "Router", "Rule", "Space", "Update", "stack_adapters",
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
    "balanced", "calibrated", "pico", "soft_threshold", "then",
    # stack to stack
    "balance", "calibrate", "leave_out", "regmean_adapters", "shrink_updates",
    # posts: update to update, and what can be asked of an update
    "dense", "isotropize", "norm", "restore_norm", "scale", "svc", "truncate",
    # what can be asked of a stack
    "task_norms", "task_updates",
    # T adapters in terms of few components, and back
    "CompressionCurve", "ReversibleMerge", "compress_adapters", "compression_curve",
    "restore_adapter",
    # T adapters mixed for every token, and as one
    "core_router", "fixed_update", "route_cores",
    # learned coefficients, and objectives without labels
    "Fitted", "History", "Progress", "Start", "Taught", "adamerging", "compose",
    "decay_to_start", "distillation", "entropies",
    "feature_distillation", "fit", "information", "null_space_ratios", "search_start",
    "single_adapter_losses", "tail_average", "tara_a", "tara_b", "teacher_answers",
    "fit_blocks", "solve_blocks",
    "cosine_distance", "divergence", "effective_rank", "entropy",
    "linear_scalarisation", "mean_prediction_entropy", "null_space_ratio",
    "relative_distance", "row_basis", "smooth_tchebycheff", "squared_distance",
    # the same at the tokens of causal language models
    "token_distillation", "token_divergence", "token_entropies", "token_entropy",
    "token_nats", "AdaptedHead", "TopTokens", "top_tokens",
    # rows of A before training
    "kaiming_init", "osrm_init", "osrm_null_space", "osrm_project",
    # statistics of inputs
    "Moments", "Sketch", "collect_inputs", "collector", "equal_parts", "mean_square",
    "merge_moments", "moments_of", "shrink_off_diagonal", "sketch_of", "spectrum",
    "stack_moments", "times_gram",
    # whole models
    "ModelSample", "apply_learned", "calibrated_model", "each_module", "iteris",
    "map_modules", "module_mesh", "data_mesh", "by_rules", "trim_whole_model",
    # pipelines as text
    "Pipeline", "PipelineError", "Refusal", "parse", "register_step",
    # numbers of tasks that differ from module to module
    "layer_of", "module_values",
    # packages of their own
    "diagnostics", "io", "linalg", "models", "reports", "tasks",
]  # fmt: skip

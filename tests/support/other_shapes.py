"""Calls of every public function with arrays of other shapes than it takes."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax

import jaxmerge as jm

ONE = np.ones((), np.float32)
ROW = np.ones(3, np.float32)
PLANE = np.ones((2, 3), np.float32)
CUBE = np.ones((2, 2, 3), np.float32)
STACK = jm.stack_adapters(
    [(np.ones((2, 1)), np.ones((1, 3))), (np.ones((2, 1)), np.ones((1, 3)))]
)
OTHER = jm.stack_adapters([(np.ones((4, 1)), np.ones((1, 5)))] * 2)
MODEL = {"q": STACK}
TASKS = ("one", "two")
MOMENTS = jm.Moments(ONE, ROW, np.ones((3, 3), np.float32))
STACKED = jm.Moments(np.ones(2), PLANE, np.ones((2, 3, 3), np.float32))
SKETCH = jm.Sketch(ONE, ROW, PLANE, ONE)
FEW = jm.Moments(ONE, ROW[:2], np.ones((2, 2), np.float32))
KEY = None  # refused before anything is drawn
SGD = optax.sgd(0.1)
METHOD = jm.tara_a()


def losses(params, updates, batch):
    return dict.fromkeys(batch, jnp.ones(2))


def batches():
    return [dict.fromkeys(TASKS, ROW)] * 2


fit = partial(jm.fit, METHOD, TASKS, steps=1)
search = partial(jm.search_start, METHOD, TASKS)
NO_BLOCKS = jm.models.Blocks(jm.models.Block("", losses, losses), ())


def solve(stacks, **options):
    return jm.solve_blocks(
        *(METHOD, TASKS, stacks, NO_BLOCKS, {}), params=None, **options
    )


rule_calls = {
    name: [lambda f=f: f(STACK), lambda f=f: f(PLANE)]
    for name, f in {
        "cart": jm.cart, "elect": jm.elect, "emr": jm.emr, "iso_c": jm.iso_c,
        "iso_cts": jm.iso_cts, "mean": jm.mean, "tsv": jm.tsv, "total": jm.total,
        "ties": partial(jm.ties, density=0.5),
        "dare": partial(jm.dare(jm.total, density=0.5), key=KEY),
        "della": partial(jm.della(jm.total, density=0.5), key=KEY),
        "trim": jm.trim(jm.total, density=0.5),
        "keep_largest": partial(jm.keep_largest, density=0.5),
        "emr_parts": jm.emr_parts, "sign_of_count": jm.sign_of_count,
        "sign_of_sum": jm.sign_of_sum, "sum_of_agreeing": jm.sum_of_agreeing,
        "mean_of_agreeing": jm.mean_of_agreeing,
        "largest_of_agreeing": jm.largest_of_agreeing,
    }.items()
}  # fmt: skip
stack_calls = {
    name: [lambda f=f: f(CUBE), lambda f=f: f(MODEL)]
    for name, f in {
        "in_space": jm.in_space(jm.core, jm.total),
        "core_space": jm.core_space(jm.mean),
        "ctm": jm.ctm(jm.total, rank=1), "full_space": jm.full_space(jm.total),
        "knots_space": jm.knots_space(jm.total),
        "knots_unscaled_space": jm.knots_unscaled_space(jm.total),
        "average": jm.average, "concat": jm.concat, "task_arithmetic": jm.concat,
        "lora_lego": partial(jm.lora_lego, key=KEY), "tsv_m": jm.tsv_m,
        "regmean": partial(jm.regmean, stats=None), "robust_merge": jm.robust_merge,
        "ssr": partial(jm.ssr, stats=None), "balanced": jm.balanced(jm.concat),
        "pico": jm.pico(jm.concat), "then": jm.then(jm.concat, jm.isotropize),
        "calibrated": jm.calibrated(jm.concat, jm.Calibration(jm.balance)),
        "balance": jm.balance, "calibrate": jm.calibrate,
        "regmean_adapters": partial(jm.regmean_adapters, stats=None),
        "shrink_updates": partial(jm.shrink_updates, threshold=0.1),
        "soft_threshold": jm.soft_threshold(jm.concat, threshold=0.1),
        "task_norms": jm.task_norms,
        "compress_adapters": partial(jm.compress_adapters, components=1),
        "route_cores": jm.route_cores, "core_router": jm.core_router().prepare,
        "compression_curve": jm.compression_curve,
        "tara_a": METHOD.prepare, "tara_b": jm.tara_b().prepare,
        "adamerging": jm.adamerging().prepare, "compose": jm.compose(METHOD).prepare,
    }.items()
}  # fmt: skip
model_calls = {
    name: [lambda f=f: f(STACK), lambda f=f: f({"q": CUBE})]
    for name, f in {
        "each_module": jm.each_module(jm.concat),
        "map_modules": partial(jm.map_modules, jm.concat),
        "trim_whole_model": jm.trim_whole_model(jm.elect, jm.core, density=0.5),
        "calibrated_model": jm.calibrated_model(jm.each_module(jm.concat)),
        "iteris": partial(jm.iteris, sample=None),
        "apply_learned": jm.apply_learned(METHOD, {}),
        "task_updates": partial(jm.task_updates, task=0),
        "Pipeline": jm.parse("concat").run,
        "single_adapter_losses": lambda x: jm.single_adapter_losses(
            TASKS, x, losses, batches()
        ),
        "teacher_answers": lambda x: jm.teacher_answers(losses, TASKS, x, batches()),
        "null_space_ratios": lambda x: jm.null_space_ratios(losses, TASKS, x),
        "fit": lambda x: fit(x, losses, batches(), SGD),
        "search_start": lambda x: search(x, losses, batches()),
        "fit_blocks": lambda x: jm.fit_blocks(
            *(METHOD, TASKS, x, NO_BLOCKS, {}, SGD), steps=1, params=None
        ),
        "solve_blocks": solve,
    }.items()
}
update_calls = {
    name: [lambda f=f: f(CUBE), lambda f=f: f(jm.LowRank(PLANE, PLANE))]
    for name, f in {
        "dense": jm.dense, "isotropize": jm.isotropize, "norm": jm.norm,
        "restore_norm": partial(jm.restore_norm, stack=STACK),
        "scale": partial(jm.scale, by=2.0), "truncate": partial(jm.truncate, rank=1),
        "svc": partial(jm.svc, stack=STACK),
        "osrm_project": lambda x: jm.osrm_project(x, PLANE),
    }.items()
}  # fmt: skip
array_calls = {
    "della_probabilities": [
        lambda: jm.della_probabilities(ROW, density=0.5, epsilon=0.1)
    ],
    "emr_rescalers": [
        lambda: jm.emr_rescalers({"q": CUBE}),
        lambda: jm.emr_rescalers(
            {f"m{t}": jm.EmrParts(PLANE, CUBE, ROW[:t], ROW[:t]) for t in (1, 2)}
        ),
    ],
    "magnitude_threshold": [
        lambda: jm.magnitude_threshold(CUBE, 1),
        lambda: jm.magnitude_threshold([], 1),
        lambda: jm.magnitude_threshold([CUBE, CUBE[:1]], 1),
        lambda: jm.magnitude_threshold([CUBE, CUBE.astype(np.float16)], 1),
    ],
    "stack_adapters": [
        lambda: jm.stack_adapters([(PLANE, PLANE)]),
        lambda: jm.stack_adapters([(ROW, ROW)]),
    ],
    "cosine_distance": [lambda: jm.cosine_distance(PLANE, PLANE[:1])],
    "relative_distance": [lambda: jm.relative_distance(PLANE, PLANE[:1])],
    "squared_distance": [
        lambda: jm.squared_distance(PLANE, ROW),
        lambda: jm.squared_distance(PLANE, PLANE, mask=ROW),
    ],
    "divergence": [
        lambda: jm.divergence(PLANE, PLANE[:, :1]),
        lambda: jm.divergence(PLANE, PLANE, mask=ROW),
    ],
    "entropy": [lambda: jm.entropy(ONE), lambda: jm.entropy(STACK)],
    "token_divergence": [
        lambda: jm.token_divergence(PLANE, PLANE[:, :2], PLANE),
        lambda: jm.token_divergence(PLANE, PLANE, PLANE[:, :2]),
        lambda: jm.token_divergence(PLANE, PLANE, PLANE, mask=ROW),
    ],
    "token_entropy": [
        lambda: jm.token_entropy(PLANE, PLANE.T),
        lambda: jm.token_entropy(PLANE, PLANE, mask=ROW),
    ],
    "token_nats": [
        lambda: jm.token_nats(PLANE, np.zeros(2, int), PLANE.T),
        lambda: jm.token_nats(PLANE, np.zeros(3, int), PLANE),
    ],
    "mean_prediction_entropy": [lambda: jm.mean_prediction_entropy(ONE)],
    "effective_rank": [lambda: jm.effective_rank(PLANE)],
    "row_basis": [lambda: jm.row_basis(ROW)],
    "null_space_ratio": [
        lambda: jm.null_space_ratio(PLANE, PLANE),
        lambda: jm.null_space_ratio(PLANE, PLANE.T, mask=ROW),
    ],
    "smooth_tchebycheff": [
        lambda: jm.smooth_tchebycheff(PLANE),
        lambda: jm.smooth_tchebycheff(ROW, preference=[0.5, 0.5]),
        lambda: jm.smooth_tchebycheff(ROW, anchors=PLANE),
    ],
    "linear_scalarisation": [
        lambda: jm.linear_scalarisation(ONE),
        lambda: jm.linear_scalarisation(ROW, preference=ROW[:1]),
    ],
    "distillation": [
        lambda: jm.distillation(losses, losses, {})(None, {}, {"one": PLANE})
    ],
    "token_distillation": [
        lambda: jm.token_distillation(losses, lambda params: params)(
            PLANE, {}, {"one": PLANE}
        )
    ],
    "top_tokens": [lambda: jm.top_tokens(PLANE, PLANE.T, k=1)],
    "feature_distillation": [
        lambda: jm.feature_distillation(losses)(None, {}, {"one": PLANE})
    ],
    "osrm_init": [
        lambda: jm.osrm_init(MOMENTS, rank=1),
        lambda: jm.osrm_init(STACKED, rank=1, own=STACKED, subspace=2),
    ],
    "osrm_null_space": [lambda: jm.osrm_null_space(ROW, rank=1, key=KEY)],
    "moments_of": [
        lambda: jm.moments_of(ONE),
        lambda: jm.moments_of(PLANE, mask=ROW),
    ],
    "sketch_of": [
        lambda: jm.sketch_of(ONE, size=1),
        lambda: jm.sketch_of(PLANE, size=1, mask=PLANE),
    ],
    "merge_moments": [
        lambda: jm.merge_moments(MOMENTS, FEW),
        lambda: jm.merge_moments(MOMENTS, STACKED),
        lambda: jm.merge_moments(MOMENTS, PLANE),
    ],
    "stack_moments": [
        lambda: jm.stack_moments([{"q": MOMENTS}, {"q": FEW}]),
        lambda: jm.stack_moments([{"q": MOMENTS}, {"q": SKETCH}]),
        lambda: jm.stack_moments([{"q": PLANE}]),
    ],
    "times_gram": [
        lambda: jm.times_gram(PLANE, FEW),
        lambda: jm.times_gram(ROW, MOMENTS),
        lambda: jm.times_gram(PLANE, PLANE),
    ],
    "mean_square": [lambda: jm.mean_square(PLANE)],
    "equal_parts": [lambda: jm.equal_parts(MOMENTS)],
    "shrink_off_diagonal": [lambda: jm.shrink_off_diagonal(PLANE, keep=0.5)],
    "spectrum": [lambda: jm.spectrum(STACKED)],
    "svc": [lambda: jm.svc(PLANE, stack=OTHER), lambda: jm.svc(PLANE, stack=CUBE)],
    "restore_norm": [lambda: jm.restore_norm(PLANE, stack=OTHER)],
    "task_updates": [lambda: jm.task_updates(MODEL, 2)],
    "fixed_update": [
        lambda: jm.fixed_update(STACK),
        lambda: jm.fixed_update(jm.route_cores(STACK), ROW),
    ],
    "restore_adapter": [
        lambda: jm.restore_adapter(STACK, 0),
        lambda: jm.restore_adapter(jm.ReversibleMerge(ONE, CUBE, PLANE), 2),
    ],
    "leave_out": [lambda: jm.leave_out(PLANE, {0}), lambda: jm.leave_out(MODEL, {0})],
    "tara_a": [lambda: METHOD.apply(ROW, METHOD.prepare(STACK))],
    "fit": [
        lambda: fit(MODEL, losses, batches(), SGD),  # losses that are no scalars
        lambda: fit(MODEL, losses, batches(), SGD, preference=ROW),
        lambda: fit(MODEL, losses, batches(), SGD, preference=CUBE),
        lambda: fit(MODEL, losses, batches(), SGD, start={"q": ROW}),
        lambda: fit(MODEL, losses, batches(), SGD, start={"o": ROW}),
    ],
    "search_start": [lambda: search(MODEL, losses, batches(), preference=PLANE)],
    "solve_blocks": [lambda: solve(MODEL, preference=PLANE)],
}
CALLS: dict[str, list] = {}
for calls in (rule_calls, stack_calls, model_calls, update_calls, array_calls):
    for name, some in calls.items():
        CALLS.setdefault(name, []).extend(some)

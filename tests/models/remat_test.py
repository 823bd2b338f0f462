"""Blocks that are computed again for their gradients: same numbers, less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import LowRank, models

pytestmark = pytest.mark.usefixtures("standard_promotion")

LAYERS = 4
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
}
# that of a CPU computes everything as early as it can, what is computed again too
SCHEDULE = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
IDS = np.arange(128, dtype=np.int32).reshape(2, 64) % 20
TEXTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
IMAGES = np.linspace(-1, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
MODELS = {
    "decoder": (
        partial(models.DecoderConfig, vocab_size=20),
        models.init_decoder,
        models.decoder_apply,
        "model.layers.0.mlp.up_proj",
        TEXTS,
    ),
    "bert": (
        partial(models.BertConfig, vocab_size=20, max_position_embeddings=64),
        models.init_bert,
        models.bert_apply,
        "bert.encoder.layer.0.intermediate.dense",
        TEXTS,
    ),
    "vision": (
        partial(models.VisionConfig, image_size=4, patch_size=2, projection_dim=5),
        models.init_vision,
        models.vision_apply,
        "vision_model.encoder.layers.0.mlp.fc1",
        IMAGES,
    ),
}


@pytest.fixture(params=MODELS)
def case(request):
    """A gradient in the update of a module, with and without, and its arguments."""
    config, init, make_apply, module, inputs = MODELS[request.param]
    config = config(**SIZES)
    params = init(config, jax.random.key(0))
    b, a = (jax.random.normal(jax.random.key(i), (32, 16)) for i in (1, 2))
    update = LowRank(b=b[:, :2], a=a[:2])

    def loss(apply, merged, update, params):
        adapted = models.with_updates(apply, {module: update}, merged=merged)
        return jnp.sum(adapted(params, inputs) ** 3)

    def gradient(*, remat, merged=False):
        return jax.grad(partial(loss, make_apply(config, remat=remat), merged))

    return gradient, (update, params)


def test_every_block_is_a_checkpoint(case):
    gradient, given = case
    for remat, expected in ((False, 0), (True, LAYERS)):
        program = jax.jit(gradient(remat=remat, merged=True)).lower(*given).as_text()
        assert program.count("optimization_barrier") == expected


@pytest.mark.parametrize("case", ["decoder"], indirect=True)
def test_the_same_gradients_with_less_workspace(case):
    gradient, given = case
    plain, again = (
        jax.jit(gradient(remat=remat)).lower(*given).compile(compiler_options=SCHEDULE)
        for remat in (False, True)
    )
    found, expected = again(*given), plain(*given)
    for x, y in zip(found, expected, strict=True):
        scale = float(jnp.abs(y).max())
        assert scale > 1e-3
        np.testing.assert_allclose(x, y, atol=1e-5 * scale)
    kept, left = (p.memory_analysis().temp_size_in_bytes for p in (plain, again))
    assert left < 0.8 * kept

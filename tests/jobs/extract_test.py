"""The adapter between two full models, with numpy and bake as second opinions."""

import json

import base_samples as bases
import io_samples as samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from base_samples import adapter, model, tensors_of
from cli_samples import close, document, updates_of

import jaxmerge as jm
from jaxmerge.jobs import low_rank
from jaxmerge.linalg import svd
from jaxmerge.randomised import randomised_svd

UP, DOWN = (f"model.layers.0.mlp.{leaf}" for leaf in ("up", "down"))
EMBED, NORM = "model.embed_tokens", "model.norm"
pytestmark = pytest.mark.usefixtures("as_a_user")


def extract(place, **options):
    return jm.extract(
        *(place / "tuned",), base=place / "base", out=place / "x", force=True, **options
    )


def changed(place, **changes):
    """Writes the tuned model: the base with other values for some weights."""
    shapes, tensors = {}, tensors_of(place / "base")
    for key, value in changes.items():
        if isinstance(value, tuple):
            shapes[key] = value
        else:
            tensors[key] = tensors[key] + value
    new = {key: samples.random(*shape, seed=3) for key, shape in shapes.items()}
    return bases.save(place / "tuned", tensors | new)


@pytest.fixture
def place(tmp_path):
    model(tmp_path / "base")
    return tmp_path


def test_what_was_baked_is_extracted(place):
    tensors = samples.linear(UP, m=8, n=6, r=2) | samples.linear(DOWN, m=6, n=8, r=4)
    tensors |= samples.embedding(EMBED, vocabulary=11, dim=6, r=3)
    config = {"r": 2, "rank_pattern": {"down": 4, "embed_tokens": 3}}
    samples.write(place / "a", tensors, **config)
    jm.bake(place / "a", base=place / "base", out=place / "tuned")
    found = extract(place, energy=1 - 1e-6, ragged=True)
    assert found.ranks == {UP: 2, DOWN: 4, EMBED: 3} == found.saved.ranks
    assert min(found.saved.energy.values()) > 1 - 1e-6
    close(updates_of(place / "x"), updates_of(place / "a"))
    found = extract(place, rank=8)
    assert found.saved.rank == 4  # there are no more directions
    close(updates_of(place / "x"), updates_of(place / "a"))
    jm.bake(place / "x", base=place / "base", out=place / "again")
    tuned = tensors_of(place / "tuned")
    for key, value in tensors_of(place / "again").items():
        np.testing.assert_allclose(value, tuned[key], atol=1e-5)


def test_the_best_approximation_and_its_share(place):
    update = samples.random(8, 6, seed=1)
    changed(place, **{f"{UP}.weight": update, f"{DOWN}.weight": 5 * update.T})
    u, s, vt = np.linalg.svd(update)
    shares = np.cumsum(s**2) / np.sum(s**2)
    found = extract(place, rank=2)
    assert found.saved.energy[UP] == pytest.approx(shares[1], rel=1e-5)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    close(updates_of(place / "x"), {UP: best, DOWN: 5 * best.T})
    for energy in (0.5, 0.9, 0.999, 1.0):
        found = extract(place, energy=energy)
        wanted = int(np.argmax(shares >= energy - 1e-7)) + 1
        assert found.ranks == {UP: wanted, DOWN: wanted}
        assert min(found.saved.energy.values()) >= energy - 1e-6


@pytest.mark.thorough
def test_random_products_find_the_leading_directions():
    """Where the spectrum falls; and all of a matrix of low rank, to rounding."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(90, 40)))
    right, _ = np.linalg.qr(rng.normal(size=(70, 40)))
    key = jax.random.key(1)
    for spectrum in (0.8 ** np.arange(40.0), np.r_[np.ones(6), np.zeros(34)]):
        for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.float64, 1e-7)):
            x = jnp.asarray((left * spectrum) @ right.T, dtype)
            u, s, vt = randomised_svd(x, rank=6, key=key)
            np.testing.assert_allclose(s, svd(x)[1][:6], rtol=tolerance)
            best = (left[:, :6] * spectrum[:6]) @ right.T[:6]
            np.testing.assert_allclose((u * s[None]) @ vt, best, atol=10 * tolerance)
    assert not np.any(randomised_svd(jnp.zeros((9, 8)), rank=2, key=key)[0])


def test_a_share_is_found_by_ever_more_directions(monkeypatch):
    monkeypatch.setattr(low_rank, "_FIRST_RANK", 8)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20)) @ rng.normal(size=(20, 50)) / 20
    x = x.astype(np.float32)
    exact = np.linalg.svd(x, compute_uv=False) ** 2
    for energy in (0.3, 0.9999):
        wanted = low_rank.Wanted(None, energy, "randomised", 0)
        found = low_rank.factorise(x, wanted, "fc")
        rank = int(np.argmax(np.cumsum(exact) / exact.sum() >= energy)) + 1
        assert rank <= found.b.shape[1] <= rank + 1
        lost = np.linalg.norm(x - found.b @ found.a) ** 2 / exact.sum()
        assert found.energy == pytest.approx(1 - lost, abs=1e-5)
    again = low_rank.factorise(x, wanted, "fc")
    assert np.array_equal(found.b, again.b)
    one = low_rank.Wanted(8, None, "randomised", 0)
    two = low_rank.Wanted(8, None, "exact", 0)
    shares = [low_rank.factorise(x, w, "fc").energy for w in (one, two)]
    assert shares[0] == pytest.approx(shares[1], abs=2e-3)


def test_what_is_no_low_rank_update_is_refused_saved_or_left_out(place):
    norm, bias = samples.random(6, seed=4), samples.random(8, seed=5)
    update = samples.random(8, 1) @ samples.random(1, 6)
    changed(
        place,
        **{f"{UP}.weight": update, f"{NORM}.weight": norm, f"{UP}.bias": bias},
        **{"score.weight": (3, 6)},
    )
    with pytest.raises(jm.Refusal, match="3 weights differ in a way that is no") as no:
        extract(place, rank=2)
    for said in (f"'{NORM}.weight': no matrix", "'score.weight': not in the base"):
        assert said in str(no.value)
    found = extract(place, rank=2, others="skip")
    assert found.whole == ()
    assert found.skipped[f"{NORM}.weight"] == pytest.approx(np.linalg.norm(norm))
    assert "which differ between the models" in found.notes[0]
    found = extract(place, rank=2, others="save")
    names = {f"{NORM}.weight", f"{UP}.base_layer.bias", "score.weight"}
    assert set(found.whole) == names
    config = json.loads((place / "x/adapter_config.json").read_text())
    assert config["modules_to_save"] == [NORM, "score"]
    jm.bake(place / "x", base=place / "base", out=place / "again", new_heads=True)
    tuned = tensors_of(place / "tuned")
    again = tensors_of(place / "again")
    assert again.keys() == tuned.keys()
    for key, value in again.items():
        np.testing.assert_allclose(value, tuned[key], atol=1e-5)


@pytest.mark.parametrize("of", ["base", "tuned"])
def test_either_model_may_be_stored_without_the_name_in_front(place, of):
    update = samples.random(8, 1) @ samples.random(1, 6)
    changed(place, **{f"{UP}.weight": update})
    inner = {k.removeprefix("model."): v for k, v in tensors_of(place / of).items()}
    bases.save(place / of, inner)
    extract(place, rank=1)
    name = UP if of == "base" else UP.removeprefix("model.")
    close(updates_of(place / "x"), {name: update})


def test_modules_that_are_to_be_saved_whole(place):
    update = samples.random(8, 6, seed=1)
    changed(place, **{f"{UP}.weight": update, f"{DOWN}.weight": update.T})
    found = extract(place, rank=1, save=["mlp.up"])
    assert set(found.whole) == {f"{UP}.weight", f"{UP}.bias"}
    assert found.ranks == {DOWN: 1}


def test_transposed_weights_and_convolutions(tmp_path):
    shapes = {"h.c_proj.weight": (6, 6), "conv.weight": (6, 3, 2, 2)}
    model(tmp_path / "base", shapes, model_type="gpt2")
    tensors = samples.linear("h.c_proj", m=6, n=6, r=2) | samples.conv(
        "conv", kernel=(2, 2), r=2
    )
    samples.write(tmp_path / "a", tensors, r=2, fan_in_fan_out=True)
    jm.bake(tmp_path / "a", base=tmp_path / "base", out=tmp_path / "tuned")
    extract(tmp_path, rank=2)
    close(updates_of(tmp_path / "x"), updates_of(tmp_path / "a"))
    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert config["fan_in_fan_out"]


def test_the_record_and_the_card(place):
    adapter(place / "a")
    jm.bake(place / "a", base=place / "base", out=place / "tuned")
    said = document(
        *("extract", place / "tuned", "--base", place / "base", "--rank", 1),
        *("--base-name", "org/base", "-o", place / "x"),
    )
    assert said["rank"] == 1
    assert 0 < min(said["energy"].values()) < 1
    record = json.loads((place / "x/jaxmerge.json").read_text())
    assert record["inputs"][0]["sha256"].keys() == {"config.json", "model.safetensors"}
    assert record["recipe"]["extracted"]["rank"] == 1
    assert record["recipe"]["energy_kept"] == said["energy"]
    card = (place / "x/README.md").read_text()
    assert "# LoRA adapter between two full models" in card
    assert record["recipe"]["files"]["base"]["sha256"]["model.safetensors"] in card
    assert f"{min(said['energy'].values()):.6f}" in card
    with pytest.raises(jm.Refusal, match="an adapter between two full models"):
        jm.verify(place / "x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give either rank=<number> or energy=<share>"),
        ({"rank": 1, "energy": 0.5}, "give either"),
        ({"rank": 0}, "rank=0: expected a positive number"),
        ({"energy": 1.5}, "expected a share"),
        ({"rank": 1, "method": "fast"}, "method='fast': expected auto, exact, rando"),
        ({"rank": 1, "others": "drop"}, "others='drop': expected error, save, skip"),
        ({"rank": 1, "dtype": "int8"}, "expected float32, float16 or bfloat16"),
        ({"rank": 1}, "no weight that an adapter can change differs"),
    ],
)
def test_what_is_refused(place, options, says):
    changed(place)
    with pytest.raises(jm.Refusal, match=says):
        extract(place, **options)
    assert not (place / "x").exists()


def test_models_that_do_not_fit_each_other(place):
    model(place / "tuned", {"other.weight": (4, 4)})
    with pytest.raises(jm.Refusal, match="has no weight of a name that"):
        extract(place, rank=1)
    tensors = tensors_of(place / "base")
    tensors[f"{UP}.weight"][0, 0] = np.inf
    bases.save(place / "tuned", tensors)
    with pytest.raises(jm.Refusal, match="holds NaN or infinite values"):
        extract(place, rank=1)
    tensors = tensors_of(place / "base")
    tensors["model.visual_embeds.weight"] = samples.random(4, 4)
    bases.save(place / "base", tensors)
    tensors["model.visual_embeds.weight"] = samples.random(4, 4, seed=1)
    tensors["class_embedding"] = samples.random(6)
    bases.save(place / "tuned", tensors)
    with pytest.raises(jm.Refusal, match="which its name leaves open"):
        extract(place, rank=1)
    with pytest.raises(jm.Refusal, match="'class_embedding': not in the base cannot"):
        extract(place, rank=1, others="save")

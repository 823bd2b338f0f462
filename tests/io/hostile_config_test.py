"""Hostile adapter_config.json: any content is read exactly or an AdapterError."""

import json

import io_samples as samples
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest_plugins = ["io_fixtures"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=6), children, max_size=3)
    ),
    max_leaves=6,
)
KNOWN_KEYS = st.sampled_from(
    [
        "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
        "fan_in_fan_out", "bias", "lora_bias", "init_lora_weights", "modules_to_save",
        "base_model_name_or_path", "revision", "task_type", "init_r", "use_dora",
        "target_modules", "layers_to_transform", "no_such_key",
    ]
)  # fmt: skip


@samples.CALM
@given(changes=st.dictionaries(KNOWN_KEYS, JSON_VALUES, min_size=1, max_size=3))
def test_configs_with_any_value(folder, changes):
    (folder / samples.CONFIG).write_text(json.dumps({**samples.BASE, **changes}))
    adapters = samples.load_or_refuse(folder, assume_alpha=8)
    if adapters is not None:
        (scale,) = adapters.sources[0].scales.values()
        assert np.isfinite(scale)
        assert scale != 0


@samples.CALM
@given(text=st.text(max_size=40) | st.binary(max_size=40))
def test_configs_of_any_content(folder, text):
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (folder / samples.CONFIG).write_bytes(raw)
    samples.refuse(folder, samples.CONFIG)


BAD_CONFIGS = {
    "text rank": ('{"r": "8"}', "r must be a positive integer, found '8'"),
    "negative rank": ('{"r": -1}', "positive integer, found -1"),
    "zero rank": ('{"r": 0}', "positive integer, found 0"),
    "true rank": ('{"r": true}', "positive integer, found True"),
    "float rank": ('{"r": 4.5}', r"positive integer, found 4\.5"),
    "null alpha": ('{"lora_alpha": null}', "assume_alpha"),
    "nan alpha": ('{"lora_alpha": NaN}', "NaN is not a JSON number"),
    "infinite alpha": ('{"lora_alpha": 1e999}', "finite"),
    "endless alpha": ('{"lora_alpha": 1%s}' % ("0" * 400), "finite"),
    "more digits than python reads": ('{"lora_alpha": 1%s}' % ("0" * 9000), "JSON"),
    "text alpha": ('{"lora_alpha": "16"}', "must be a number, found '16'"),
    "zero alpha": ('{"lora_alpha": 0}', "not zero"),
    "list pattern": ('{"rank_pattern": [1]}', "rank_pattern must be an object"),
    "text in pattern": ('{"rank_pattern": {"fc": "8"}}', "positive integer"),
    "bad expression": ('{"alpha_pattern": {"(": 8}}', "regular expression"),
    "nan in pattern": ('{"alpha_pattern": {"fc": null}}', "must be a number"),
    "flag": ('{"use_rslora": "yes"}', "true or false"),
    "base": ('{"base_model_name_or_path": 7}', "must be a string"),
    "saved": ('{"modules_to_save": {"a": 1}}', "list of names"),
    "twice": ('{"r": 4, "r": 8}', "occurs twice"),
    "a list": ("[]", "expected a JSON object, found list"),
    "a number": ("7", "expected a JSON object, found int"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "nothing": ("", "empty"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configs_with_wrong_types(folder, name):
    text, message = BAD_CONFIGS[name]
    if text.startswith("{") and name != "twice":
        base = json.dumps(samples.BASE)
        key = text[2 : text.index('"', 2)]
        kept = {k: v for k, v in json.loads(base).items() if k != key}
        text = f"{text[:-1]}, {json.dumps(kept)[1:]}"
    (folder / samples.CONFIG).write_text(text)
    samples.refuse(folder, message)
    samples.refuse(folder, samples.CONFIG)

"""Names and shapes of every method's tensors are a file format: they are compared with a list that is kept.

``PYTHONPATH=tests python tests/unit/adapters/test_state_keys.py`` rewrites the list, which breaks the adapters people
have.
"""

import json
from pathlib import Path

import pytest

from fakes.random_decoders import build_decoder
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import METHODS, HqTokenSpec, default_spec

GOLDEN = Path(__file__).with_name("state_keys.json")
SPECS = {method: default_spec(method) for method in METHODS} | {"hq_token_vit_b": HqTokenSpec(early_channels=768)}


def keys_of(decoder, spec):
    return {name: list(value.shape) for name, value in adapt(decoder, spec).adapter_state().items()}


@pytest.mark.parametrize("name", SPECS)
def test_tensors_have_the_names_and_shapes_of_the_adapters_made_before(decoder, name):
    golden = json.loads(GOLDEN.read_text())[name]
    assert keys_of(decoder, SPECS[name]) == golden


if __name__ == "__main__":
    decoder = build_decoder(grid=4)
    lines = []
    for name, spec in SPECS.items():
        rows = ",\n".join(f'    "{key}": {shape}' for key, shape in keys_of(decoder, spec).items())
        lines.append(f'  "{name}": {{\n{rows}\n  }}')
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")

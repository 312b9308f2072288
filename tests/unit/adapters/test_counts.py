"""Parameter counts: the paper's where it gives them, and the README's table and example.

``PYTHONPATH=tests python tests/unit/adapters/test_counts.py`` rewrites the table.
"""

import re
from pathlib import Path

import pytest

from fakes.random_decoders import build_decoder
from vplab.vision.adapters.adapt import adapt
from vplab.vision.adapters.spec import METHODS, HqTokenSpec, PromptTokensSpec, QloraSpec, default_spec

README = Path(__file__).parents[3] / "services/vplab/vision/adapters/README.md"
BEGIN, END = "<!-- counts -->", "<!-- end counts -->"
NO_GATE = PromptTokensSpec(gate="none")
VARIANTS = {method: default_spec(method) for method in METHODS} | {
    "prompt_tokens, gate none": NO_GATE,
    "qlora, base_type int8": QloraSpec(base_type="int8"),
    "hq_token, early_channels 160 (MobileSAM)": HqTokenSpec(early_channels=160),
    "hq_token, early_channels 384 (nano)": HqTokenSpec(early_channels=384),
    "hq_token, early_channels 768 (ViT-B)": HqTokenSpec(early_channels=768),
    "hq_token, early_channels 1024 (ViT-L)": HqTokenSpec(early_channels=1024),
    "hq_token, early_channels 1280 (ViT-H)": HqTokenSpec(early_channels=1280),
}
PAPER = {
    "image_context": "33.1K",
    "ia3": "5.6K",
    "prompt_tokens": "12.8K",
    "lora": "144.4K",
    "e_peft": "201.1K",
    "e_peft_paper": "201.1K",
}


def table():
    """Return the README's table."""
    decoder = build_decoder(grid=4)
    lines = ["| method | parameters | tensors | in the paper | frozen decoder, MB |", "|---|--:|--:|--:|--:|"]
    for name, spec in sorted(VARIANTS.items()):
        adapted = adapt(decoder, spec)
        count, tensors = adapted.num_adapter_parameters, len(adapted.adapter_state())
        paper, frozen = PAPER.get(name.split(",")[0], ""), f"{adapted.base_bytes / 1e6:.1f}"
        lines.append(f"| {name} | {count:,} | {tensors} | {paper} | {frozen} |")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lora", 144_384),
        ("ia3", 5_632),
        ("prompt_tokens, gate none", 12_800),
        ("image_context", 33_088),
        ("e_peft_paper", 195_904),
        ("e_peft", 195_904 + 56 + 41_984),
        ("boft", 31_360),
        ("qlora", 144_384),
        ("full_decoder", 4_058_340),
        ("hq_token, early_channels 768 (ViT-B)", 1_071_104),
        ("hq_token, early_channels 1024 (ViT-L)", 1_333_248),
        ("hq_token, early_channels 1280 (ViT-H)", 1_595_392),
    ],
)
def test_a_method_has_the_parameters_that_its_publication_implies(decoder, name, count):
    assert adapt(decoder, VARIANTS[name]).num_adapter_parameters == count


def test_gates_add_a_number_for_each_head_of_the_seven_attentions(decoder):
    gated = adapt(decoder, default_spec("prompt_tokens")).num_adapter_parameters
    assert gated - adapt(decoder, NO_GATE).num_adapter_parameters == 7 * 8


def test_the_readme_has_the_table():
    text = README.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table()


@pytest.mark.slow
def test_the_example_of_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    made: dict[str, object] = {}
    exec(example, made)
    assert made["state"].keys() == made["adapted"].adapter_state().keys()
    assert len(made["graph"].model_proto.graph.input) == 6


if __name__ == "__main__":
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")

"""The README's latency budget says what the settings say."""

import os
import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from vplab.embedding.composition import GPU_BATCH
from vplab.embedding.config import EmbeddingConfig
from vplab.runtime.settings import MIB, ServerSettings
from vplab.segmentation.config import SegmentationConfig

README = Path(__file__).parents[2] / "services" / "README.md"
ROW = re.compile(r"^\| .+ \| (?P<default>[^|]+) \| `(?P<variable>VPLAB_\w+)` \|$", re.MULTILINE)
FEW_CORES = "4, or the cores"


def default_of(variable: str) -> tuple[str, object]:
    for settings in (EmbeddingConfig, SegmentationConfig, ServerSettings):
        field = settings.variables().get(variable)
        if field is not None:
            return field, settings.model_fields[field].default
    raise AssertionError(f"{variable} is no setting")


def as_written(field: str, default: object) -> str:
    if field == "max_batch_size" and default is None:
        return f"1 on a CPU, {GPU_BATCH} on a GPU"
    if field.endswith("_threads") and default == min(4, os.cpu_count() or 1):
        return FEW_CORES
    assert isinstance(default, int | float)
    if field.endswith("_bytes"):
        return f"{default // MIB} MiB"
    return f"{default:g} s" if field.endswith("_s") else f"{default}"


def test_the_table_names_the_defaults() -> None:
    section = README.read_text().partition("### Latency budget")[2].partition("\n### ")[0]
    rows = ROW.findall(section)
    assert len(rows) == 15
    for default, variable in rows:
        field, value = default_of(variable)
        assert value is not PydanticUndefined
        assert default == as_written(field, value), variable

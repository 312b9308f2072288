"""What the service's process loads, and what it says of itself."""

import subprocess
import sys


def test_the_process_loads_no_torch_and_no_onnxruntime() -> None:
    source = (
        "import sys, vplab.training.__main__\n"
        "print({'torch', 'onnxruntime', 'opentelemetry', 'segment_anything', 'timm', 'alembic'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("set()", "")

"""What a server says of itself."""

import subprocess
import sys

import pytest

from vplab.runtime.server_info import resident_memory_bytes

HELD = 100 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_memory_counts_what_the_process_started() -> None:
    before = resident_memory_bytes()
    holds = f"held = bytearray(b'x') * {HELD}; print(flush=True); input()"
    command = [sys.executable, "-c", holds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert resident_memory_bytes() > before + HELD
        child.communicate("\n")

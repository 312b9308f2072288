"""What a service's process is set to before it serves."""

import subprocess
import sys

import pytest

SERVICE = """
import asyncio, sys
from vplab.runtime.process import run_service
from vplab.runtime.settings import ServerSettings
async def start(config):
    print(type(asyncio.get_running_loop()).__module__, sys.getswitchinterval())
run_service("registry", ServerSettings, start, switch_interval_s=1e-4)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not made for Windows")
def test_a_service_runs_on_uvloop_and_hands_the_interpreter_on_when_told() -> None:
    done = subprocess.run([sys.executable, "-c", SERVICE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loop, interval_s = done.stdout.split()
    assert loop == "uvloop"
    assert float(interval_s) == pytest.approx(1e-4)

"""Freed memory stays with the process, where the C library can."""

import subprocess
import sys

import pytest

from causal_tune.memory import keep_freed_memory

STEPS = """
import resource, sys, torch
from causal_tune.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    held = [torch.ones(1 << 20) for _ in range(8)]  # 4 MiB each
    del held
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library has no mallopt")
def test_steps_that_drop_and_make_arrays_have_few_page_faults():
    faults = [
        int(subprocess.run([sys.executable, "-c", STEPS, what], capture_output=True, check=True).stdout)
        for what in ("give back", "keep")
    ]
    assert faults[1] < 200
    if faults[0] < 2000:
        pytest.skip("this C library keeps freed memory of its own accord: the test tells nothing here")

"""What a user sees when a pipeline is imported: nothing."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("module", ["pipelines.part_transforms", "pipelines.embed_transforms", "pipelines.runner"])
def test_importing_a_pipeline_says_nothing(module):
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""

"""What a user sees when a pipeline is imported: nothing."""

import subprocess
import sys


def test_importing_a_pipeline_says_nothing():
    done = subprocess.run([sys.executable, "-c", "import pipelines.part_transforms"], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""

"""Two processes are one: each takes half of every batch, their gradients are averaged."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vreid_course.drawing.mini_mars import MiniMars, mini_mars

TESTS = Path(__file__).parent
CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "VREID_SCALE": "smoke"}


@pytest.mark.slow
def test_every_method_trained_by_two_processes_is_that_of_one(tmp_path):
    """Whatever a loss compares within a share: weights agree, also of what remembers people.

    And lesson 06's stages, which the processes share: the same scores, the same set.
    """
    drawn = mini_mars(MiniMars(4, 2, frames=(3, 6)), tmp_path / "drawn")
    (tmp_path / "mars").write_bytes(pickle.dumps(drawn))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for how in ([], launch):
        command = [sys.executable, *how, str(TESTS / "in_processes.py"), str(tmp_path)]
        done = subprocess.run(command, env=os.environ | CPU, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in ("1_0", "2_0", "2_1")
    )
    for name in one[1]:
        for key, wanted in one[1][name].items():
            message = f"{name}: {key}"
            if name != "Snippet":  # the second half of its batch asks a table that has moved on
                assert torch.allclose(first[1][name][key], wanted, atol=1e-5), message
            assert torch.equal(first[1][name][key], second[1][name][key]), message
    key = "system.lookup.table"
    assert torch.equal(first[0][key], second[0][key]) and first[0][key].norm(dim=1).min() > 0.9
    for a, b, c in zip(one[2], first[2], second[2], strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
        np.testing.assert_array_equal(b, c)
    assert one[3] == first[3] == second[3] and len(one[3]) > 20

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from training_toys import assert_same_bits, final_tensors

from hwaga.training.metrics import read_rows


def test_a_run_killed_at_ten_random_moments_ends_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    here = Path(__file__).parent
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    done = subprocess.run(
        [sys.executable, str(here / "killed_run.py"), str(tmp_path), "10", "3"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3, "too few attempts were killed before they ended"
    assert_same_bits(final_tensors(tmp_path / "killed"), final_tensors(tmp_path / "whole"))
    steps = [[(r["step"], sorted(r)) for r in read_rows(tmp_path / n / "metrics.jsonl")] for n in ("whole", "killed")]
    assert steps[0] == steps[1]
    assert not [path for path in (tmp_path / "killed").rglob(".*") if ".part-" in path.name]

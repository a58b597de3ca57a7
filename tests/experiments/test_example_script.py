import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "spiral_forecast.py"


@pytest.mark.slow
def test_spiral_forecast(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "latent_ode: " in done.stdout
    assert (tmp_path / "spiral_forecast.png").stat().st_size > 50_000

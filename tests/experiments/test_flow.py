"""The flow experiment's claims at a size that takes seconds."""

import json
from dataclasses import replace

import pytest

from pynode.cli import main
from pynode.experiments import flow, flow_table

SMALL = flow.FlowRun(
    model="cnf", density="moons", seed=0, regularised="none", steps=60, batch_size=128, hidden=16,
    layers=2, lr=0.03,
)  # fmt: skip


def test_a_cnf_learns_what_one_gaussian_cannot_and_inverts(tmp_path):
    gaussian = flow.work(replace(SMALL, model="gaussian"), tmp_path)
    row = flow.work(SMALL, tmp_path)
    assert row["nll"] < gaussian["nll"] - 0.1
    coarse, *_, fine = row["round_trip"]
    assert fine["error"] < 1e-7 < coarse["error"] and fine["nfe"] > coarse["nfe"]
    assert (tmp_path / "picture.npz").exists()


def test_exact_trace_takes_d_passes_and_the_estimate_one():
    for d in (2, 5):
        cost = flow.trace_costs(d, hidden=4, seed=0, batch=4)
        assert (cost["exact_vjp"], cost["hutchinson_vjp"]) == (d, 1)


def test_all_models_have_the_same_number_of_parameters():
    sizes = [flow.make(replace(SMALL, model=m)).n_parameters for m in ("cnf", "planar", "coupling")]
    assert max(sizes) < 1.05 * min(sizes)


def test_kernel_density_is_near_the_entropy():
    train, test = (flow.density("8gaussians", 3000, seed=s) for s in (1, 2))
    floor = flow.entropy("8gaussians")
    assert floor < flow._kde(train, test) < floor + 0.15
    assert flow._gaussian(train, test) > floor + 0.5


def test_equal_likelihood_is_read_between_looks():
    def run(variant, *points):
        curve = [{"step": i, "nll": nll, "nfe": nfe} for i, (nll, nfe) in enumerate(points)]
        return {"model": "cnf", "density": "d", "seed": 0, "regularised": variant, "curve": curve}

    rows = [
        run("none", (3.0, 10), (2.0, 30), (1.0, 50)),
        run("rnode", (3.0, 10), (1.5, 20)),
        run("steer", (3.0, 10), (1.5, 40)),
        run("taynode", (1.5, 12), (1.4, 90)),
    ]
    equal = flow_table.equal_likelihood(rows)  # at 1.5, the worst end
    assert equal == {"none": [40.0], "rnode": [20.0], "steer": [40.0], "taynode": [12.0]}


@pytest.mark.slow
def test_the_whole_experiment(tmp_path):
    size = ["--steps", "20", "--seeds", "2", "--hidden", "8", "--batch-size", "64"]
    where = ["--out", str(tmp_path), "--jobs", "1", "--densities", "moons", "rings"]
    assert main(["experiment", "flow", *size, *where]) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert {r["model"] for r in rows} == {*flow_table.LABELS, "cost"}
    text = (tmp_path / "table.md").read_text()
    assert "## What came out" in text and "RNODE" in text
    assert (tmp_path / "figure.png").stat().st_size > 50_000

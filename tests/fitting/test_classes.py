"""Classes of series, and the PhysioNet 2012 reader."""

import numpy as np
import pandas as pd
import pytest

import pynode
from pynode.cli import main
from pynode.data.physionet import DESCRIPTORS, read_physionet2012
from pynode.errors import InputError
from pynode.fitting.class_networks import CLASSIFIERS


def steps(count=40, seed=0):
    """Rising and falling series of uneven lengths, some values missing."""
    rng = np.random.default_rng(seed)
    parts = []
    for who in range(count):
        t = np.sort(rng.uniform(0, 3, rng.integers(4, 9)))
        up = who % 2 == 0
        x = (t if up else -t) + rng.normal(0, 3) + 0.1 * rng.standard_normal(len(t))
        y = rng.standard_normal(len(t))
        y[rng.random(len(t)) < 0.3] = np.nan
        kind = "up" if up else "down"
        parts.append(pd.DataFrame({"who": who, "t": t, "x": x, "y": y, "kind": kind}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_every_classifier_learns_and_is_saved(model, tmp_path):
    frame = steps()
    fitted = pynode.fit(
        frame, time="t", id="who", label="kind", model=model, epochs=15, lr=0.03, test=0.0,
        verbose=False, progress=False,
    )  # fmt: skip
    assert fitted.classes == ("down", "up")
    fresh = steps(seed=5)
    scores = fitted.score(fresh)
    assert scores["accuracy"] > 0.6 and scores["auc"] > 0.8
    assert scores["accuracy_low"] < scores["accuracy"] <= scores["accuracy_high"]
    found = fitted.predict(fresh.drop(columns="kind"))
    assert list(found.columns) == ["who", "prediction", "p_down", "p_up"]
    np.testing.assert_allclose(found["p_down"] + found["p_up"], 1, rtol=1e-6)
    fitted.save(tmp_path / "c.pt")
    pd.testing.assert_frame_equal(pynode.load(tmp_path / "c.pt").predict(fresh), found)


def test_command(tmp_path, capsys):
    steps().to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "out"
    options = ["--id", "who", "--label", "kind", "--epochs", "1", "--model", "neural_cde"]
    assert main(["fit", str(tmp_path / "t.csv"), "--time", "t", "--out", str(out), *options]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert {"model.pt", "report.html", "classes.csv", "scores.json"} <= {
        p.name for p in out.iterdir()
    }
    assert main(["fit", str(tmp_path / "t.csv"), "--out", str(tmp_path / "no"), *options,
                 "--forecast", "1"]) == 2  # fmt: skip
    assert "classes are not forecast" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_too_few_series_or_classes():
    options = {"time": "t", "id": "who", "label": "kind", "verbose": False}
    with pytest.raises(InputError, match="8 series of 2 classes"):
        pynode.fit(steps(8), **options)
    with pytest.raises(InputError, match="40 series of 1 classes"):
        pynode.fit(steps().assign(kind="up"), **options)
    with pytest.raises(InputError, match="classes are told by"):
        pynode.fit(steps(), **options, model="rnn")


@pytest.mark.slow
def test_scikit_learns_digits_as_series():
    """Strokes of scikit-learn's digits, row by row, with rows missing: 0 against 1."""
    digits = pytest.importorskip("sklearn.datasets").load_digits(n_class=2)
    rng = np.random.default_rng(0)
    parts = []
    for who in range(80):
        rows = np.sort(rng.choice(8, 6, replace=False))
        image = digits.images[who][rows]
        part = pd.DataFrame(image[:, 2:6], columns=list("abcd"))
        parts.append(part.assign(who=who, t=rows, digit=digits.target[who]))
    fitted = pynode.fit(
        pd.concat(parts), time="t", id="who", label="digit", model="neural_cde", epochs=12,
        verbose=False, progress=False, test=0.25,
    )  # fmt: skip
    assert fitted.scores["series"] == 20 and fitted.scores["accuracy"] >= 0.85


RECORD = """Time,Parameter,Value
00:00,RecordID,{id}
00:00,Age,54
00:00,Gender,0
00:00,Height,-1
00:00,ICUType,4
00:00,Weight,-1
00:07,GCS,15
00:07,HR,73
00:37,HR,77
00:37,HR,79
26:07,Weight,81.6
"""


@pytest.fixture
def hospital(tmp_path):
    folder = tmp_path / "set-a"
    folder.mkdir()
    for id in (132539, 132540, 132541):
        (folder / f"{id}.txt").write_text(RECORD.format(id=id))
    (tmp_path / "Outcomes-a.txt").write_text(
        "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
        "132539,6,1,5,-1,0\n132540,16,8,8,-1,1\n"
    )
    return folder


def test_physionet_2012(hospital):
    table = read_physionet2012(hospital)
    assert table.ids == (132539, 132540) and table.labels == (0, 1)  # 132541 has no outcome
    assert table.names == ("GCS", "HR", "Weight measured")
    np.testing.assert_allclose(table.times[0], [7 / 60, 37 / 60, 26 + 7 / 60])
    np.testing.assert_array_equal(table.values[0][:, 1], [73, 78, np.nan])
    assert tuple(s.name for s in table.statics) == DESCRIPTORS
    assert np.isnan(table.static[0][2]) and np.isfinite(table.static[0][0])
    assert len(read_physionet2012(hospital, label=False)) == 3


def test_a_folder_of_physionet_2012_can_be_fitted(hospital, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for id in range(132542, 132556):
        lines = "".join(f"{h:02d}:00,HR,{70 + rng.normal():.2f}\n" for h in range(1, 9))
        (hospital / f"{id}.txt").write_text(RECORD.format(id=id) + lines)
    with open(tmp_path / "Outcomes-a.txt", "a") as file:
        file.writelines(f"{id},1,1,1,-1,{id % 2}\n" for id in range(132542, 132556))
    common = ["fit", str(hospital), "--epochs", "1", "--out"]
    assert main([*common, str(tmp_path / "c"), "--label", "In-hospital_death"]) == 0
    assert len(pd.read_csv(tmp_path / "c" / "classes.csv")) == 16
    rule = ["--model", "last_value", "--horizon", "3", "--split", "series"]
    assert main([*common, str(tmp_path / "f"), *rule]) == 0
    assert "HR_mean" in pd.read_csv(tmp_path / "f" / "forecast.csv")


@pytest.mark.parametrize(
    "line, said",
    [
        ("00:07,HR", "line 13: '00:07,HR' is not as"),
        ("7,HR,73", "line 13"),
        ("00:61,HR,73", "line 13"),
        ("00:07,HR,high", "line 13"),
        ("00:07,HR,inf", "line 13"),
    ],
)
def test_physionet_2012_bad_lines(hospital, line, said):
    (hospital / "132539.txt").write_text(RECORD.format(id=132539) + line + "\n")
    with pytest.raises(InputError, match=said):
        read_physionet2012(hospital)


def test_physionet_2012_bad_folders(hospital, tmp_path):
    with pytest.raises(InputError, match="no record"):
        read_physionet2012(tmp_path)
    (tmp_path / "Outcomes-a.txt").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"Outcomes-a\.txt"):
        read_physionet2012(hospital)
    (tmp_path / "Outcomes-a.txt").unlink()
    with pytest.raises(InputError, match=r"no file Outcomes\*.txt"):
        read_physionet2012(hospital)
    (hospital / "132539.txt").write_text("hello")
    with pytest.raises(InputError, match="first line"):
        read_physionet2012(hospital)

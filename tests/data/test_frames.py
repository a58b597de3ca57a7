"""Tables in, series out, and what is wrong with a table said in words."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pynode.data import tables
from pynode.data.clock import Clock
from pynode.data.frames import read_series
from pynode.data.tables import Columns, Text
from pynode.errors import InputError

WIDE = """id,t,x,y,size,kind
a,0.0,1.0,,2.5,cat
a,1.5,2.0,5.0,2.5,cat
b,0.5,,7.0,1.0,dog
b,0.2,4.0,6.0,1.0,dog
b,0.2,6.0,,1.0,dog
"""
COLUMNS = Columns(time="t", values=("x", "y"), id="id", static=("size", "kind"))


@pytest.fixture
def write(tmp_path):
    def _write(text, name="table.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return _write


def check_wide(table):
    assert table.ids == ("a", "b")
    np.testing.assert_array_equal(table.times[0], [0.0, 1.5])
    np.testing.assert_array_equal(table.times[1], [0.2, 0.5])
    np.testing.assert_array_equal(table.values[0], [[1.0, np.nan], [2.0, 5.0]])
    np.testing.assert_array_equal(table.values[1], [[5.0, 6.0], [np.nan, 7.0]])  # x averaged
    assert table.statics[1].categories == ("cat", "dog")
    np.testing.assert_allclose(table.static, [[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
    assert any("sorted by time" in note for note in table.notes)
    assert any("averaged" in note for note in table.notes)


def test_wide_csv(write):
    check_wide(read_series(write(WIDE), COLUMNS))


def test_wide_frame(write):
    check_wide(read_series(pd.read_csv(write(WIDE)), COLUMNS))


def test_wide_parquet(write, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    pd.read_csv(write(WIDE)).to_parquet(path)
    check_wide(read_series(path, COLUMNS))


def test_gzip_and_other_separators(write, tmp_path):
    frame = pd.read_csv(write(WIDE))
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    check_wide(read_series(tmp_path / "t.csv.gz", COLUMNS))
    frame.to_csv(tmp_path / "german.csv", index=False, sep=";", decimal=",")
    table = read_series(tmp_path / "german.csv", COLUMNS_NUMBER_TIME, text=Text(decimal=","))
    np.testing.assert_array_equal(table.values[0], [[1.0, np.nan], [2.0, 5.0]])
    assert any("separated by ';'" in note for note in table.notes)


COLUMNS_NUMBER_TIME = Columns(time="t", values=("x", "y"), id="id")


def test_long_layout(write):
    text = "who,when,what,number\na,1,hr,60\na,1,temp,36.5\na,2,hr,61\nb,1,temp,37\n"
    columns = Columns(time="when", id="who", variable="what", values=("number",))
    table = read_series(write(text), columns)
    assert table.names == ("hr", "temp")
    np.testing.assert_array_equal(table.values[0], [[60, 36.5], [61, np.nan]])
    np.testing.assert_array_equal(table.values[1], [[np.nan, 37]])
    only = read_series(write(text), Columns(**columns.__dict__ | {"only": ("temp",)}))
    assert only.names == ("temp",)
    assert only.n_observed == 2


def test_columns_are_guessed_and_said(write):
    table = read_series(write("date,x,name\n2020-01-01,1,u\n2020-01-03,2,u\n"))
    assert (table.columns.time, table.names) == ("date", ("x",))
    assert table.ids == (None,)
    assert any("'date'" in n for n in table.notes) and any("'x'" in n for n in table.notes)
    assert np.diff(table.times[0]) == pytest.approx([2.0])  # days


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "UTC"])
def test_timestamps_come_back(zone):
    stamps = pd.date_range("2024-03-30 12:34:56.789123", periods=5, freq="7h", tz=zone)
    table = read_series(pd.DataFrame({"t": stamps, "x": range(5)}))
    back = table.clock.restore(table.times[0])
    assert str(back.tz) == str(stamps.tz)
    assert abs(back - stamps).max() <= pd.Timedelta(microseconds=2)


def test_timestamps_with_an_offset_in_text(write):
    text = "t,x\n2024-01-01T10:00:00+02:00,1\n2024-01-01T09:00:00Z,2\n"
    table = read_series(write(text))
    assert table.clock.zone == "UTC"
    assert np.diff(table.times[0]) == pytest.approx([1 / 24])


def test_time_format(write):
    text = "t,x\n31/12/2023,1\n01/01/2024,2\n"
    assert np.diff(read_series(write(text), time_format="%d/%m/%Y").times[0]) == [1.0]
    with pytest.raises(InputError, match=r"row 1: the time \('t'\) is '31/12/2023'.*time format"):
        read_series(write(text))


def test_words_for_missing_values(write):
    table = read_series(write("t,x\n1,-\n2,5\n3,-99\n"), text=Text(missing=("-", "-99")))
    np.testing.assert_array_equal(table.values[0][:, 0], [np.nan, 5, np.nan])


def test_series_without_values_are_left_out(write):
    table = read_series(write("id,t,x\na,1,2\nb,1,\nb,2,\n"), Columns(id="id"))
    assert table.ids == ("a",)
    assert any("left out: b" in note for note in table.notes)


BAD = {
    "missing column": ("t,x\n1,2\n", {"values": ("z",)}, "no column 'z'; there are 't', 'x'"),
    "no time": ("a,x\n1,2\n", {}, "which column is the time"),
    "no values": ("t,x\n1,u\n2,v\n", {}, "which columns are the values"),
    "text among numbers": ("t,x\n1,2\n2,two\n", {"values": ("x",)}, "row 2: 'x' is 'two'"),
    "decimal comma": ('t,x\n1,"2,5"\n', {"values": ("x",)}, "decimal mark a comma"),
    "infinite": ("t,x\n1,2\n2,inf\n", {}, "row 2: 'x' is infinite"),
    "time missing": ("t,x\n1,2\n,3\n", {}, "row 2: the time .* is missing"),
    "time infinite": ("t,x\n1,2\n-inf,3\n", {}, "row 2: the time .* not a finite"),
    "time text": ("t,x\n1,2\nnoon,3\n", {}, "row 2: the time .* 'noon'"),
    "mixed zones": (
        "t,x\n2020-01-01T00:00Z,2\n2020-01-02T00:00,3\n",
        {},
        "row 2: .* no zone, those before it do",
    ),
    "id missing": ("id,t,x\na,1,2\n,2,3\n", {"id": "id"}, "row 2: 'id' is missing"),
    "all missing": ("t,x\n1,\n2,\n", {"values": ("x",)}, "no value at all"),
    "one column all missing": ("t,x,y\n1,2,\n2,3,\n", {"values": ("x", "y")}, "'y' has no value"),
    "no rows": ("t,x\n", {}, "a header, but no rows"),
    "empty": ("", {}, "is empty"),
    "blank": ("\n\n", {}, "is empty"),
    "two columns of one name": ("t,x,x\n1,2,3\n", {}, "two columns 'x'"),
    "ragged": ("t,x\n1,2\n1,2,3,4\n", {}, "cannot be read as CSV.*line 3"),
    "named twice": ("t,x\n1,2\n", {"time": "t", "values": ("t",)}, "named for two things"),
    "static varies": (
        "id,t,x,s\na,1,2,1\na,2,3,2\n",
        {"id": "id", "values": ("x",), "static": ("s",)},
        "'s' changes in series 'a'",
    ),
    "label varies": (
        "id,t,x,s\na,1,2,u\na,2,3,v\n",
        {"id": "id", "values": ("x",), "label": "s"},
        "label 's' changes in series 'a'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(name, write):
    text, columns, said = BAD[name]
    with pytest.raises(InputError, match=said):
        read_series(write(text), Columns(**columns))


def test_bad_files(write, tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_series(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_series(tmp_path)
    with pytest.raises(InputError, match=r"not written in utf-8.*encoding"):
        read_series(write("t,größe\n1,2\n", encoding="latin-1"))
    assert read_series(
        write("t,größe\n1,2\n", encoding="latin-1"), text=Text(encoding="latin-1")
    ).names == ("größe",)
    with pytest.raises(InputError, match="no encoding 'klingon'"):
        read_series(write("t,x\n1,2\n"), text=Text(encoding="klingon"))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_series(write(b"PAR1 not really", name="x.parquet"))
    with pytest.raises(InputError):
        read_series(write(bytes(range(256)) * 20))
    with pytest.raises(InputError, match="cannot be read"):
        read_series(write(b"\x1f\x8bnot gzip", name="t.csv.gz"))


def test_frames_with_odd_things():
    for column, said in (
        ([1 + 2j, 3j], "complex"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"]), "timestamps"),
        ([[1], [2]], "not a number"),
    ):
        with pytest.raises(InputError, match=said):
            read_series(pd.DataFrame({"t": [0, 1], "x": column}), Columns(values=("x",)))
    with pytest.raises(InputError, match="no rows"):
        read_series(pd.DataFrame({"t": [], "x": []}), Columns(values=("x",)))


def test_durations():
    days = Clock(True)
    assert days.duration("12h") == 0.5
    assert days.duration("2 w") == 14
    assert days.duration(pd.Timedelta(days=3)) == 3
    assert Clock(False).duration("2.5") == 2.5
    for clock, value, said in (
        (days, 5, "give a unit, as 5d"),
        (days, "5", "give a unit"),
        (days, "soon", "no length of time"),
        (Clock(False), "5d", "plain numbers"),
        (Clock(False), 0, "positive"),
        (Clock(False), float("nan"), "positive"),
        (Clock(False), True, "no length of time"),
    ):
        with pytest.raises(InputError, match=said):
            clock.duration(value, "horizon")


@pytest.mark.parametrize(
    "n, chunk", [(5_000, 1_000), pytest.param(1_000_000, tables.CHUNK, marks=pytest.mark.slow)]
)
def test_many_rows_in_pieces(n, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    order = np.arange(n) * 1000 // n
    path = tmp_path / "large.csv"
    pd.DataFrame({"id": order, "t": np.arange(n), "x": rng.random(n).round(3)}).to_csv(
        path, index=False
    )
    table = read_series(path, Columns(time="t", id="id", values=("x",)))
    assert len(table) == 1000 and table.n_observed == n
    with open(path, "a") as file:
        file.write("7,1,oops\n")
    with pytest.raises(InputError, match=f"row {n + 1}: 'x' is 'oops'"):
        read_series(path, Columns(time="t", id="id", values=("x",)))


CELL = st.one_of(
    st.floats().map(str),
    st.integers(-(10**30), 10**30).map(str),
    st.sampled_from(
        ["", "NA", "2020-01-01", "2020-01-01T00:00Z", "é", '"', "1;2", "0x10", "1e999"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=100)
@given(st.lists(st.lists(CELL, min_size=1, max_size=4), min_size=0, max_size=6), st.binary())
def test_any_text_is_a_clean_error_or_a_valid_table(tmp_path_factory, rows, tail):
    path = tmp_path_factory.mktemp("fuzz") / "table.csv"
    body = "\n".join(",".join(row) for row in rows)
    path.write_bytes(b"t,x,id\n" + body.encode() + tail)
    for columns in (Columns(), Columns(time="t", values=("x",), id="id")):
        try:
            table = read_series(path, columns)
        except InputError:
            continue
        check_valid(table)


VALUES = st.one_of(
    st.floats(),
    st.none(),
    st.integers(),
    st.booleans(),
    st.text(max_size=3),
    st.datetimes(),
    st.dates(),
    st.lists(st.integers(), max_size=2),
    st.complex_numbers(),
)


@settings(max_examples=100)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=5))
def test_any_frame_is_a_clean_error_or_a_valid_table(rows):
    frame = pd.DataFrame(rows, columns=["t", "x", "id"])
    for columns in (Columns(), Columns(time="t", values=("x",), id="id", static=())):
        try:
            table = read_series(frame, columns)
        except InputError:
            continue
        check_valid(table)


def check_valid(table):
    assert len(table) == len(table.times) == len(table.values) >= 1
    for t, x in zip(table.times, table.values, strict=True):
        assert t.dtype == x.dtype == np.float64
        assert x.shape == (len(t), len(table.names)) and len(t) > 0
        assert np.isfinite(t).all() and (np.diff(t) > 0).all()
        assert not np.isinf(x).any() and np.isfinite(x).any()
    table.clock.restore(table.times[0])

"""Pickles of plain data come back as they were; whatever else a pickle holds is refused before it can do anything."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from worldloop.worldmodel.data.plain_pickle import RefusedPickleError, load_plain

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers()),
    max_leaves=20,
)
DTYPES = (
    arrays.boolean_dtypes()
    | arrays.integer_dtypes()
    | arrays.floating_dtypes()
    | arrays.unicode_string_dtypes(min_len=1, max_len=5)
)
ARRAYS = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=4)))


class Runs:
    """Pickled, it is the call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(value, protocol: int):
    assert load_plain(pickle.dumps(value, protocol)) == value


@given(ARRAYS, st.integers(0, pickle.HIGHEST_PROTOCOL), st.booleans())
def test_arrays_come_back_with_type_and_order(array: np.ndarray, protocol: int, transposed: bool):
    array = array.T if transposed else array
    found = np.asarray(load_plain(pickle.dumps(array, protocol)))
    assert found.dtype == array.dtype
    assert found.flags.f_contiguous or not transposed
    np.testing.assert_array_equal(found, array)


@given(DTYPES.flatmap(arrays.from_dtype), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_numbers_of_numpy_become_numbers(value: np.generic, protocol: int):
    found = load_plain(pickle.dumps(value, protocol))
    assert type(found) is type(value.item())
    assert found == value or np.isnan(value)


def test_names_of_numpy_1_and_2_are_known():
    data = pickle.dumps({"a": np.arange(6.0).reshape(2, 3)[:, ::2], "b": np.float32(0.5)}, protocol=2)
    assert b"numpy._core" in data
    for names in (data, data.replace(b"numpy._core", b"numpy.core")):
        found = load_plain(names)
        np.testing.assert_array_equal(np.asarray(found["a"]), [[0, 2], [3, 5]])
        assert found["b"] == 0.5
        assert len(found["a"]) == 2


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, protocol: int):
    file = tmp_path / "made by the pickle"
    for harm in (
        Runs(os.system, f"touch '{file}'"),
        Runs(subprocess.check_output, ["touch", str(file)]),
        Runs(eval, f"open({str(file)!r}, 'w')"),
        Runs(np.save, str(file), np.zeros(3)),
    ):
        data = pickle.dumps({"id": "x", "tracks": [harm]}, protocol)
        with pytest.raises(RefusedPickleError, match=r"the name .*(system|check_output|eval|save), which is neither"):
            load_plain(data)
        assert not file.exists()
    pickle.loads(pickle.dumps(Runs(os.system, f"touch '{file}'"), protocol))
    assert file.exists()  # Python's own loader does run it


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([None, "x"], dtype=object), "an array of type 'O8'"),
        (np.zeros(2, dtype=[("a", "f4")]), "an array of type 'V4'"),
        (np.zeros(2, dtype="M8[s]"), "an array of type 'M8'"),
        (np.ma.masked_array([1.0], mask=[True]), r"the name numpy.ma.*_mareconstruct"),
        (np.random.default_rng, "the name numpy.random"),
        (Path("x"), "the name pathlib.*Path"),
        (Runs(bytearray, 10**15), "the name builtins.bytearray"),
        (Runs(OrderedDict.fromkeys, "ab"), "the name builtins.getattr"),
    ],
)
def test_other_objects_are_refused_by_name(value, message: str):
    with pytest.raises(RefusedPickleError, match=message):
        load_plain(pickle.dumps(value))


FRAME = b"\x80\x04"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
FLOATS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4K\x00K\x01tR"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no whole pickle"),
        (b"hello", "the instruction OBJ"),
        (b"\x1f\x8b\x08\x00", "no whole pickle"),
        (pickle.dumps({"a": np.zeros(100)})[:-30], "no whole pickle"),
        (FRAME + b".", "no whole pickle"),
        (FRAME + b"Nr\xff\xff\xff\x7f.", "place 2147483647 of the memo after 2 instructions"),
        (FRAME + b"B\xff\xff\xff\x7fabc.", "no whole pickle"),
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "no whole pickle"),
        (FRAME + b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", "the name os.system"),
        (FRAME + b"cbuiltins\nset\n)\x81.", "the instruction NEWOBJ, which makes an object of a class"),
        (FRAME + b"(ibuiltins\nset\n.", "the instruction INST"),
        (FRAME + b"\x82\x01.", "the instruction EXT1, which names a registered extension"),
        (FRAME + b"Pwhere\n.", "the instruction PERSID, which refers to an object outside"),
        (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
        (FRAME + b"cbuiltins\nset\n}X\x01\x00\x00\x00xNsb.", "an instruction that changes a function"),
        (FRAME + b"cnumpy\nndarray\n(K\x05\x85tR.", "a call of numpy.ndarray"),
        (
            FRAME + ARRAY + b"(K\x01(J\xff\xff\xff\x7ft" + FLOATS + b"\x89C\x04abcdtb.",
            "shape .2147483647,. and type float32 in 4 bytes",
        ),
        (FRAME + ARRAY + b"(K\x01(J\xff\xff\xff\xfft" + FLOATS + b"\x89C\x04abcdtb.", "an array of shape .-1,."),
        (FRAME + ARRAY + b"(K\x01(K\x01t" + FLOATS + b"\x89]tb.", "an array whose state is not the one that numpy writes"),
        (FRAME + ARRAY + b"(K\x01(K\x01tN\x89C\x04abcdtb.", "an array without bytes or type"),
        (FRAME + b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "bytes in the encoding 'hex'"),
    ],
)
def test_damaged_and_hand_made_pickles_are_refused(data: bytes, message: str):
    with pytest.raises(RefusedPickleError, match=message):
        load_plain(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes):
    with contextlib.suppress(RefusedPickleError):
        load_plain(FRAME + data)

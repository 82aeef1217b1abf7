from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix, csc_array, csc_matrix, csr_matrix

from models.face.adapters.unpickle import MAX_DEPTH, READ_ERRORS, read_mapping, unpickle
from tests.flame_file import write_python2_pickle

MATRIX = np.array([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.5, 0.0], [4.0, 0.0, 0.0, 0.25]])


class Runs:
    """What people put into a pickle to run something on the reader's machine."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """A file that exists only if somebody ran something."""
    return tmp_path / "evidence"


def refused(tmp_path: Path, content: bytes, evidence: Path, name: str = "evil.pkl") -> str:
    """The one line with which a file is refused; fails if anything was run."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read_mapping(path)
    assert not evidence.exists()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<f8", ">f4", "<i4", "|u1", "|b1", "<U5", "|S3", "<f2"])
def test_arrays_of_every_protocol_come_back(protocol: int, kind: str) -> None:
    plain = np.arange(24).reshape(2, 3, 4).astype(kind)
    for array in (plain, np.asfortranarray(plain), plain[:, ::2], plain[0, 0, :1]):
        found = unpickle(pickle.dumps(array, protocol=protocol))
        assert found.dtype.str.strip("=|<") == array.dtype.str.strip("=|<")
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("form", [csc_matrix, csr_matrix, coo_matrix, csc_array])
def test_sparse_matrices_are_written_out(form: Any) -> None:
    np.testing.assert_array_equal(unpickle(pickle.dumps(form(MATRIX))), MATRIX)


def test_a_pickle_of_python_2_comes_back(tmp_path: Path) -> None:
    content = {"matrix": csc_matrix(MATRIX), "plain": MATRIX, "style": "lbs", "both": [1, (2.5, None, True)]}
    write_python2_pickle(content, tmp_path / "old.pkl")
    assert b"scipy.sparse.csc\ncsc_matrix" in (tmp_path / "old.pkl").read_bytes()
    found = read_mapping(tmp_path / "old.pkl")
    np.testing.assert_array_equal(found["matrix"], MATRIX)
    np.testing.assert_array_equal(found["plain"], MATRIX)
    assert (found["style"], found["both"]) == ("lbs", [1, (2.5, None, True)])


def test_scalars_and_ordered_dictionaries_come_back() -> None:
    found = unpickle(pickle.dumps(OrderedDict(a=np.float32(0.25), b={"c": np.int64(7)}), protocol=2))
    assert found == {"a": 0.25, "b": {"c": 7}}
    assert isinstance(found["a"], np.float32)


def test_an_object_shared_by_many_is_read_once() -> None:
    array = np.ones(3)
    found = unpickle(pickle.dumps({"first": array, "second": [array]}))
    assert found["first"] is found["second"][0]


def test_npy_of_a_dictionary_and_npz_with_objects_come_back(tmp_path: Path) -> None:
    content = {"faces": np.arange(5), "weights": MATRIX}
    np.save(tmp_path / "embedding.npy", content, allow_pickle=True)
    np.savez(tmp_path / "model.npz", plain=MATRIX, sparse=csc_matrix(MATRIX))
    found = read_mapping(tmp_path / "embedding.npy")
    np.testing.assert_array_equal(found["faces"], np.arange(5))
    np.testing.assert_array_equal(found["weights"], MATRIX)
    archive = read_mapping(tmp_path / "model.npz")
    np.testing.assert_array_equal(archive["plain"], MATRIX)
    np.testing.assert_array_equal(archive["sparse"], MATRIX)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (exec, "exec"), (getattr, "getattr"), (np.load, "load"), (open, "open")],
)
def test_a_pickle_that_calls_something_is_refused(
    tmp_path: Path, evidence: Path, function: Callable[..., Any], name: str, protocol: int
) -> None:
    command = f"touch {evidence}" if function is os.system else f"__import__('os').mkdir({str(evidence)!r})"
    evil = pickle.dumps({"v_template": Runs(function, command)}, protocol=protocol)
    if function in (os.system, eval):
        pickle.loads(evil)
        assert evidence.exists(), "the pickle would not have run anything"
        evidence.rmdir() if evidence.is_dir() else evidence.unlink()
    message = refused(tmp_path, evil, evidence)
    assert name in message
    assert "never run" in message


@pytest.mark.parametrize("name", ["embedding.npy", "model.npz"])
def test_objects_within_arrays_are_no_way_in(tmp_path: Path, evidence: Path, name: str) -> None:
    array = np.array([{"deep": [Runs(os.system, f"touch {evidence}")]}], dtype=object)
    stream = io.BytesIO()
    np.savez(stream, inner=array) if name.endswith("npz") else np.save(stream, array, allow_pickle=True)
    assert "system" in refused(tmp_path, stream.getvalue(), evidence, name)


def short_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def forged_dtype(code: str, state: bytes) -> bytes:
    return b"cnumpy\ndtype\n(" + short_text(code) + b"I0\nI1\ntR(I3\n" + state + b"tb"


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR(I1\n"
OBJECTS = forged_dtype("O8", short_text("|") + b"NNNI-1\nI-1\nI0\n")
FLOATS = forged_dtype("f8", short_text("<") + b"NNNI-1\nI-1\nI0\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"(S'touch {}'\nios\nsystem\n.", "INST", id="old-style instance"),
        pytest.param(b"(cos\nsystem\nS'touch {}'\no.", "OBJ", id="old-style object"),
        pytest.param(b"cposix\nsystem\n(S'touch {}'\ntR.", "posix.system", id="posix"),
        pytest.param(b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval", id="eval of Python 2"),
        pytest.param(b"Pos.system\n.", "PERSID", id="persistent id"),
        pytest.param(b"\x80\x02\x82\x01.", "EXT1", id="extension"),
        pytest.param(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "ndarray.tofile", id="attribute"),
        pytest.param(b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'touch {}'\ntR.", "os.system", id="stack global"),
        pytest.param(b"cos\nsystem\n.", "os.system", id="never called"),
        pytest.param(b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR.", "bare dtype", id="type alone"),
        pytest.param(b"cnumpy\nndarray\n.", "type ndarray", id="class alone"),
        pytest.param(b"cnumpy\nndarray\n(I5\ntR.", "bare ndarray", id="constructor of arrays"),
        pytest.param(b"cnumpy\ndtype\n}X\x01\x00\x00\x00aI1\nsb.", "argument", id="state of a class"),
        pytest.param(b"cchumpy.ch\nCh\n)\x81.", "chumpy array without", id="chumpy without a value"),
        pytest.param(b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.", "no bytes", id="other codec"),
        pytest.param(b"c_codecs\nencode\n(tR.", "no bytes", id="codec of nothing"),
        pytest.param(b"c__builtin__\nset\n(](I1\nI2\netR(I1\ntb.", "", id="state of a set"),
        pytest.param(ARRAY + b"(I1\nt" + OBJECTS + b"I0\nC\x08AAAAAAAAtb.", "array of objects", id="forged addresses"),
        pytest.param(ARRAY + b"(I9\nt" + FLOATS + b"I0\nC\x08AAAAAAAAtb.", "has 8 bytes", id="too few bytes"),
        pytest.param(ARRAY + b"(I-1\nt" + FLOATS + b"I0\nC\x08AAAAAAAAtb.", "shape", id="negative shape"),
        pytest.param(ARRAY + b"I1\n" + FLOATS + b"I0\nC\x08AAAAAAAAtb.", "shape", id="shape is a number"),
        pytest.param(
            ARRAY + b"(I1\nt" + forged_dtype("V8", short_text("|") + b"NNNI8\nI1\nI0\n") + b"I0\nC\x08AAAAAAAAtb.",
            "type is",
            id="records",
        ),
        pytest.param(
            ARRAY
            + b"(I1\nt"
            + forged_dtype("f8", short_text("<") + b"N(S'a'\nt}I8\nI1\nI0\n")
            + b"I0\nC\x08AAAAAAAAtb.",
            "type is",
            id="fields",
        ),
        pytest.param(b"\x80\x02Nr\xff\xff\xff\xff.", "room for 4294967295", id="memory for nothing"),
        pytest.param(b"](" * 50 + b"e" * 50 + b".", f"more than {MAX_DEPTH} deep", id="deep"),
        pytest.param(b"]q\x00h\x00a.", f"more than {MAX_DEPTH} deep", id="list of itself"),
        pytest.param(b"", "", id="empty"),
        pytest.param(b"not a pickle at all", "", id="text"),
        pytest.param(b"PK\x03\x04 not an archive", "not a zip file", id="no archive"),
        pytest.param(b"\x93NUMPY\x03\x00", "version", id="newer npy"),
    ],
)
def test_hostile_and_damaged_files_are_refused(tmp_path: Path, evidence: Path, content: bytes, reason: str) -> None:
    assert reason in refused(tmp_path, content.replace(b"{}", str(evidence).encode()), evidence)


def test_a_sparse_matrix_larger_than_memory_is_refused(tmp_path: Path, evidence: Path) -> None:
    matrix = csc_matrix(MATRIX)
    matrix._shape = (10**6, 10**6)
    assert "sparse matrix of 1000000 by 1000000" in refused(tmp_path, pickle.dumps(matrix), evidence)


def test_an_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, evidence: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.face.adapters.unpickle.MAX_BYTES", 10**5)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.npy", bytes(10**6))
    assert "unpacks to more than 100000 bytes" in refused(tmp_path, stream.getvalue(), evidence)


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"list\.pkl: holds a list, expected a dictionary of arrays"):
        read_mapping(tmp_path / "list.pkl")
    with pytest.raises(FileNotFoundError, match=r"none\.pkl: no such file"):
        read_mapping(tmp_path / "none.pkl")


def test_what_a_hostile_pickle_writes_to_a_class_is_gone_afterwards() -> None:
    with pytest.raises(TypeError):
        unpickle(b"cnumpy\ndtype\n(N}X\x04\x00\x00\x00kindX\x01\x00\x00\x00xstb.")
    np.testing.assert_array_equal(unpickle(pickle.dumps(MATRIX)), MATRIX)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pickles") / "valid.pkl"
    write_python2_pickle({"matrix": csc_matrix(MATRIX), "plain": MATRIX, "names": ["lbs", {"x"}]}, path)
    return path.read_bytes()


def test_every_truncation_is_refused(valid: bytes) -> None:
    for size in range(len(valid)):
        with pytest.raises(READ_ERRORS):
            unpickle(valid[:size])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_read_or_refused(valid: bytes, data: st.DataObject) -> None:
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpickle(bytes(changed))
    except READ_ERRORS:
        return

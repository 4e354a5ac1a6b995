"""Which rows of a batch are a process's own, and what shapes the whole batch has."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxpipe as jp
from jaxpipe.errors import BatchError, MeshError
from jaxpipe.feed import Feed


def a_feed(monkeypatch, owners, index, axes=("pipe", "data")):
    """A feed of a process of a mesh of which only its devices' owners are known."""
    owners = np.array(owners)
    devices = np.array([SimpleNamespace(process_index=i) for i in owners.flat]).reshape(
        owners.shape
    )
    mesh = SimpleNamespace(
        devices=devices, axis_names=axes, shape=dict(zip(axes, owners.shape, strict=True))
    )
    monkeypatch.setattr(jax, "process_index", lambda: index)
    return Feed(cast(Mesh, cast(Any, mesh)))


@pytest.mark.parametrize(
    ("owners", "index", "rows"),
    [
        ([[0, 0], [1, 1]], 1, slice(0, 8)),
        ([[0, 1], [0, 1]], 1, slice(4, 8)),
        ([[0, 0, 1, 1], [2, 2, 3, 3]], 2, slice(0, 4)),
        ([[0, 0, 0, 1]], 0, slice(0, 6)),
        ([[5, 5]], 0, slice(0, 8)),  # another process's own mesh
    ],
)
def test_rows_follow_the_data_axis(monkeypatch, owners, index, rows):
    feed = a_feed(monkeypatch, owners, index)
    assert feed.rows(8) == rows
    part = np.zeros((8, 3), np.int32)[rows]
    assert feed.abstract({"x": part})["x"].shape == (8, 3)


def test_abstract_arrays_are_whole_batches(monkeypatch):
    feed = a_feed(monkeypatch, [[0, 1]], 0)
    spec = jax.ShapeDtypeStruct((8, 3), np.float32)
    assert feed.abstract({"x": spec})["x"].shape == (8, 3)
    assert feed.abstract({"x": np.zeros((8, 3))})["x"].shape == (16, 3)


def test_a_mesh_without_data_takes_whole_batches(monkeypatch):
    feed = a_feed(monkeypatch, [0, 1], 1, axes=("pipe",))
    assert feed.spec == PartitionSpec()
    assert feed.rows(8) == slice(0, 8)


def test_what_cannot_be_is_refused(monkeypatch):
    feed = a_feed(monkeypatch, [[0, 0, 0, 1]], 0)
    with pytest.raises(BatchError, match="a batch of 6 cannot be cut over 4 data ranks"):
        feed.rows(6)
    with pytest.raises(BatchError, match="has 4 rows for 3 data ranks"):
        feed.abstract({"x": np.zeros(4)})
    with pytest.raises(MeshError, match="process 7 has no device of the mesh"):
        a_feed(monkeypatch, [[0, 1]], 7).rows(4)
    with pytest.raises(MeshError, match=r"data ranks \[0, 2\]; expected neighbours"):
        a_feed(monkeypatch, [[0, 1, 0, 1]], 0).rows(4)


def test_a_process_alone_gives_everything():
    feed = Feed(jp.make_mesh(pipe=2, data=2))
    assert feed.rows(7) == slice(0, 7)
    assert feed.put({"x": np.arange(4)})["x"].sharding.spec == PartitionSpec("data")

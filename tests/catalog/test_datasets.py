"""`datasets.load_dataset` on a catalog's folder, offline, with its pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pytest

from catalog.card import CardFields, escape
from catalog.hub import publish, pull
from tests.catalog.samples import chunk_of, small_catalog

SCRIPT = """
import sys
import numpy as np
from datasets import Image, load_dataset
from catalog.codecs import DctSpec, codec_for
folder, direction = sys.argv[1], sys.argv[2]
rows = load_dataset(folder, "directions", split="train")
assert isinstance(rows.features["preview"], Image) and isinstance(rows.features["effect"], Image), rows.features
assert rows.features["x_vector"].dtype == "binary" and rows.features["effect_vector"].feature.dtype == "float16"
row = next(r for r in rows if r["direction_id"] == direction)
assert row["preview"].size == (48, 16) and row["effect"].size == (64, 64)
codec = codec_for(DctSpec(block=8, channels=True, cosine=0.9995), (3, 16, 16))  # as the manifest says
vector = codec.decode({"x_vector": np.array([row["x_vector"]], object)})
assert row["h_vector"] is None and vector.shape == (1, 768) and abs(np.linalg.norm(vector) - 1) < 1e-3
images = load_dataset(folder, "images", split="train")
assert images[0]["image"].size == (16, 16) and images[0]["factors"] == [{"name": "a", "value": 0.5}]
regions = load_dataset(folder, "regions", split="train", streaming=True)
mask = next(iter(regions))
assert sorted(set(np.array(mask["mask"]).ravel().tolist())) == [0, 255] and mask["area"] == 30
assert load_dataset(folder, split="train").column_names == rows.column_names
print(len(rows), len(images))
"""


@pytest.mark.parametrize("published", [False, True])
def test_load_dataset_reads_the_folder_offline(tmp_path: Path, published: bool) -> None:
    small_catalog(tmp_path / "c", 2)
    folder = tmp_path / "c"
    if published:
        fields = CardFields(title="Faces: <b>mouths</b>", licence="Apache-2.0", model_licence="CC BY 4.0")
        folder = publish(folder, "org/pack", "1.0.0", tmp_path / "hub", fields).folder
    key = chunk_of("chunk-0").directions[0].direction_id
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), key]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40", "4"]


def test_the_card_says_what_the_pack_is_and_carries_no_markup_from_data(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 1)
    fields = CardFields(title="<script>alert(1)</script>", data_licence="CC0", citations=("LOCO (2024)",))
    publish(tmp_path / "c", "org/pack", "1.0.0", tmp_path / "hub", fields)
    with pull("org/pack", "1.0.0", tmp_path / "out", tmp_path / "hub") as catalog:
        card = (catalog.folder / "README.md").read_text()
    body = card.split("---", 2)[2]
    assert "<script" not in body
    row = "| mouth | x | singular | 4 | 2 |"
    for words in ("20 directions", "hair, mouth", "CC0", "LOCO (2024)", "load_dataset", row):
        assert words in body, words
    assert escape("a|b\n<i>") == "a&#124;b &lt;i&gt;"


def test_duckdb_pandas_and_pyarrow_read_the_shards_as_they_are(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 2)
    shards = str(tmp_path / "c" / "directions" / "*.parquet")
    counts = duckdb.sql(f"select region, kind, count(*) from '{shards}' group by all order by all").fetchall()
    assert counts == [("hair", "local", 8), ("hair", "singular", 12), ("mouth", "local", 8), ("mouth", "singular", 12)]
    wanted = chunk_of("chunk-1").directions[3]
    query = f"select gain, octet_length(preview.bytes) from '{shards}' where direction_id = '{wanted.direction_id}'"
    ((gain, size),) = duckdb.sql(query).fetchall()
    assert gain == wanted.gain
    assert size > 100
    frame = pd.concat(pd.read_parquet(path) for path in sorted((tmp_path / "c" / "directions").iterdir()))
    assert len(frame) == 40
    assert set(frame[frame.space == "h"].x_vector) == {None}
    value = frame[frame.space == "x"].x_vector.iloc[0]
    assert len(pa.decompress(value[1:], 768 * value[0], "zstd")) == 768 * value[0]
    rows = pads.dataset(tmp_path / "c" / "directions").to_table(filter=pc.field("direction_id") == wanted.direction_id)
    assert rows.num_rows == 1

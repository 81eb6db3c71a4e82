"""`datasets.load_dataset` on a catalog's folder, offline, with its pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pytest

from catalog.card import CardFields
from catalog.concept_building import build_concepts
from catalog.concepts import load_concepts
from catalog.reader import Catalog
from catalog.schema import LEFT_OUT
from catalog.writer import CatalogWriter
from tests.catalog import local_hub
from tests.catalog.local_hub import publish
from tests.catalog.published import published
from tests.catalog.samples import chunk_of, small_catalog
from tests.catalog.test_concepts import chunks_of_truth, written

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
        publish(folder, "org/pack", "1.0.0", tmp_path / "hub", fields)
        folder = local_hub.snapshot("org/pack", "1.0.0", tmp_path / "hub")
    key = chunk_of("chunk-0").directions[0].direction_id
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), key]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40", "4"]


BARE = """
import sys
from datasets import load_dataset
for table in ("directions", "images", "regions"):
    rows = load_dataset(sys.argv[1], table, split="train")
    assert not {"effect", "image", "latent", "mask", "preview"} & set(rows.features), rows.features
    streamed = load_dataset(sys.argv[1], table, split="train", streaming=True)
    assert next(iter(streamed)) == rows[0]
    print(len(rows))
"""


def test_load_dataset_reads_a_folder_from_which_all_pictures_are_left_out(tmp_path: Path) -> None:
    small_catalog(tmp_path / "c", 2)
    folder = published(tmp_path / "c", tmp_path / "bare", LEFT_OUT)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", BARE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40", "4", "8"]


CONCEPTS = """
import json, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from datasets import load_dataset
manifest = json.loads((Path(sys.argv[1]) / "manifest.json").read_text())
assert "concept-codecs" in manifest["required_features"]

def told(value, codec, shape):  # the words of format.md, and nothing of the project
    (channels, height, width), b = shape, codec["block"]
    size = channels * height * width
    planes = np.frombuffer(pa.decompress(value[1:], value[0] * size, "zstd"), np.uint8).reshape(value[0], size)
    stored = sum(plane.astype(int) << 8 * number for number, plane in enumerate(planes))
    numbers = np.where(stored % 2, -(stored + 1) // 2, stored // 2).astype(float)
    order = sorted(((i, j) for i in range(b) for j in range(b)), key=lambda at: (at[0] ** 2 + at[1] ** 2, at[0]))
    waves, mixing = dct(b), dct(channels) if codec["channels"] else np.eye(channels)
    coefficients = numbers.reshape(height // b, width // b, channels, b * b)
    picture = np.zeros((channels, height, width))
    for down, across, channel in np.ndindex(coefficients.shape[:3]):
        block = np.zeros((b, b))
        for at, number in zip(order, coefficients[down, across, channel]):
            block[at] = number
        picture[channel, down * b : down * b + b, across * b : across * b + b] = waves.T @ block @ waves
    picture = np.einsum("ki,khw->ihw", mixing, picture)
    return picture / np.linalg.norm(picture)

def dct(n):
    k, i = np.indices((n, n))
    return np.where(k == 0, 1, np.sqrt(2)) / np.sqrt(n) * np.cos(np.pi * (i + 0.5) * k / n)

rows = load_dataset(sys.argv[1], "concepts", split="train")
assert not {"preview", "parents"} & set(rows.features) and rows.features["effect_vector"].dtype == "binary"
assert rows[0]["effect"].size == (64, 64)
found = {}
for row in rows:
    space = row["space"]
    codec, shape = manifest["vectors"][space]["codec"], manifest["vectors"][space]["shape"]
    found[row["concept_id"] + " vector"] = told(row[space + "_vector"], codec, shape)
    effect = told(row["effect_vector"], manifest["concepts"]["effect"], manifest["provenance"]["effect_shape"])
    found[row["concept_id"] + " effect"] = effect
np.savez(sys.argv[2], **found)
"""


def test_prototypes_are_decoded_from_load_dataset_by_what_the_format_says(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", chunks_of_truth(4))
    with CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as catalog:
        writer.replace_concepts(build_concepts(catalog, least=1))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", CONCEPTS, str(folder), str(tmp_path / "found.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    with Catalog.open(folder) as catalog, np.load(tmp_path / "found.npz") as found:
        concepts = load_concepts(catalog)
        assert {concept.space for concept in concepts} == {"x", "h"}
        assert len(found) == 2 * len(concepts)
        for concept in concepts:
            assert np.allclose(found[f"{concept.concept_id} vector"], concept.vector, atol=1e-5)
            assert np.allclose(found[f"{concept.concept_id} effect"], concept.effect, atol=1e-5)


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

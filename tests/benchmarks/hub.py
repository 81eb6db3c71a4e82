"""What publishing and pulling a pack sends, how long it takes, and how much memory, through the Hub's own client.

`python -m tests.benchmarks.hub [--quick] [--json] [--save FILE] [--catalog FOLDER] [--no-concepts] [--scratch FOLDER]`.
A Hub on loopback (`tests.catalog.hub_server`) counts the bytes of bodies; every publication and pull is a process of
its own with the client unmodified, whose memory is the most that it held. Directions are mined ones moved around, see
`tests.benchmarks.hub_data`, of six regions in both spaces, in a catalog with search indexes: mined for the run, or
those of a mined catalog (`--catalog`), and concepts, made anew for every version, but with `--no-concepts`.

Bytes: a pack of some directions is published and pulled, whole and one region of it without previews, both twice, the
second time into other folders; then 5 % more directions are published as the next version. Memory: the same
publication and pull again once the catalog has grown to 50,000 directions. Content is what is in the files of a pack,
with their lines in a commit; all other requests and answers are told apart from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from catalog import manifest as manifests
from catalog.concept_building import build_concepts
from catalog.index import build_indexes
from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from flows.console import stage
from tests.benchmarks.concepts import WORK, mined
from tests.benchmarks.harness import Clock, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.hub_data import MovedImages, grow
from tests.catalog.hub_server import HubServer, environment, serve

ROOT = Path(__file__).parents[2]
REGIONS, SHARE = 6, 20  # one direction in 20 is new
REPOSITORY = "org/faces"
GROWN, PART, MEMORY = 0.07, 0.2, 1.25
FULL_DIRECTIONS = 50_000
LIMIT = 7200  # seconds of one publication or pull
_WITHOUT = ("preview",)


@dataclass(frozen=True)
class Size:
    """How much one run does: images mined; directions of the pack whose bytes are counted, and of the one that is
    published after it (0: none); images of a chunk; directions kept of each kind of an image's region (None: all);
    whether there are concepts.
    """

    mined: int
    directions: int
    large: int
    together: int
    ranks: int | None
    concepts: bool = True


FULL = Size(16, FULL_DIRECTIONS // 4, FULL_DIRECTIONS, 4, None)
QUICK = Size(2, 600, 0, 1, 1)


class Hub:
    """A Hub on loopback, and whoever publishes to it and pulls from it, in a folder for all they make."""

    def __init__(self, server: HubServer, folder: Path, clock: Clock) -> None:
        self.server, self.folder, self._clock = server, folder, clock
        self.work: list[dict[str, Any]] = []

    def do(self, title: str, user: str, **work: Any) -> dict[str, Any]:
        """What a publication or pull came to, the bytes of the Hub that it took and its load before.

        `user`: whose caches it goes by. Raises RuntimeError where it failed.
        """
        variables = {**environment(self.server, self.folder / user), "RHUMB_CACHE": str(self.folder / user / "rhumb")}
        before, load = self._counts(), os.getloadavg()[0]
        with self._clock.stage(title), stage(title, None):
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.hub_driver", json.dumps(work)],
                cwd=ROOT, env=variables, capture_output=True, text=True, timeout=LIMIT, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{title} failed:\n{done.stderr[-2000:]}")
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        wire = {name: count - before[name] for name, count in self._counts().items()}
        result = {"title": title, **told, **wire, "load": load}
        self.work.append(result)
        return result

    def _counts(self) -> dict[str, int]:
        """Bytes of content and of all else, to and from the Hub."""
        server = self.server
        with server.lock:
            to, back = Counter(server.received), Counter(server.sent)
            requests = server.requests.total()
        sent, got = to["upload"] + to["commit"], back["content"] + back["resolve"]
        rest = to.total() + back.total() - sent - got
        return {"sent": sent, "received": got, "other_bytes": rest, "requests": requests}

    def new_files(self, version: str, former: str) -> dict[str, int]:
        """Bytes of the files of a version that a former one does not have, by folder."""
        repository, found = self.server.repositories.get(REPOSITORY), Counter[str]()
        before = {file.tag for file in repository.files(f"v{former}").values()}
        for path, file in repository.files(f"v{version}").items():
            found[path.split("/")[0]] += 0 if file.tag in before else file.size
        return dict(found)

    def forget(self) -> None:
        """Empty the Hub, and all that its users have."""
        self.server.reset()
        for path in self.folder.iterdir():
            shutil.rmtree(path)


def measure(mined_catalog: Path, size: Size, scratch: Path, clock: Clock) -> tuple[list[Target], dict[str, Any]]:
    """Targets and details; everything is made below `scratch`."""
    folder, used = scratch / "catalog", scratch / "users"
    used.mkdir(parents=True)
    with Catalog.open(mined_catalog) as catalog:
        moved = MovedImages(catalog, REGIONS, size.ranks)
    images = SHARE * max(1, round(size.directions / moved.per_image / SHARE))
    with serve(scratch / "hub") as server:
        hub = Hub(server, used, clock)
        catalog_of(folder, moved, 0, images, size, clock)
        first, targets = wire(hub, folder, moved, images, size, clock)
        large: dict[str, Any] | None = None
        if size.large:
            until = ceil(size.large / moved.per_image)
            catalog_of(folder, moved, images + images // SHARE, until, size, clock)
            hub.forget()
            large = round_trip(hub, folder, "1.0.0", "all directions")
            targets += large_targets(first, large)
    details = {
        "mined": {"images": len(moved.images), "regions": moved.mined_regions},
        "regions": list(moved.regions), "directions_per_image": moved.per_image, "first": first, "large": large,
        "work": hub.work, "concepts": size.concepts,
        "load": "of the machine in the minute before each: 1 is one core at work",
    }  # fmt: skip
    return targets, details


def catalog_of(folder: Path, moved: MovedImages, start: int, end: int, size: Size, clock: Clock) -> None:
    """Have the catalog hold the images up to `end`, with indexes, and concepts where they are wanted."""
    count, title = round((end - start) * moved.per_image), "making directions"
    with clock.stage(title), stage(title, count) as advance:
        grow(folder, moved, start, end, size.together, advance)
    with clock.stage("indexes"), stage("indexes", None):
        build_indexes(folder)
    if size.concepts:
        with clock.stage("concepts"), CatalogWriter.open(folder) as writer, Catalog(folder, writer.manifest) as catalog:
            writer.replace_concepts(build_concepts(catalog))


def round_trip(hub: Hub, folder: Path, version: str, what: str) -> dict[str, Any]:
    """Publish a catalog and pull it, by users who have nothing of it: what both came to."""
    rows = manifests.load(folder).rows("directions")
    name = f"{REPOSITORY}@{version}"
    published = hub.do(f"publish {what}", "publisher", do="publish", catalog=str(folder), repository=REPOSITORY,
                       version=version)  # fmt: skip
    pulled = hub.do(f"pull {what}", "reader", do="pull", name=name, out=str(hub.folder / "pulled"))
    lost = abs(rows - manifests.load(hub.folder / "pulled").rows("directions"))
    return {"directions": rows, "bytes": published["bytes"], "published": published, "pulled": pulled, "lost": lost}


def wire(
    hub: Hub, folder: Path, moved: MovedImages, images: int, size: Size, clock: Clock
) -> tuple[dict[str, Any], list[Target]]:
    """Bytes of a round trip, of a part, of second pulls, and of the next version."""
    found, name = round_trip(hub, folder, "1.0.0", "some directions"), f"{REPOSITORY}@1.0.0"
    region = {"regions": [next(iter(moved.regions))], "without": list(_WITHOUT)}
    work = {"do": "pull", "name": name}
    part = hub.do("pull one region without previews", "other", **work, out=str(hub.folder / "part"), **region)
    again = [
        hub.do("pull all again", "reader", **work, out=str(hub.folder / "pulled-2")),
        hub.do("pull the region again", "other", **work, out=str(hub.folder / "part-2"), **region),
    ]
    for left in ("pulled-2", "part-2"):
        shutil.rmtree(hub.folder / left)
    catalog_of(folder, moved, images, images + images // SHARE, size, clock)
    rows = manifests.load(folder).rows("directions")
    new = hub.do("publish 5 % more", "publisher", do="publish", catalog=str(folder), repository=REPOSITORY,
                 version="1.1.0")  # fmt: skip
    found |= {"part": part, "again": again, "republished": new, "new_share": rows / found["directions"] - 1,
              "new_files_bytes": hub.new_files("1.1.0", "1.0.0")}  # fmt: skip
    targets = [
        at_most("share of the pack that is sent for 5 % new directions", new["sent"] / new["bytes"], GROWN),
        at_most("one region of six without previews: share of a whole pull's bytes",
                part["received"] / found["pulled"]["received"], PART),
        at_most("bytes of content of second pulls", sum(one["received"] for one in again), 0),
        at_most("directions lost or doubled on the way", found["lost"], 0),
    ]  # fmt: skip
    return found, targets


def large_targets(first: dict[str, Any], large: dict[str, Any]) -> list[Target]:
    """What the larger of two packs takes, against the smaller; adds the growth of memory to `large`."""
    targets = [
        at_least("directions of the large pack", large["directions"] - large["lost"], FULL_DIRECTIONS),
        at_most("directions of the large pack lost or doubled", large["lost"], 0),
    ]
    more = large["directions"] - first["directions"]
    for name, what in (("published", "publishing"), ("pulled", "pulling")):
        small, great = first[name]["peak"], large[name]["peak"]
        large[f"{name}_bytes_a_direction"] = (great - small) / more
        targets.append(at_most(f"memory of {what} {large['directions'] / first['directions']:.1f} times as many "
                               "directions, against that of the fewer", great / small, MEMORY))  # fmt: skip
    return targets


def tables(details: dict[str, Any]) -> None:
    """The figures for people."""
    mega = 1e6
    rows = [
        (w["title"], round(w["bytes"] / mega, 1), round(w["sent"] / mega, 2), round(w["received"] / mega, 2),
         round(w["other_bytes"] / mega, 3), w["requests"], round(w["seconds"], 1), round(w["peak"] / 2**20),
         round(w["load"], 1))
        for w in details["work"]
    ]  # fmt: skip
    header = ("what", "MB of the catalog", "MB sent", "MB received", "MB of other messages", "requests", "seconds",
              "MiB of memory", "load before")  # fmt: skip
    table("publications and pulls, each a process of its own", header, rows)
    packs = [("some directions", details["first"])] + ([("all", details["large"])] if details["large"] else [])
    counts = [(what, one["directions"], round(one["bytes"] / mega)) for what, one in packs]
    table(f"packs of {len(details['regions'])} regions", ("pack", "directions", "MB"), counts)
    if details["large"]:
        slopes = [(name, round(details["large"][f"{name}_bytes_a_direction"])) for name in ("published", "pulled")]
        table("growth of memory", ("a pack that is", "bytes a direction"), slopes)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--catalog", type=Path, metavar="FOLDER",
        help=f"a mined catalog to make directions of (default: {FULL.mined} held-out faces, or with --quick "
             f"{QUICK.mined}, mined once under build)",
    )  # fmt: skip
    parser.add_argument("--no-concepts", action="store_true", help="without concepts, made anew for every version else")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where a folder for the run is made and deleted")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    given = options("hub", "What publishing and pulling a pack takes.", argv, _more)
    size, clock = replace(QUICK if given.quick else FULL, concepts=not given.extra.no_concepts), Clock()
    catalog = given.extra.catalog or mined(size.mined, WORK / f"hub-{size.mined}", clock)
    if given.extra.scratch is not None:
        given.extra.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rhumb-hub-", dir=given.extra.scratch) as scratch:
        targets, details = measure(catalog, size, Path(scratch).resolve(), clock)
    return finish(document("hub", given.quick, targets, details, clock), given, lambda: tables(details))


if __name__ == "__main__":
    sys.exit(main())

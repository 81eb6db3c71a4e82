"""`rhumb catalog ...`: a catalog as a whole. Each command opens, calls, and answers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from catalog.compaction import compact
from catalog.comparing import Difference, diff
from catalog.exporting import FORMATS, export
from catalog.hub.names import PackName
from catalog.hub.snapshots import open_pack
from catalog.merging import merge
from catalog.places import texts
from catalog.reader import Catalog
from catalog.schema import TABLES
from flows.console import answer, say, table
from flows.files import write_whole
from flows.plain import plain
from flows.summary import describe
from pipeline.errors import InputError

_SHOWN = 20
_LARGEST = 1e6  # MB of a shard


def catalog(arguments: Namespace) -> int:
    """`rhumb catalog ACTION ...`."""
    actions = {"info": _info, "diff": _diff, "merge": _merge, "export": _export, "compact": _compact}
    return actions[arguments.action](arguments) or 0


def _opened(place: str) -> Catalog:
    """A catalog folder or store, or one version of a pack, read in place: PACK@X.Y.Z."""
    if "@" in place.rpartition("/")[2] and not Path(place).exists():
        return open_pack(PackName.parse(place))
    return Catalog.open(place)


def _info(arguments: Namespace) -> None:
    with _opened(str(arguments.catalog)) as opened:
        found = describe(opened)

    def text() -> None:
        for name in ("name", "format", "version", "model", "data", "licence", "pack"):
            say(f"{name}: {found[name]}")
        if found["without"]:
            say(f"left out of this pack: {', '.join(found['without'])}")
        rows = [(t["table"], t["rows"], t["shards"], f"{t['bytes'] / 1e6:.1f} MB") for t in found["tables"]]
        table("tables", ("table", "rows", "shards", "size"), rows)
        vectors = [
            (v["space"], " x ".join(map(str, v["shape"])), v["codec"],
             *((f"{v['bytes_each']:.0f}", f"{v['smaller']:.1f}") if v["rows"] else ("-", "-")))
            for v in found["vectors"]
        ]  # fmt: skip
        table("vectors", ("space", "shape", "codec", "bytes each", "times smaller than float32"), vectors)
        indexes = [(i["index"], i["kind"], i["dimension"], i["rows"], i["current"]) for i in found["indexes"]]
        table("indexes", ("index", "kind", "dimensions", "directions", "up to date"), indexes)

    answer(plain(found), arguments.json, text)


def _diff(arguments: Namespace) -> int:
    return show_difference(str(arguments.former), str(arguments.later), arguments.json)


def show_difference(one: str, two: str, as_json: bool) -> int:
    """Answer with what two catalogs differ in; 1 where they do."""
    with _opened(one) as former, _opened(two) as later:
        found = diff(former, later)

    def text() -> None:
        counts = [
            (name, len(found.added[name]), len(found.dropped[name]), sum(c.table == name for c in found.changed))
            for name in TABLES
        ]
        table(f"{one} -> {two}", ("table", "added", "dropped", "changed"), counts)
        _print_rows(found)
        for name, (before, after) in found.provenance.items():
            say(f"{name}: {str(before)[:100]} -> {str(after)[:100]}")
        figures = [(name, before, after) for name, (before, after) in found.figures.items()]
        table("medians of the evidence", ("figure", "before", "after"), figures)

    answer({**plain(found), "same": found.same}, as_json, text)
    return 0 if found.same else 1


def _print_rows(found: Difference) -> None:
    for sign, ids in (("+", found.added["directions"]), ("-", found.dropped["directions"])):
        for key in ids[:_SHOWN]:
            say(f"{sign} direction {key}")
        if len(ids) > _SHOWN:
            say(f"{sign} and {len(ids) - _SHOWN} more (--json lists all)")
    for change in found.changed[:_SHOWN]:
        say(f"~ {change.table[:-1]} {change.id}: {', '.join(change.columns)}")


def _merge(arguments: Namespace) -> None:
    done = merge(arguments.sources, arguments.out)
    rows = ", ".join(f"{count} {name}" for name, count in done.rows.items())
    answer(plain(done), arguments.json, lambda: say(f"merged {len(arguments.sources)} catalogs: {rows}"))


def _export(arguments: Namespace) -> None:
    form = arguments.out.suffix[1:]
    if form not in FORMATS:
        raise InputError("--out", str(arguments.out), " or ".join(f"a file.{name}" for name in FORMATS))
    with _opened(str(arguments.catalog)) as opened:
        wanted = {name: getattr(arguments, name) for name in ("region", "space", "kind")}
        wanted = {name: value for name, value in wanted.items() if value}
        ids = list(arguments.ids) or texts(opened.ids()[opened.select(**wanted)])
        if arguments.ids and wanted:
            raise InputError("directions", f"ids and --{next(iter(wanted))}", "either ids or filters")
        data = export(opened, ids, form)
    write_whole(arguments.out, data)
    done = {"out": str(arguments.out), "directions": len(ids), "bytes": len(data)}
    text = f"wrote {len(ids)} directions ({len(data) / 1e6:.1f} MB) -> {arguments.out}"
    answer(done, arguments.json, lambda: say(text))


def _compact(arguments: Namespace) -> None:
    if not 0 < arguments.shard_size <= _LARGEST:  # NaN too is no size
        raise InputError("--shard-size", arguments.shard_size, f"megabytes: more than 0, at most {_LARGEST:g}")
    done = compact(arguments.catalog, round(arguments.shard_size * 1e6))
    before, after = f"{done.bytes_before / 1e6:.1f} MB", f"{done.bytes / 1e6:.1f} MB"
    text = f"{done.shards_before} shards ({before}) -> {done.shards} ({after})"
    answer(plain(done), arguments.json, lambda: say(text))

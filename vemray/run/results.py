"""What a run left: labels and images as lazy xarray, tables as pandas, the provenance record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vemray.errors import InputError, nearest
from vemray.run.work import open_surface
from vemray.store import access
from vemray.store.artefact import ArtefactFiles
from vemray.store.table import read_json, read_table
from vemray.store.volume import open as open_volume


class Lazy(Mapping):
    """Names that load when asked for."""

    def __init__(self, what: str, urls: dict[str, str], load):
        self.what, self.urls, self.load = what, urls, load

    def __getitem__(self, name: str) -> Any:
        if name not in self.urls:
            raise KeyError(f"there is no {self.what} '{name}'.{nearest(name, self.urls)} There are: {', '.join(self.urls) or 'none'}.")
        try:
            return self.load(self.urls[name])
        except FileNotFoundError:
            raise InputError(f"the {self.what} '{name}' is not at {self.urls[name]}: the run did not come so far, or it was removed.") from None

    def __contains__(self, name: object) -> bool:
        return name in self.urls

    def __iter__(self) -> Iterator[str]:
        return iter(self.urls)

    def __len__(self) -> int:
        return len(self.urls)

    def __repr__(self) -> str:
        return f"<{self.what}: {', '.join(self.urls) or 'none'}>"


#: kind of volume -> what several are called
PLURAL = {"labels": "labels", "image": "images", "mask": "masks", "probability": "probabilities"}


class Results:
    """The folder of a run, local or S3: what its recipe keeps.

    .labels[name], .images[name]: xarray.DataArray, dims z, y, x, coordinates in nm, loaded when indexed (masks and probabilities
    are among the images).  .tables[name]: pandas.DataFrame (pyarrow through .arrow[name]).  .scalars[name]: dict.
    .surfaces[name]: Surface (ops/faces.py).
    .run: the record in run.json.  .state: 'done', 'failed', 'interrupted' or 'running'.
    """

    def __init__(self, url: str):
        self.url = str(url).rstrip("/")
        try:
            self.run = read_json(access.join(self.url, "run.json"))
        except FileNotFoundError:
            raise InputError(f"{self.url} is not the output of a run: it has no run.json.") from None
        outputs = {o: s for step in self.run["steps"].values() for o, s in step["outputs"].items()}
        kept = {o: outputs[o] for o in self.run["keep"] if o in outputs}
        volumes = {o: access.join(self.url, "volumes", f"{o}.zarr") for o, s in kept.items() if isinstance(s, dict) and s["kind"] != "surface"}
        surfaces = {o: access.join(self.url, "surfaces", o) for o, s in kept.items() if isinstance(s, dict) and s["kind"] == "surface"}
        tables = {o: access.join(self.url, "tables", f"{o}.parquet") for o, s in kept.items() if s == "table"}
        scalars = {o: access.join(self.url, "tables", f"{o}.json") for o, s in kept.items() if s == "scalars"}
        self.kinds = {o: kept[o]["kind"] for o in volumes}
        self.volumes = Lazy("volume", volumes, open_volume)
        self.labels = Lazy("label volume", {o: u for o, u in volumes.items() if self.kinds[o] == "labels"}, lambda u: open_volume(u).to_xarray())
        self.images = Lazy("image", {o: u for o, u in volumes.items() if self.kinds[o] != "labels"}, lambda u: open_volume(u).to_xarray())
        self.arrow = Lazy("table", tables, read_table)
        self.tables = Lazy("table", tables, lambda u: read_table(u).to_pandas())
        self.scalars = Lazy("scalars", scalars, read_json)
        self.surfaces = Lazy("surface", surfaces, lambda u: open_surface(ArtefactFiles(u)))

    @property
    def state(self) -> str:
        return self.run["state"]

    def __repr__(self) -> str:
        parts = {plural: [o for o, k in self.kinds.items() if k == kind] for kind, plural in PLURAL.items()}
        parts.update(tables=list(self.tables), scalars=list(self.scalars), surfaces=list(self.surfaces))
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)
        return f"<Results of '{self.run['recipe']['name']}' on '{self.run['dataset']}', {self.state}: {self.url}\n {listed}>"

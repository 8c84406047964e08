"""How a column of a table is written in a figure: its title, its unit and the factor to it, from the column's name."""

from __future__ import annotations

from dataclasses import dataclass

from vemray.analysis.sentences import title

#: ending of a column's name -> (unit shown, factor)
_ENDINGS = (
    ("_per_nm3", "1/µm³", 1e9),
    ("_per_nm2", "1/µm²", 1e6),
    ("_per_nm", "1/µm", 1e3),
    ("_per_um3", "1/µm³", 1.0),
    ("_per_um2", "1/µm²", 1.0),
    ("_per_um", "1/µm", 1.0),
    ("_nm3", "µm³", 1e-9),
    ("_nm2", "µm²", 1e-6),
    ("_nm", "µm", 1e-3),
    ("_um3", "µm³", 1.0),
    ("_um2", "µm²", 1.0),
    ("_um", "µm", 1.0),
    ("_percent", "%", 1.0),
)


@dataclass(frozen=True)
class Quantity:
    title: str
    unit: str = ""
    factor: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


def quantity(column: str, name: str | None = None) -> Quantity:
    """'surface_to_volume_per_nm' -> surface to volume (1/µm), times 1000. `name`: the title, instead of what the column's name gives."""
    for ending, unit, factor in _ENDINGS:
        if column.endswith(ending) or (column == ending[1:] and column.startswith("per")):
            return Quantity(name or title(column[: -len(ending)], ending[1:]), unit, factor)
    return Quantity(name or title(column, ""))

"""Every error vemray raises on purpose. Each message says what, where, and what to do.

VemrayError
├── InputError            the user's data or parameters cannot be used as they are
│   ├── RecipeError       a recipe, a --set, an unknown step or key
│   ├── VolumeError       a volume that is missing, truncated, of the wrong type, or without voxel size
│   └── ModelError        a model file that cannot be read or does not fit the data
├── PlanError             the plan cannot fit (memory, disk), said with numbers before anything runs
├── StorageError          unreachable bucket, wrong credentials, full disk: infrastructure, may be retried
├── BusyError             another run holds this output
├── BlockError            an operator failed on a block: names step, block and url; stops the run
├── InterruptedRun        stopped by the user; resumes where it was
└── MissingExtra          an optional dependency is not installed
"""

from __future__ import annotations


class VemrayError(Exception):
    """Root of the tree. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(VemrayError):
    exit_code = 2


class RecipeError(InputError):
    pass


class VolumeError(InputError):
    pass


class ModelError(InputError):
    pass


class PlanError(VemrayError):
    exit_code = 3


class StorageError(VemrayError):
    exit_code = 4


class BusyError(VemrayError):
    exit_code = 5


class BlockError(VemrayError):
    exit_code = 6


class InterruptedRun(VemrayError):
    exit_code = 130


class MissingExtra(VemrayError):
    exit_code = 2

    def __init__(self, package: str, extra: str, why: str):
        super().__init__(f"{why} needs the package '{package}', which is not installed. Install it with: pip install 'vemray[{extra}]'")
        self._given = (package, extra, why)

    def __reduce__(self):  # it crosses processes
        return type(self), self._given


def nearest(word: str, words) -> str:
    """' Did you mean X?' for the closest of `words`, else ''."""
    import difflib

    close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1)
    return f" Did you mean '{close[0]}'?" if close else ""

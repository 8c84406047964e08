"""The small driver's face: parse, call, print. Every command is a call that Python can make too."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vemray.cli import data, profiles, results  # noqa: F401  each registers its commands, in this order
from vemray.cli.options import app, register_operators, say  # noqa: F401
from vemray.errors import VemrayError


def version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"vemray {version('vemray')}")
        raise typer.Exit


@app.callback()
def all_commands(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=version, is_eager=True)] = False,
) -> None:
    pass


def main() -> None:
    import warnings

    warnings.showwarning = lambda message, *where, **more: sys.stderr.write(f"vemray: warning: {message}\n")
    try:
        code = app(standalone_mode=False) or 0  # typer.Exit comes back as its code
        sys.stdout.flush()
    except VemrayError as e:
        code = _stop(str(e), e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _stop("stopped", 130)
    except typer.BadParameter.__mro__[2] as e:  # click's base of usage errors, which typer does not export
        context = getattr(e, "ctx", None)
        text = e.format_message().rstrip(". ")  # '' after the help that a bare `vemray` shows
        code = _stop(text + (f". See `{context.command_path} --help`." if context else "."), 2) if text else 2
    except BrokenPipeError:  # `vemray ops | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as e:
        code = _stop(_internal(e), 70)
    sys.exit(code)


def _stop(text: str, code: int) -> int:
    sys.stderr.write(f"vemray: {text}\n")
    return code


def _internal(error: Exception) -> str:
    """One line about a mistake of ours; the traceback goes to a file, and to the screen with VEMRAY_DEBUG=1."""
    import tempfile
    import traceback

    trace = "".join(traceback.format_exception(error))
    if os.environ.get("VEMRAY_DEBUG", "0") not in ("", "0"):
        sys.stderr.write(trace)
    what = f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="vemray-error-", suffix=".txt", delete=False) as f:
            f.write(f"vemray {' '.join(sys.argv[1:])}\n\n{trace}")
    except OSError:
        return f"{what}. This is a mistake in vemray: please report it, with what VEMRAY_DEBUG=1 shows."
    return f"{what}. This is a mistake in vemray: please report it with {f.name}, which says where it happened."

"""`hwaga`: the commands put together, and what becomes of their errors.

Exit status: 0 done; 1 a failure while working; 2 bad input (one sentence on stderr, nothing written); 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

import typer

from ..errors import HwagaError, Interrupted
from . import compare, control, convert, curve, data, demo, evaluate, lab, sample, systems, train

TRACEBACK = "HWAGA_TRACEBACK"

app = typer.Typer(
    name="hwaga",
    help="Train, sample, edit and measure generative image models side by side.",
    epilog="Start with: hwaga demo   (looks at data, paints, trains for two minutes, ends in a report)",
    add_completion=False,
    no_args_is_help=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"hwaga {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("systems")(systems.systems)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("sample")(sample.sample)
app.command("control")(control.control)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("curve")(curve.curve)
app.command("convert")(convert.convert)
app.command("lab")(lab.lab)
app.command("demo")(demo.demo)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name) and returns its exit status; errors become one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _warn
        return _run(arguments)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning is one line, as an error is, without the place in the source."""
    print(f"hwaga: note: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status = typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="hwaga", standalone_mode=False
        )
    except Interrupted as error:
        return _say(error, 130)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except HwagaError as error:
        return _say(error, error.exit_status)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        return _say(f"no memory left ({_line(error) or 'while working'}); try a smaller batch or size", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's errors of usage, whichever copy of click typer uses
            return _say(_usage(error), 2)
        told = f"{type(error).__name__}: {_line(error)}" if str(error) else type(error).__name__
        return _say(f"an error that was not foreseen: {told}; {TRACEBACK}=1 in the environment shows where", 1)
    if status == 130:  # typer makes an exit of Ctrl-C by itself
        return _say("interrupted", 130)
    return status if isinstance(status, int) else 0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _say(what: BaseException | str, status: int) -> int:
    """One sentence on stderr; the traceback before it where it is asked for."""
    if os.environ.get(TRACEBACK, "") not in ("", "0") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    sentence = what if isinstance(what, str) else _line(what)
    print(f"hwaga: {sentence}", file=sys.stderr, flush=True)
    return status


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "hwaga")
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; `{command} --help` lists what there is"


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()

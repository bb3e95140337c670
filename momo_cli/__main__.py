"""The entry point: the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    _end_as_by_ctrl_c()
    _keep_streams()
    code = run(sys.argv[1:] if arguments is None else arguments)
    if "torch" in sys.modules:
        from momo_cli import processes

        processes.leave()
        # Everything is stored and written by now, and taking torch's modules apart would cost a second.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None where it never was open
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong, 130 interrupted."""
    try:
        from momo_cli.commands import app
        from momo_cli.errors import UserError, printable
        from momo_cli.store import unstored
        from momo_cli.user_code import UserCodeError
    except KeyboardInterrupt:
        return 130

    unstored.written.clear()
    try:
        code = app(arguments, prog_name="momo", standalone_mode=False)
        return code if isinstance(code, int) and code else int(bool(unstored.written))
    except UserError as error:
        print(f"momo: {printable(str(error))}", file=sys.stderr)
        return error.code
    except UserCodeError as error:
        print(f"{error.frames}\nmomo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # Typer's answer to a reader of stdout that has left
            return 1
        print(f"momo: the task's code ended the program: sys.exit({left.code!r}).", file=sys.stderr)
        return 2
    except BaseException as error:
        if hasattr(error, "format_message"):  # Typer's own: a wrong option, a missing argument
            return _usage(error)
        if os.environ.get("MOMO_DEBUG"):
            raise
        print(
            f"momo: a fault of momo's own, {type(error).__name__}: {error}\n"
            "What finished is stored. MOMO_DEBUG=1 before the command shows where; please report it.",
            file=sys.stderr,
        )
        return 1


class _Kept(io.TextIOWrapper):
    """A standard stream that the user's code can't close, so that the command can still say what became of it."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
        self._stream = stream  # which would close the buffer as it goes

    def close(self) -> None:
        self.flush()


def _keep_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            setattr(sys, name, _Kept(stream))


def _end_as_by_ctrl_c() -> None:
    """Have SIGTERM and SIGHUP interrupt, unless whoever started the command has them ignored, as nohup does."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _usage(error: BaseException) -> int:
    message = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if not message:  # no_args_is_help has printed the help
        return 2
    path = context.command_path if context is not None else "momo"
    print(f"{path}: {message}\nSee {path} --help.", file=sys.stderr)
    return getattr(error, "exit_code", 2)


if __name__ == "__main__":
    main()

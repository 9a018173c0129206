"""``python -m windlass run -n 4 script.py``: windlass's command, with this interpreter for scripts."""

import os
import shutil
import sys
import sysconfig


def launcher() -> "str | None":
    """The executable ``windlass``: named by WINDLASS_LAUNCHER, installed with this package, or on the path."""
    named = os.environ.get("WINDLASS_LAUNCHER")
    installed = os.path.join(sysconfig.get_path("scripts"), "windlass")
    for candidate in (named, installed):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return shutil.which("windlass")


def with_interpreter(arguments: "list[str]") -> "list[str]":
    """Puts this interpreter before the program of ``run`` if that is a Python script."""
    if not arguments or arguments[0] != "run":
        return arguments
    takes_value = False
    for place, argument in enumerate(arguments[1:], 1):
        if takes_value:
            takes_value = False
        elif argument == "--":
            place += 1
            break
        elif argument.startswith("-"):
            # Each flag of `run` but --help takes a value, in its own argument (-n 4), or in the same (-n4, --ranks=4).
            takes_value = argument != "--help" and ("=" not in argument if argument.startswith("--") else len(argument) == 2)
        else:
            break
    else:
        return arguments
    if not arguments[place:] or not arguments[place].endswith(".py"):
        return arguments
    return [*arguments[:place], sys.executable, *arguments[place:]]


def main() -> None:
    path = launcher()
    if path is None:
        sys.exit(
            "windlass: the launcher was not found: neither beside this interpreter nor on PATH. Build it (cargo build --release -p"
            " windlass-launcher) and set WINDLASS_LAUNCHER to target/release/windlass"
        )
    os.execv(path, ["windlass", *with_interpreter(sys.argv[1:])])


if __name__ == "__main__":
    main()

"""Jobs of real ranks, started by the launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAUNCHER = os.environ.get("WINDLASS_LAUNCHER", "windlass")


@pytest.fixture
def job():
    """Runs a program on so many ranks; fails unless it ends with `status`. Returns what it wrote."""

    def run(ranks, program, *arguments, status=0, timeout=60, **environment):
        command = [LAUNCHER, "run", "-n", str(ranks), "--output", "plain", "--timeout", str(timeout), "--"]
        ended = subprocess.run(
            [*command, sys.executable, str(HERE / program), *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout + 20,
        )
        assert ended.returncode == status, f"{program} ended with {ended.returncode}:\n{ended.stdout}"
        return ended.stdout

    return run


def pytest_terminal_summary(terminalreporter):
    """The house's line for a test that cannot do its work here."""
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        terminalreporter.write_line(f"skipped: {report.nodeid}, because {reason}")

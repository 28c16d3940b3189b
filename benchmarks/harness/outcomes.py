"""A pytest plugin that writes what became of each test into a file as it happens, so that a run cut short leaves what it did:

    python -m pytest -p benchmarks.harness.outcomes --outcomes FILE …

The file maps each test to "not run", "running", "passed", or to "failed" or "skipped", a colon and why.
"""

from pathlib import Path

from proof.record import write_json


def pytest_addoption(parser):
    parser.addoption("--outcomes", type=Path, required=True, help="write what became of each test into this JSON file")


def pytest_configure(config):
    config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


class Outcomes:
    """What became of each test, by its name: "not run", "running", "passed", "failed: …" or "skipped: …"."""

    def __init__(self, file: Path):
        self.file, self.tests = file, {}

    def pytest_collectreport(self, report):
        if report.failed:
            self._record(report.nodeid, f"failed: not collected: {_last_line(report.longreprtext)}")
        elif report.skipped:
            self._record(report.nodeid, _skipped(report))

    def pytest_collection_finish(self, session):
        self.tests |= {item.nodeid: "not run" for item in session.items}
        write_json(self.file, self.tests)

    def pytest_runtest_logstart(self, nodeid):
        self._record(nodeid, "running")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self._record(report.nodeid, f"failed: {_first_line(crash.message if crash else report.longreprtext)}")
        elif report.skipped:
            self._record(report.nodeid, _skipped(report))
        elif report.when == "call":
            self._record(report.nodeid, "passed")

    def _record(self, test: str, outcome: str) -> None:
        self.tests[test] = outcome
        write_json(self.file, self.tests)


def _skipped(report) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
    return f"skipped: {_first_line(reason).removeprefix('Skipped: ')}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]

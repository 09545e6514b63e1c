"""What may be skipped in CI: what the machine cannot do, not what was forgotten to install or to bring along."""

import re
from typing import Any, Final

import pytest

ALLOWED: Final = (
    r"there is no `ip` command",
    r"network namespaces are not allowed",
)
"""Patterns at the start of a reason. Two hosts are two network namespaces, which not every container may make."""


class SkipGuard:
    """Pytest plugin that lists the tests that were skipped for another reason, and makes the run fail.

    Attributes:
        unexpected: ``<test>: <reason>`` of each of them.
    """

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    def _look_at(self, report: Any) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(re.match(pattern, reason) for pattern in ALLOWED):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skipped for a reason that tests/skips.py does not allow", red=True)
            for line in self.unexpected:
                terminalreporter.write_line(line)

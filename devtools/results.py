"""The sums of several pytest runs, from the JUnit files that they wrote."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Counts(NamedTuple):
    passed: int
    failed: int
    skipped: int

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def read_counts(junit: Path) -> Counts:
    """What one run counted. A run that died before it wrote anything counts as one failure."""
    if not junit.exists():
        return Counts(0, 1, 0)
    cases = list(ElementTree.parse(junit).iter("testcase"))
    # A test that fails and whose teardown fails, too, is one failed test.
    failed = sum(_has(case, "failure", "error") for case in cases)
    skipped = sum(_has(case, "skipped") and not _has(case, "failure", "error") for case in cases)
    return Counts(len(cases) - failed - skipped, failed, skipped)


def _has(case: ElementTree.Element, *tags: str) -> bool:
    return any(case.find(tag) is not None for tag in tags)


def total(runs: Iterable[Counts]) -> Counts:
    return Counts(*map(sum, zip(*runs, strict=True)))

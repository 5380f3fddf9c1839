"""The result of the gate as terminal text, Markdown, JUnit XML, and JSON."""

import re
import xml.etree.ElementTree as ET
from math import isfinite
from typing import Any

from rich.text import Text

from specbench.gate.rules import GateResult, Outcome
from specbench.util.terminal import Console
from specbench.util.text import escape, one_line

SCHEMA = 1
STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.INCONCLUSIVE: "yellow", Outcome.NOT_APPLICABLE: "dim"}
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def show(result: GateResult, console: Console) -> None:
    """Print one line per check, then the warnings, then the verdict."""
    for check in result.checks:
        line = Text.assemble(
            (f"{check.outcome:<14}", STYLES[check.outcome]), " ", (one_line(check.name), "bold"), ": ", one_line(check.evidence)
        )
        console.print(line, soft_wrap=True)
    for warning in result.warnings:
        console.print(one_line(f"warning: {warning}"), markup=False, soft_wrap=True)
    verdict = f"{result.outcome}: {result.new} against {result.base}"
    console.print(Text(one_line(verdict), STYLES[result.outcome]), soft_wrap=True)


def markdown(result: GateResult) -> str:
    """Return Markdown for a CI step summary, with names and evidence escaped."""
    rows = [f"| {check.outcome} | {escape(check.name)} | {escape(check.evidence)} |" for check in result.checks]
    warnings = [f"- {escape(warning)}" for warning in result.warnings]
    table = "\n".join(["| Outcome | Check | Evidence |", "| --- | --- | --- |", *rows])
    heading = f"## specbench check: {result.outcome}"
    parts = [heading, f"{escape(result.new)} against {escape(result.base)}.", table, *(["\n".join(warnings)] if warnings else [])]
    return "\n\n".join(parts) + "\n"


def junit(result: GateResult) -> str:
    """Return JUnit XML with one test case per check: a failure if it fails, skipped if inconclusive or not applicable.

    JUnit has no third outcome. The message of a skipped case begins with its outcome, and the suite's property
    ``outcome`` holds the gate's outcome.
    """
    count = [check.outcome for check in result.checks].count
    skipped = count(Outcome.INCONCLUSIVE) + count(Outcome.NOT_APPLICABLE)
    totals = {"tests": str(len(result.checks)), "failures": str(count(Outcome.FAIL)), "errors": "0", "skipped": str(skipped)}
    suite = ET.Element("testsuite", {"name": "specbench check", **totals})
    properties = ET.SubElement(suite, "properties")
    for name, value in {"outcome": str(result.outcome), "new": result.new, "base": result.base}.items():
        ET.SubElement(properties, "property", {"name": name, "value": _xml(value)})
    for check in result.checks:
        case = ET.SubElement(suite, "testcase", {"classname": "specbench.check", "name": _xml(check.name)})
        if check.outcome is Outcome.PASS:
            ET.SubElement(case, "system-out").text = _xml(check.evidence)
        elif check.outcome is Outcome.FAIL:
            ET.SubElement(case, "failure", {"message": _xml(check.evidence)})
        else:
            ET.SubElement(case, "skipped", {"message": _xml(f"{check.outcome}: {check.evidence}")})
    ET.indent(suite)
    return ET.tostring(suite, encoding="utf-8", xml_declaration=True).decode() + "\n"


def to_json(result: GateResult) -> dict[str, Any]:
    """Return the result as JSON stores it, with a schema version. A number that cannot be formed is null."""
    checks = [
        {
            "name": check.name,
            "outcome": check.outcome,
            "evidence": check.evidence,
            "numbers": {name: value if isfinite(value) else None for name, value in check.numbers.items()},
        }
        for check in result.checks
    ]
    run = {"outcome": result.outcome, "exit_code": result.exit_code, "new": result.new, "base": result.base}
    return {"schema": SCHEMA, **run, "checks": checks, "warnings": result.warnings}


def _xml(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)

"""The reference target of a run: its target, loaded again in fp32 to judge differing outputs."""

from dataclasses import replace

from methods.core.errors import UserError
from specbench.config.arm import BASELINE
from specbench.lossless.differences import REFERENCE_DTYPE
from specbench.measure.resolve import suite_of
from specbench.measure.session import Session, prepare
from specbench.store.manifest import RunManifest


def load_reference_target(manifest: RunManifest) -> Session:
    """Load the run's target without drafters, in fp32, on this machine's device.

    Raises UserError if the target or the suite is missing or is not the run's.
    """
    _check_same("suite", manifest.suite.sha256, _suite_sha256(manifest))
    vanilla_only = replace(
        manifest.settings,
        dtype=REFERENCE_DTYPE,
        device="",
        methods=[BASELINE],
        aa=None,
        overrides=[],
        drafters={},
        tuned=None,
        base_url=None,
    )
    session = prepare(vanilla_only)
    _check_same("target", str(manifest.target.weights_sha256), str(session.manifest.target.weights_sha256))
    return session


def _check_same(what: str, then: str, now: str) -> None:
    if then != now:
        raise UserError(f"the {what} of the run (sha256 {then[:12]}) is not the one here ({now[:12]}); restore it to judge divergences")


def _suite_sha256(manifest: RunManifest) -> str:
    """Return the checksum of the local suite.

    Replaces the hint in ``suites.load`` errors: it suggests a `run` option, useless for an existing run.
    """
    file = manifest.settings.suite_file
    try:
        return suite_of(replace(manifest.settings, limit=None, categories=[])).sha256
    except UserError as error:
        reason, _, advice = str(error).rpartition("; ")
        if file:
            advice = f"put the run's questions back at {file}, where its manifest has them"
        elif manifest.suite.name == "spec-bench":
            advice = "set SPECBENCH_DATA to a folder that holds an unchanged spec_bench/question.jsonl"
        raise UserError(f"{reason}; {advice}") from None

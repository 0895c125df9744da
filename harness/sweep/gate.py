"""No time without a green check of the same code on the same class of device. Standard library only."""

from typing import Any

from harness.check.report import KIT_VERSION, report_from_facts
from harness.errors import HarnessError, RecordError
from harness.store import Store, StoredRecord


def gates(store: Store, keys: tuple[str, ...], device_class: str) -> list[dict[str, Any]]:
    """Returns what a time says of the checks it rests on; none, or one that is missing, broken or stale, raises."""
    if not keys:
        raise RecordError("this trial names no check; plan it with harness run, harness time or harness compare")
    return [gate(store, key, device_class) for key in keys]


def gate(store: Store, key: str, device_class: str) -> dict[str, Any]:
    """Returns what a time says of one check it rests on."""
    stored = store.find(key)
    if stored is None:
        raise RecordError(f"the check record {key[:10]} is missing from {store.root}; run the same command again")
    record, report = stored.record, report_from_facts(stored.record.facts)
    if record.status != "ok" or not report.green or report.kit_version != KIT_VERSION:
        why = record.reason or ", ".join(finding.promise for finding in report.broken) or "an older kit checked it"
        raise HarnessError(f"not timed: {record.mixer} has no green check ({why}); see harness check {record.mixer}")
    if record.environment.get("class") != device_class:
        raise HarnessError(
            f"not timed: the check of {record.mixer} was made on another class of device; "
            f"make it here: harness check {record.mixer} --again"
        )
    errors = {f.promise: f.detail for f in report.findings if f.promise in ("reference", "gradients")}
    return {
        "mixer": record.mixer,
        "check": record.key,
        "green": report.green,
        "class": device_class,
        "code_sha256": record.plugin.get("code_sha256"),
        "kit_version": report.kit_version,
        "errors": errors,
    }


def refusal(stored: StoredRecord) -> str | None:
    """Returns why a mixer with this check is not timed, and the command that shows more; None where it may be."""
    record = stored.record
    if record.status != "ok":
        return f"{record.mixer} is not timed: its check failed: {record.reason}; see harness check {record.mixer}"
    report = report_from_facts(record.facts)
    if report.green:
        return None
    first, *others = report.broken
    more = f" and {len(others)} more" if others else ""
    broken = f"{first.promise} ({first.detail}){more}"
    return f"{record.mixer} is not timed: it breaks {broken}; see harness check {record.mixer}"

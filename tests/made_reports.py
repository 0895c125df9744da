"""Check records as `harness check` would write them."""

from harness.check.promise import Finding
from harness.check.report import CheckReport
from harness.config import RunConfig, to_json
from harness.record import CHECK, CONTRACT, Record
from harness.sweep.plan import check_trial
from harness.timing.device import device_facts


def checked(store, registry, mixer, broken=(), **changes):
    """Writes the check record of a mixer as `harness check` would: green, or with promises broken."""
    choice = registry.mixer(mixer)
    verdicts = {"causality": "kept", "reference": "kept"} | dict.fromkeys(broken, "broken")
    fields = {
        "key": check_trial(registry, choice, "cpu").key,
        "kind": CHECK,
        "mixer": str(choice),
        "task": CONTRACT,
        "suite": CONTRACT,
        "suite_key": "",
        "config": to_json(RunConfig(task=CONTRACT)),
        "plugin": {"code_sha256": registry.origin(registry.spec(choice)).code_sha256()},
        "environment": device_facts("cpu"),
        "facts": CheckReport(tuple(Finding(name, verdict, "as seen") for name, verdict in verdicts.items())).to_facts(),
    }
    return store.write(Record(**(fields | changes)), {})

"""Installed plugins made of a few files each: what pip would leave in site-packages, without pip."""

import textwrap
from pathlib import Path

HEAD = "from harness import MixerSpec, hookimpl\n"
SPEC = "MixerSpec(name='{name}', summary='s', source='here', build=print)"
GOOD = HEAD + "@hookimpl\ndef harness_mixers():\n    yield " + SPEC + "\n"
HOOK = HEAD + "@hookimpl\ndef harness_mixers():\n    "

BROKEN = {  # what is wrong -> (source of the module, words of the cause)
    "an import that is not there": ("import nothing_of_that_name\n", "No module named 'nothing_of_that_name'"),
    "sys.exit on import": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "a wrong hook signature": (HEAD + "@hookimpl\ndef harness_mixers(config):\n    return []\n", "config"),
    "a misspelt hook": (HEAD + "@hookimpl\ndef harness_mixer():\n    return []\n", "did you mean 'harness_mixers'?"),
    "a hook that raises": (HOOK + "raise ValueError('no luck')\n", "ValueError: no luck"),
    "a hook that returns one spec": (HOOK + "return " + SPEC + "\n", "expected an iterable of MixerSpec"),
    "a generator that raises half-way": (HOOK + "yield " + SPEC + "\n    raise KeyError('later')\n", "KeyError"),
    "a field that does not exist": (HOOK + "yield MixerSpec(nam='x')\n", "unexpected keyword argument 'nam'"),
    "a field of a wrong type": (
        HOOK + "yield MixerSpec(name='x', summary='s', source='here', build=print, dtypes=['float32'])\n",
        "dtypes must be a tuple",
    ),
    "one name twice": (HOOK + "yield " + SPEC + "\n    yield " + SPEC + "\n", "twice"),
    "a hook without its mark": (HEAD + "def harness_mixers():\n    return []\n", "@hookimpl"),
    "a hook that returns nothing": (HOOK + "pass\n", "returned None"),
    "something that is no spec": (HOOK + "return [3]\n", "expected a MixerSpec"),
    "no hook at all": ("x = 1\n", "no hook in it"),
    "a syntax error": ("def broken(:\n", "SyntaxError"),
}


def install(
    site: Path,
    distribution: str,
    module: str,
    source: str,
    *,
    version: str = "1.0",
    requires: str = "",
    entry: str = "",
) -> None:
    """Writes a distribution with one module and one entry point into a folder of sys.path."""
    site.mkdir(parents=True, exist_ok=True)
    (site / f"{module}.py").write_text(textwrap.dedent(source))
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{needs}")
    (info / "entry_points.txt").write_text(f"[mixer_harness]\n{entry or module} = {module}\n")


def install_good(site: Path, number: int) -> str:
    """Installs a working plugin and returns the name of its mixer."""
    name = f"good_{number}"
    install(site, f"good-{number}", f"{name}_plugin", GOOD.format(name=name), requires="mixer-harness>=0.1,<0.2")
    return name


def install_fifty(site: Path) -> tuple[list[str], list[str]]:
    """Installs 40 working and 10 broken plugins, each broken in a way of its own; returns mixers and the broken."""
    mixers = [install_good(site, number) for number in range(40)]
    broken = []
    for number, (source, _) in enumerate(list(BROKEN.values())[:9]):
        broken.append(f"bad-{number} 2.{number}")
        install(site, f"bad-{number}", f"bad_{number}", source.format(name=f"bad_{number}"), version=f"2.{number}")
    broken.append("bad-range 3.0")
    source = GOOD.format(name="bad_range")
    install(site, "bad-range", "bad_range", source, version="3.0", requires="mixer-harness>=7,<8")
    return mixers, broken

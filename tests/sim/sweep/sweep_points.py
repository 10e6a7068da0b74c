"""Functions that stand in for a simulation in tests of sweeps: apart, so that worker processes import little else."""

import os
import signal
from pathlib import Path
from typing import Any


def mixed(scenario: dict[str, Any], seed: int) -> dict[str, Any]:
    """Results of every kind, some missing, some points failing."""
    x = scenario["x"]
    if x % 5 == 3:
        raise ValueError(f"x must not be\n  {x}")
    number: Any = x if x % 2 else x + 0.5
    result = {"whole": x * 10, "number": number, "anything": number if x % 3 else "three", "even": x % 2 == 0}
    return result | ({"seldom": "here"} if x == 6 else {}) | {"seed": seed, "x": -x}


def counted(scenario: dict[str, Any], seed: int) -> dict[str, Any]:
    """Write down in a folder that the point ran; fail where x is in the folder's list of failures."""
    folder = Path(scenario["folder"])
    with (folder / "runs").open("a") as runs:
        runs.write(f"{scenario['x']}\n")
    if str(scenario["x"]) in (folder / "failures").read_text().split():
        raise KeyError(scenario["x"])
    return {"y": scenario["x"] ** 2, "z": scenario.get("z", 1)}


def deadly(scenario: dict[str, Any], seed: int) -> dict[str, Any]:
    """Take the process along at one point, while a file says so."""
    if scenario["x"] == 20 and (Path(scenario["folder"]) / "deadly").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return counted(scenario, seed)


def first_line(scenario: dict[str, Any], seed: int) -> dict[str, Any]:
    """Read the file that the scenario names."""
    return {"line": Path(scenario["trace"]).read_text()}


def other(scenario: dict[str, Any], seed: int) -> dict[str, Any]:
    """Give no results."""
    return {}

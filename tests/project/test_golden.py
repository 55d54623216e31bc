"""Results change with the version of their stage, never without: else work of the old code would be kept as new."""

import copy
from typing import Any

import pytest
from golden_values import CONSTANTS, FILE, compute, faults
from sources import ROOT

from cache.files import read_json


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compute(tmp_path_factory.mktemp("golden"))


def test_each_stage_s_results_are_those_of_its_version(found: dict[str, Any]):
    assert "\n".join(faults(found, read_json(FILE))) == ""


def test_it_is_quick_to_see_a_change(found: dict[str, Any]):
    """Planted: a number, a text, a row less, in each stage; and what the machine's rounding does is none."""
    assert faults(found, copy.deepcopy(found)) == []
    plants = {
        "prepare": lambda values: values[1].update(rms=values[1]["rms"] * 1.01),
        "teacher_cache": lambda values: values[0].update(mean_log_prob=values[0]["mean_log_prob"] + 0.01),
        "train_student": lambda values: values["lora"][2].update(loss=values["lora"][2]["loss"] * 0.99),
        "evaluate": lambda values: values["rows"].pop(),
    }
    for stage, plant in plants.items():
        golden = copy.deepcopy(found)
        plant(golden[stage]["values"])
        (said,) = faults(found, golden)
        assert "results changed" in said and f"raise {CONSTANTS[stage][0]} in stages/{stage}/run.py" in said
    rounded = copy.deepcopy(found)
    rounded["train_student"]["values"]["full"][0]["loss"] *= 1 + 1e-6
    assert faults(found, rounded) == []


def test_a_raised_version_asks_for_new_values(found: dict[str, Any]):
    golden = copy.deepcopy(found)
    golden["evaluate"]["version"] -= 1
    (said,) = faults(found, golden)
    assert "EVALUATE_VERSION is" in said and "python tests/support/golden_values.py" in said


def test_the_constants_lie_where_they_are_said_to():
    for stage, (constant, version) in CONSTANTS.items():
        text = (ROOT / f"stages/{stage}/run.py").read_text(encoding="utf-8")
        assert f"\n{constant} = {version}\n" in text

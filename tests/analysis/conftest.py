"""One synthetic run, calibrated, predicted and compared once for all tests that only read it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.compare import compare, measured
from analysis.fit import Calibration, calibrate
from analysis.predict import design_of, predict
from tests.analysis.synthetic import Truth, make_run

TRUTH = Truth()


@pytest.fixture(scope="session")
def run() -> tuple[pd.DataFrame, pd.DataFrame]:
    return make_run(np.random.default_rng(0), TRUTH)


@pytest.fixture(scope="session")
def calibration(run: tuple[pd.DataFrame, pd.DataFrame]) -> Calibration:
    return calibrate(*run)


@pytest.fixture(scope="session")
def predictions(run: tuple[pd.DataFrame, pd.DataFrame], calibration: Calibration) -> pd.DataFrame:
    return predict(calibration, design_of(run[0], TRUTH.max_new_tokens))


@pytest.fixture(scope="session")
def comparison(run: tuple[pd.DataFrame, pd.DataFrame], predictions: pd.DataFrame) -> pd.DataFrame:
    return compare(predictions, measured(run[0]))

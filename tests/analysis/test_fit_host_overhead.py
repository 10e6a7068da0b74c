import numpy as np
import pytest

from analysis.fit.host_overhead import eager_overhead, host_us_per_layer


def test_eager_forwards_need_only_the_hosts_time_per_layer() -> None:
    series = eager_overhead().set_index("series")
    assert len(series) == 5
    assert (series["held_out"] < 12).all()
    assert (series["held_out_to_128"] < 8).all()
    assert series["held_out_to_128"].mean() < 5
    assert series["host_us_per_layer"].between(150, 500).all()


def test_the_hosts_time_is_recovered_where_it_is_all_that_differs() -> None:
    on_device = np.array([1e-4, 2e-4, 9e-4])
    assert host_us_per_layer(on_device, on_device + 321e-6) == pytest.approx(321, rel=1e-6)

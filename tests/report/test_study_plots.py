import io

import numpy as np
import pytest
from PIL import Image

from vemray.errors import InputError
from vemray.report import study_plots


def test_the_line_is_that_of_scipy():
    from scipy.stats import linregress

    rng = np.random.default_rng(0)
    x = rng.random(50)
    y = 3 - 2 * x + rng.normal(0, 0.3, 50)
    at, line, half = study_plots.regression(x, y)
    fit = linregress(x, y)
    assert line == pytest.approx(fit.intercept + fit.slope * at)
    # at x = 0 the band is that of the intercept
    _, _, wide = study_plots.regression(np.append(x, 0.0), np.append(y, fit.intercept))
    more = linregress(np.append(x, 0.0), np.append(y, fit.intercept))
    from scipy.stats import t

    assert wide[0] == pytest.approx(t.ppf(0.975, 49) * more.intercept_stderr)
    assert (half > 0).all()


def test_every_plot_is_drawn_with_its_words():
    rng = np.random.default_rng(1)
    x, y = rng.gamma(3, 800, 200), rng.normal(0.02, 0.003, 200)
    svg = {
        "scatter": study_plots.scatter(x, y, "distance_nm", "surface_to_volume_per_nm", "r = 0.1", form="svg"),
        "groups": study_plots.groups({"smaller lobe": x[:50], "larger lobe": x[50:]}, "volume_nm3", "p = 0.3", form="svg"),
        "distribution": study_plots.distribution(y, "density_per_um2", form="svg"),
        "shares": study_plots.shares({"nucleus": 27.94, "mitochondria": 7.4}, form="svg"),
        "composition": study_plots.composition({"nucleus": 28.0, "mitochondria": 7.4}, form="svg"),
    }
    words = {
        "scatter": ["r = 0.1", "n = 200", "distance (µm)", "surface to volume (1/µm)"], "groups": ["smaller lobe", "n = 50", "n = 150", "p = 0.3"],
        "distribution": ["density (1/µm²)", "median", "objects"], "shares": ["27.9 %", "7.4 %", "% of cell volume"],
        "composition": ["other  64.6 %", "nucleus  28 %"],
    }  # fmt: skip
    for name, found in words.items():
        for word in found:
            assert word in svg[name].decode(), f"{name}: {word}"
    assert svg["groups"] == study_plots.groups({"smaller lobe": x[:50], "larger lobe": x[50:]}, "volume_nm3", "p = 0.3", form="svg")


def test_few_or_no_values_are_drawn_too():
    nothing = [np.nan]
    for picture in (
        study_plots.scatter(nothing, nothing, "a_nm", "b"), study_plots.scatter([1, 1, 1], [1, 2, 3], "a", "b"),
        study_plots.groups({"a": [], "b": [1.0]}, "x"), study_plots.distribution([], "x"),
    ):  # fmt: skip
        assert min(Image.open(io.BytesIO(picture)).size) > 300


def test_more_than_the_whole_is_refused():
    with pytest.raises(InputError, match="not 130 %"):
        study_plots.composition({"a": 70.0, "b": 60.0})
    with pytest.raises(InputError, match="png, svg or pdf"):
        study_plots.shares({"a": 1.0}, form="bmp")

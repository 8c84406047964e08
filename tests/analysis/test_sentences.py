"""What is said follows from the numbers: direction, no effect, spatial dependence, units."""

import pytest

from vemray.analysis import sentences as se

CORRELATION = {
    "by": None, "x": "to_membrane_nm", "y": "surface_to_volume_per_nm", "objects": "mitochondria", "n": 312, "dropped": 0, "datasets": 1, "x_distinct": 312,
    "y_distinct": 312, "spearman_rho": -0.412, "spearman_p": 3.2e-14, "spearman_low": -0.498, "spearman_high": -0.313, "spearman_p_spatial": 0.004,
}  # fmt: skip
GROUPS = {
    "by": None, "value": "number_density_per_um3", "group_a": "section = 1", "group_b": "section = 2", "objects": "pores", "n_a": 400, "n_b": 900, "dropped": 0,
    "datasets": 1, "ties": 0, "mean_a": 12.34, "mean_b": 9.87, "sd_a": 3.0, "sd_b": 2.5, "difference": 2.47, "difference_low": 2.1,
    "difference_high": 2.8, "welch_t": 14.6, "welch_p": 1e-40, "mann_whitney_p": 1e-38, "cohens_d": 0.93, "cliffs_delta": 0.5, "p_spatial": 0.03,
}  # fmt: skip
CELL = (
    "Objects of one cell are not independent replicates: p and intervals speak about this cell only. The replicate is the cell: for a statement "
    "about cells compare several data sets."
)


def correlation(**change):
    row = {**CORRELATION, **change}
    return se.correlation_sentence({**row, "warning": se.correlation_warning(row)})


def groups(**change):
    row = {**GROUPS, **change}
    return se.groups_sentence({**row, "warning": se.groups_warning(row)})


def test_a_correlation_in_full():
    assert correlation() == (
        "Among 312 mitochondria, surface to volume (per nm) fell with distance to membrane (nm) (Spearman rho = -0.41, 95 % CI -0.50 to -0.31, n = 312, "
        "p = 3.2e-14; permutation respecting spatial dependence p = 0.004). " + CELL
    )


@pytest.mark.parametrize(
    "change, said, not_said",
    [
        ({"spearman_rho": 0.412}, "surface to volume (per nm) rose with distance to membrane (nm)", "fell"),
        ({"spearman_p_spatial": 0.21}, "fell with distance to membrane (nm)", None),
        ({"spearman_p_spatial": 0.21}, "but not beyond what chance gives where near objects are alike (permutation", None),
        ({"spearman_p_spatial": None}, "p = 3.2e-14). Objects", "permutation"),
        ({"spearman_p": 0.3}, "no relation of surface to volume (per nm) with distance to membrane (nm) was found", "fell"),
        ({"spearman_p": 0.3, "spearman_p_spatial": 0.01}, "no relation", "fell"),
        ({"spearman_rho": 0.0, "spearman_p": 1.0}, "no relation", "rose"),
        ({"spearman_rho": -0.001, "spearman_p": 0.9}, "rho = 0.00", "-0.00"),
        ({"spearman_low": None}, "rho = -0.41, n = 312", "CI"),
        ({"spearman_p": 0.0}, "p = below 1e-300", None),
        ({"n": 5}, "There are only 5 objects", None),
        (
            {"n": 2, "spearman_rho": None},
            "no correlation of surface to volume (per nm) with distance to membrane (nm) can be computed: 3 or more",
            "fell",
        ),
        ({"n": 9, "spearman_rho": None, "y_distinct": 1}, "all have the same surface to volume (per nm)", "fell"),
        ({"x_distinct": 40}, "There are ties (distance to membrane (nm) has 40 distinct values)", None),
        ({"datasets": 6}, "come from 6 data sets", "this cell only"),
        ({"datasets": 312}, "fell", "replicate"),
        ({"dropped": 1}, "1 row without a value was left out.", None),
        ({"by": "section", "by_value": 2}, "Where section is 2, among 312 mitochondria,", None),
    ],
)
def test_correlations(change, said, not_said):
    got = correlation(**change)
    assert said in got and (not_said is None or not_said not in got)


def test_groups_in_full():
    assert groups() == (
        "Among 1300 pores, number density (per µm³) was higher in section = 1 (mean 12.3, sd 3, n = 400) than in section = 2 (mean 9.87, sd 2.5, n = 900): "
        "difference 2.47, 95 % CI 2.1 to 2.8; Welch t = 14.6, p = 1.0e-40; Mann-Whitney p = 1.0e-38; Cohen's d = 0.93, Cliff's delta = 0.5; "
        "permutation respecting spatial dependence p = 0.03. " + CELL
    )


@pytest.mark.parametrize(
    "change, said, not_said",
    [
        ({"difference": -2.47}, "was lower in section = 1", "higher"),
        ({"welch_p": 0.2}, "no difference of number density (per µm³) was found between section = 1", "higher"),
        ({"p_spatial": 0.4}, "; but not beyond what chance gives where near objects are alike", None),
        ({"p_spatial": None}, "Cliff's delta = 0.5. Objects", "permutation"),
        ({"welch_p": None, "n_b": 1, "sd_b": None}, "cannot be tested: each group needs two objects", "higher"),
        ({"difference": None, "n_a": 0}, "there are none in 'section = 1'.", "higher"),
        ({"sd_a": 6.0}, "differ by a factor of 2.4: read Welch's", None),
        ({"sd_a": 0.0}, "differ (one is 0): read Welch's", None),
        ({"ties": 3}, "normal approximation", None),
        ({"n_a": 4}, "There are only 4 and 900 objects", None),
    ],
)
def test_groups(change, said, not_said):
    got = groups(**change)
    assert said in got and (not_said is None or not_said not in got)


@pytest.mark.parametrize(
    "column, said",
    [
        ("surface_to_volume_per_nm", "surface to volume (per nm)"), ("volume_nm3", "volume (nm³)"), ("sphericity", "sphericity"),
        ("density_per_um3", "density (per µm³)"), ("log(volume_nm3)", "log(volume_nm3)"), ("nm", "nm"), ("euler_number", "euler number"),
        ("to_nucleus_nm", "distance to nucleus (nm)"), ("nearest_nm", "distance to the nearest (nm)"), ("to_section_label", "to section label"), ("per_um2", "number (per µm²)"),
    ],
)  # fmt: skip
def test_words(column, said):
    assert se.words(column) == said


def test_own_words_keep_the_unit():
    assert se.words("nearest_nm", "distance to the nearest membrane") == "distance to the nearest membrane (nm)"
    assert se.words("log(volume_nm3)", "log of the volume") == "log of the volume"
    assert "y of all rose with x of all (nm) (" in correlation(y="log(a)", y_name="y of all", x_name="x of all", spearman_rho=0.4)
    assert "was higher in the first section (mean 12.3, sd 3, n = 400) than in" in groups(group_a="the first section")


@pytest.mark.parametrize(
    "value, said", [(0, "0"), (0.0123456, "0.0123"), (-4.56789, "-4.57"), (12345.6, "12346"), (1.5e9, "1.50e+09"), (2e-7, "2.00e-07")]
)
def test_plain(value, said):
    assert se.plain(value) == said


def test_placement_in_words():
    row = {
        "statistic": "density_ratio",
        "observed": 0.62,
        "mean": 1.0,
        "low": 0.76,
        "high": 1.38,
        "p": 0.01,
        "simulations": 199,
        "objects": 176,
        "what": "pores",
    }
    row |= {"interval_low": 0.47, "interval_high": 0.80}
    names = ("the first section", "the second section")
    assert se.placement_sentence(row, names, 120.0) == (
        "Of 176 pores, the first section had 0.62 times as many per area as the second section (95 % interval 0.47 to 0.8); placed at random at least "
        "120 nm apart it is 0.76 to 1.38 times (p = 0.01, 199 placements): fewer than by chance."
    )
    assert "which chance alone gives as well" in se.placement_sentence({**row, "p": 0.2}, names, 0.0)
    near = {**row, "statistic": "mean_nearest_nm", "observed": 271.0, "mean": 233.0, "low": 222.0, "high": 244.0}
    assert se.placement_sentence(near, names, 0.0) == (
        "The nearest of the other 175 pores lay 271 nm away in the mean; placed at random it is 222 to 244 nm (p = 0.01, 199 placements): they lie "
        "farther apart than by chance."
    )
    assert se.placement_sentence({**near, "p": float("nan")}, names, 0.0) == ""
    assert se.placement_sentence({**near, "statistic": "ripley_l_nm"}, names, 0.0) == ""

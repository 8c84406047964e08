"""Statistics of tables of objects: a row of results for each question, with a warning and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vemray.analysis.correlation import correlate
from vemray.analysis.groups import compare_groups
from vemray.analysis.points import CENTRE
from vemray.ops.base import Analysis, Port, register
from vemray.ops.neighbourhood import example_objects
from vemray.ops.tables import Condition, Expression

TABLE = Port("table", ("table",), doc="of objects; for the test that respects spatial dependence with their positions")


def _example(rng):
    n = int(rng.integers(0, 60))
    return example_objects(rng, n).append_column("part", [rng.integers(0, 2, n)])


@register("correlate")
@dataclass(frozen=True)
class Correlate(Analysis):
    """Correlation of two columns, or expressions of columns, over objects: Pearson, Spearman, intervals, and a test that respects spatial dependence.

    Columns, one row, or one for each value of `by`: `by`, `by_value`, `x`, `y`, `x_name`, `y_name` (as given), `objects`; `n`; `dropped` (rows where x or y is missing or
    infinite); `datasets` (that the objects come from); `x_distinct`, `y_distinct` (values); `pearson_r`, `pearson_p`, and the interval of 95 % by
    Fisher's transformation `pearson_low`, `pearson_high`; `spearman_rho`, `spearman_p`, and the percentile bootstrap interval of 95 %
    `spearman_low`, `spearman_high`; `slope` and `intercept` of y on x by least squares; `pearson_p_spatial`, `spearman_p_spatial`,
    `spatial_objects`; `warning`; `sentence`. All p are two-sided. Empty where not defined: fewer than 3 objects, or all the same.

    The spatial p: neighbouring objects are alike, so n objects say less than n independent ones, and the plain p is too small. Here the observed
    correlation is compared with those of random fields that have the same values and nearly the same variogram (Viladomat et al. 2014, Biometrics
    70:409), made of x and of y; p = (1 + those at least as large) / (1 + permutations), the larger of both. It needs 10 objects with
    positions, of one data set; of more than 5000 objects a random subset."""

    serves = "step 9: correlation of distance with surface-to-volume ratio"
    ports = (TABLE,)

    x: Annotated[Expression, Field(description="column or expression")] = "volume_nm3"
    y: Annotated[Expression, Field(description="column or expression")] = "surface_to_volume_per_nm"
    where: Annotated[Condition | None, Field(description="of the rows only those for which this holds")] = None
    by: Annotated[str | None, Field(description="column: a correlation for each of its values")] = None
    objects: Annotated[str, Field(description="what the rows are, for the sentence")] = "objects"
    permutations: Annotated[int, Field(ge=0, description="of the test that respects spatial dependence; 0: no test")] = 999
    bootstraps: Annotated[int, Field(ge=0, description="draws of the bootstrap interval; 0: no interval")] = 2000
    seed: Annotated[int, Field(ge=0, description="of the permutations and draws")] = 0
    position: Annotated[tuple[str, ...], Field(min_length=1, description="columns of the objects' positions, nm")] = CENTRE
    names: Annotated[
        tuple[str, str] | None, Field(description="x and y in words, for the sentence; their units follow. By default their columns'")
    ] = None

    @classmethod
    def examples(cls):
        return [
            cls("volume_nm3", "log(centroid_z_nm)", permutations=19, bootstraps=50),
            cls(
                "volume_nm3",
                "centroid_x_nm",
                "volume_nm3 > 1e7",
                "part",
                "mitochondria",
                9,
                0,
                3,
                ("centroid_z_nm", "centroid_y_nm"),
                ("volume", "position"),
            ),
        ]

    def example_inputs(self, rng, shape, spacing):
        return {"table": _example(rng)}, {}

    def __call__(self, table):
        return correlate(
            table, self.x, self.y, self.where, self.by, self.objects, self.permutations, self.bootstraps, self.seed, self.position, self.names
        )  # fmt: skip


@register("compare_groups")
@dataclass(frozen=True)
class CompareGroups(Analysis):
    """Two groups of objects compared in one column: t-tests of Student and Welch, Mann-Whitney, sizes of effect, and a test that respects spatial
    dependence.

    Columns, one row, or one for each value of `by`: `by`, `by_value`, `value`, `group_a`, `group_b`, `objects`; `n_`, `mean_`, `sd_`, `median_` of
    `a` and `b`; `dropped` (rows without a value or a group); `datasets` (that the objects come from); `ties` (rows beyond the distinct values);
    `difference` (mean of a less mean of b) and its interval of 95 % by Welch `difference_low`, `difference_high`; `student_t`, `student_p`, `welch_t`,
    `welch_df`, `welch_p`; `mann_whitney_u` (of a), `mann_whitney_p`; `cohens_d` (by the pooled sd), `hedges_g` (d (1 - 3 / (4 (n - 2) - 1)));
    `cliffs_delta` (2 U / (n_a n_b) - 1, the rank-biserial correlation); `p_spatial`, `spatial_objects`; `warning`; `sentence`. All p are two-sided.

    The spatial p is that of the difference of means where the values are replaced by random fields with the same values and nearly the same
    variogram (Viladomat et al. 2014, Biometrics 70:409), and the groups stay where they are: made for groups that are regions, such as the two sections
    of a nucleus. See `correlate`."""

    serves = "step 15: density of the two sections compared"
    ports = (TABLE,)

    value: Annotated[Expression, Field(description="column or expression that is compared")] = "volume_nm3"
    group: Annotated[str, Field(description="column with two values (the smaller is group a), or a condition (group a is where it holds)")] = (
        "section"
    )
    where: Annotated[Condition | None, Field(description="of the rows only those for which this holds")] = None
    by: Annotated[str | None, Field(description="column: a comparison for each of its values")] = None
    objects: Annotated[str, Field(description="what the rows are, for the sentence")] = "objects"
    permutations: Annotated[int, Field(ge=0, description="of the test that respects spatial dependence; 0: no test")] = 999
    seed: Annotated[int, Field(ge=0, description="of the permutations")] = 0
    position: Annotated[tuple[str, ...], Field(min_length=1, description="columns of the objects' positions, nm")] = CENTRE
    names: Annotated[tuple[str, str] | None, Field(description="groups a and b in words, for the sentence. By default the column or condition")] = (
        None
    )

    @classmethod
    def examples(cls):
        return [
            cls(group="part", permutations=19),
            cls("log(volume_nm3)", "centroid_z_nm > 200", "centroid_x_nm >= 0", "part", "pores", 9, 3, names=("deep", "shallow")),
        ]

    def example_inputs(self, rng, shape, spacing):
        return {"table": _example(rng)}, {}

    def __call__(self, table):
        return compare_groups(
            table, self.value, self.group, self.where, self.by, self.objects, self.permutations, self.seed, self.position, self.names
        )  # fmt: skip

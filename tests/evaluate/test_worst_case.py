import pytest

from lcot_plugin.evaluate.worst_case import worst_case_metrics


def test_a_problem_is_right_where_all_its_variants_are():
    """The example of the docstring, its variants in the order of ten data sets one after the other."""
    verdicts = {"a": [True, True, True], "b": [True, False, True]}
    rows = [(problem, verdicts[problem][variant]) for variant in range(3) for problem in ("a", "b")]
    assert worst_case_metrics(rows) == {
        "worst_case": 50.0,
        "variant_problems": 2.0,
        "variants": 3.0,
        "variants_missing": 0.0,
    }


def test_more_variants_can_only_lower_it():
    rows = [("a", True), ("b", True)]
    shares = [worst_case_metrics(rows)["worst_case"]]
    for row in (("a", True), ("b", False), ("b", True), ("a", False)):
        rows.append(row)
        shares.append(worst_case_metrics(rows)["worst_case"])
    assert shares == [100.0, 100.0, 50.0, 50.0, 0.0]


def test_missing_variants_are_counted():
    metrics = worst_case_metrics([("a", True), ("a", True), ("a", True), ("b", True), ("c", False), ("c", True)])
    assert metrics["variants"] == 3.0 and metrics["variants_missing"] == 3.0
    assert metrics["worst_case"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("rows", [[], [("", True), ("", False)]])
def test_records_without_an_id_are_no_variants(rows):
    assert worst_case_metrics(rows) == {}
    assert worst_case_metrics([*rows, ("a", True)])["variant_problems"] == 1.0

"""The overlap table: near-duplicates appear with their threshold, and only where they were looked for."""

from fintune.reporting.tables import overlap_table


def with_near(results, near, threshold):
    overlaps = tuple(o.model_copy(update={"near": near, "near_threshold": threshold}) for o in results.overlap)
    return results.model_copy(update={"overlap": overlaps})


def test_near_duplicates_stand_with_their_threshold(results):
    table = overlap_table(with_near(results, 7, 0.6))
    assert table.rows[0][-2] == "7 (0.6)" and table.columns[-2].startswith("Near-duplicate")
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "shingles" in table.note


def test_results_without_near_duplicates_keep_their_table(results):
    table = overlap_table(with_near(results, 0, None))
    assert not any("Near" in column for column in table.columns) and "shingles" not in table.note
    mixed = results.model_copy(update={"overlap": (*results.overlap, *with_near(results, 7, 0.6).overlap)})
    assert [row[-2] for row in overlap_table(mixed).rows] == ["not sought"] * len(results.overlap) + ["7 (0.6)"] * len(
        results.overlap
    )


def test_every_pair_of_tasks_has_a_row_and_columns_say_what_rows_can(results):
    (one,) = results.overlap
    pairs = [
        one.model_copy(update={"trained_on": "finqa", "same_document": 4}),
        one.model_copy(update={"trained_on": "tfns", "removed_from_train": 1200}),
    ]
    table = overlap_table(results.model_copy(update={"overlap": tuple(pairs)}))
    assert [row[:2] for row in table.rows] == [("tfns", "finqa"), ("tfns", "tfns")] and table.text_columns == 2
    at = table.columns.index("Same document")
    assert [row[at] for row in table.rows] == ["4", "–"] and "filing" in table.note
    assert not any("week" in column for column in table.columns) and "week" not in table.note
    assert table.rows[1][-1] == "1,200"


def test_conversations_that_share_answers_have_a_column_of_their_own(results):
    (one,) = results.overlap
    pairs = (one.model_copy(update={"same_exchanges": 1300}), one)
    table = overlap_table(results.model_copy(update={"overlap": pairs}))
    at = table.columns.index("Same answers")
    assert [row[at] for row in table.rows] == ["1,300", "–"]
    assert "half of their answers" in table.note and "where rows do not say it" in table.note
    assert "Same answers" not in overlap_table(results).columns and "answers" not in overlap_table(results).note

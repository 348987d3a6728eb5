import pytest

from fintune.metrics.stated_numbers import number_counts

NAMES = ("numbers_expected", "numbers_found", "numbers_said", "numbers_invented")


@pytest.mark.parametrize(
    ("answer", "reference", "question", "expected"),
    [
        ("Revenue was $1.2 billion.", "It was $1,200 million.", "Revenue in 2023?", (1, 1, 1, 0)),
        ("46.8% of sales", "a share of 46.8", "", (1, 1, 1, 0)),
        ("0.468", "46.8%", "", (1, 1, 1, 0)),
        ("It fell by 5 in 2023.", "It changed by -5.", "And in 2023?", (1, 1, 2, 0)),
        ("In 2022 it was 7, then 8.", "It was 7.", "What was it?", (1, 1, 3, 2)),
        ("In 2022.", "In 2023.", "", (1, 0, 1, 1)),
        ("The 10-K of Q3 says so.", "No number.", "", (0, 0, 0, 0)),
        ("12 and 12.0 and 12", "12 of 40", "", (2, 1, 1, 0)),
        ("", "It was 7.", "", (1, 0, 0, 0)),
        ("7", "It was 7.", "Was it 7?", (0, 0, 1, 0)),
    ],
)
def test_numbers_are_expected_found_said_and_invented(answer, reference, question, expected):
    assert number_counts(answer, reference, question) == dict(zip(NAMES, map(float, expected), strict=True))

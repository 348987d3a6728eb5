"""What a page that is passed on does not say: where on which machine it was made, and texts that are to stay."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.reporting import write_report
from fintune.reporting.places import without_places


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("/home/ann/my data/news.csv", "…/news.csv"),
        ("/home/ann/runs/first/", "…/first"),
        ("~/runs/first", "…/first"),
        (r"C:\Users\Ann B\news.csv", "…/news.csv"),
        (r"\\server\share\news.csv", "…/news.csv"),
        ("rows from /data/bank/train.csv (2,264 rows)", "rows from …/train.csv (2,264 rows)"),
        ("a=/x/runs/a:tuned, /x/runs/b:tuned", "a=…/a:tuned, …/b:tuned"),
        (r"read from D:\in\a.csv today", r"read from …/a.csv today"),
        ("https://huggingface.co/datasets/a/b", "https://huggingface.co/datasets/a/b"),
        ("hf://datasets/a/b.csv", "hf://datasets/a/b.csv"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("runs/first/adapter, ../data/a.csv", "runs/first/adapter, ../data/a.csv"),
        ("1/2 of them and/or 3/4", "1/2 of them and/or 3/4"),
        ("up 4% / down 3% on 2024/01/02", "up 4% / down 3% on 2024/01/02"),
    ],
)
def test_folders_are_cut_and_nothing_else(said, left):
    assert without_places(said) == left
    assert without_places({"key": [said, 3, None, True]}) == {"key": [left, 3, None, True]}


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=3, max_size=6))
def test_no_folder_of_a_path_stays(parts):
    path = "/" + "/".join(parts)
    for text in (path, f"from {path} today"):
        assert without_places(text) == text.replace(path, f"…/{parts[-1]}")


@pytest.fixture(scope="module")
def placed(tmp_path_factory, recipe, records, results, history):
    """A report of a run whose model, data and adapter lie in folders of this machine."""
    folder = tmp_path_factory.mktemp("secret-folder")
    own = recipe.model_dump(mode="json")
    own["model"]["base"] = str(folder / "models" / "my model")
    own["data"]["tasks"][0]["source"] = str(folder / "bank" / "rows.csv")
    source = results.data[0].model_copy(update={"source": str(folder / "bank" / "rows.csv")})
    moved = results.model_copy(
        update={
            "model": own["model"]["base"],
            "adapter": str(folder / "adapter"),
            "data": (source,),
            "counts": {"tuned stands for": f"{folder}/a:tuned"},
        }
    )
    facts = {"base_model": own["model"]["base"], "nested": {"log": [f"read {folder}/bank/rows.csv"]}}
    options = {"results": moved, "records": records, "history": history[:5], "model_facts": facts}
    write_report(folder, recipe=type(recipe).model_validate(own), **options)
    own["report"] |= {"documents": False}
    write_report(folder / "without", recipe=type(recipe).model_validate(own), **options)
    return folder


def test_the_outputs_name_no_folder_of_this_machine(placed):
    for name in ("report.html", "report.md", "tables.tex"):
        text = (placed / name).read_text(encoding="utf-8")
        assert "secret-folder" not in text and str(placed.parent) not in text, name
    page = (placed / "report.html").read_text(encoding="utf-8")
    assert "…/rows.csv" in page and "…/my model" in page and "…/a:tuned" in page


def test_texts_stay_out_where_the_recipe_says_so(placed, records):
    shown, hidden = ((folder / "report.html").read_text(encoding="utf-8") for folder in (placed, placed / "without"))
    text = records[0].text.replace("<b>", "").partition("4%")[0]
    assert text in shown and "documents-data" in shown and "script-src" in shown
    assert text not in hidden and "documents-data" not in hidden and "<script" not in hidden
    assert "keeps the texts of documents out" in hidden
    assert text not in (placed / "without" / "report.md").read_text(encoding="utf-8")


def test_the_data_of_the_page_are_the_records(placed, records):
    page = (placed / "report.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="documents-data">')[1].split("</script>")[0])
    for system in data["systems"]:
        mine = [r for r in records if r.system == system["key"]]
        words = [None if word == -1 else data["words"][word] for word in system["answer"]]
        assert words == [r.prediction for r in mine]
        assert [flag == "1" for flag in system["right"]] == [r.correct for r in mine]
    assert [s["key"] for s in data["systems"]] == ["majority", "lexicon", "tfidf", "base", "tuned"]
    assert data["text"] == [r.text for r in records if r.system == "base"]

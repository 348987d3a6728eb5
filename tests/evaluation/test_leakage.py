"""An adapter is measured on the data of its training, and on nothing it was trained on without being told."""

import json
import subprocess
import sys

import pytest
from tests.runs import run

import fintune
from fintune.evaluation.suite import load_run_data
from fintune.schema.errors import RecipeError
from fintune.schema.loading import load_recipe, save_recipe
from fintune.schema.recipe import TaskSection

WORDS = (
    "alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper", "kauri", "larch", "maple",
)  # fmt: skip


def text_of(number):
    """Texts of which no two are alike."""
    return " ".join(f"{word}{number * 7919 % (31 + place)}" for place, word in enumerate(WORDS)) + f" profit {number}"


def write_posts(folder, **splits):
    """A folder with rows as TFNS has them; each split is a range of texts."""
    folder.mkdir()
    for split, numbers in splits.items():
        lines = [f"{text_of(number)},{number % 3}" for number in numbers]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return folder


def recipe_of(*sections, **evaluation):
    tasks = [section if isinstance(section, dict) else {"name": "tfns", "source": str(section)} for section in sections]
    keys = {"baselines": [], **evaluation}
    return load_recipe({"name": "r", "model": {"base": "m"}, "data": {"tasks": tasks}, "evaluation": keys})


def measured(asked, trained):
    return load_run_data(asked, training=False, adapter=trained)


@pytest.fixture
def division(tmp_path):
    return write_posts(tmp_path / "first", train=range(30), validation=range(90, 93), test=range(30, 45))


@pytest.fixture
def other_division(tmp_path):
    """Four of its twelve test rows are training rows of the first division."""
    return write_posts(
        tmp_path / "second", train=range(40, 60), validation=range(90, 93), test=[*range(26, 30), *range(60, 68)]
    )


def test_documents_the_adapter_was_trained_on_are_counted_and_warned_about(division, other_division):
    data = measured(recipe_of(other_division), recipe_of(division))
    (report,) = data.overlap
    assert (report.task, report.trained_on, report.n_train, report.n_test) == ("tfns", "tfns", 30, 12)
    assert (report.exact, report.normalised, report.removed_from_train) == (4, 4, 0)
    (line,) = [line for line in data.findings() if "flatter" in line]
    assert "4 of 12 scored documents" in line and "4 word for word" in line


def test_documents_held_out_by_the_training_are_no_leak(division):
    splits = {"train": range(30), "validation": range(90, 93), "test": range(28, 40)}
    shared = write_posts(division.parent / "third", **splits)
    trained = recipe_of(shared)
    data = measured(recipe_of(shared), trained)
    (report,) = data.overlap
    assert (report.exact, report.removed_from_train) == (2, 2), "the training removed them from its rows"
    assert not any("flatter" in line for line in data.findings())
    kept = trained.model_copy(update={"data": trained.data.model_copy(update={"remove_overlap": False})})
    data = measured(recipe_of(shared), kept)
    assert data.overlap[0].removed_from_train == 0
    assert any("2 of 12 scored documents" in line for line in data.findings())


def test_the_measured_rows_serve_where_they_are_the_trained_ones(division, monkeypatch):
    from fintune.evaluation import leakage

    trained = load_run_data(recipe_of(division)).recipe
    assert trained.data.tasks[0].content_hash is not None
    monkeypatch.setattr(leakage, "load_task", lambda *a, **k: pytest.fail("read a second time"))
    (report,) = measured(recipe_of(division), trained).overlap
    assert (report.n_train, report.exact) == (30, 0)


def test_training_rows_that_are_gone_are_said_to_be_so(division, other_division):
    trained = recipe_of(division, {"name": "fpb", "source": str(division / "gone.csv")})
    data = measured(recipe_of(other_division), trained)
    assert [report.trained_on for report in data.overlap] == ["tfns"]
    assert "gone.csv" in data.unchecked["fpb"]
    assert any("training rows of fpb is not known" in line for line in data.findings())
    assert "gone.csv" in data.counts["training rows not compared: fpb"]["reason"]


def test_a_base_alone_has_no_training_rows(division):
    data = load_run_data(recipe_of(division), training=False)
    assert data.overlap == () and data.unchecked == {}


class TestAsked:
    """What ``fintune.evaluate`` makes of an adapter's recipe; nothing is loaded."""

    @pytest.fixture
    def ask(self, tmp_path, monkeypatch):
        import fintune.measuring

        monkeypatch.setattr(fintune.measuring, "evaluate_recipe", lambda recipe, *a, **k: (recipe, k))

        def ask(*tasks, trained=None, **options):
            adapter = tmp_path / "adapter"
            adapter.mkdir(exist_ok=True)
            if trained is not None:
                save_recipe(recipe_of(trained), adapter / "recipe.yaml")
            return fintune.evaluate("m", adapter=adapter, tasks=tasks, **options)

        return ask

    def section(self, asked):
        return asked[0].data.tasks[0]

    def test_a_task_is_measured_on_the_data_of_its_training(self, ask, tmp_path):
        (tmp_path / "rows").mkdir()
        trained = {"name": "fiqa_sa", "config": "flare", "source": str(tmp_path / "rows"), "prompt": "fingpt"}
        found = self.section(ask("fiqa_sa", trained=trained))
        assert found == TaskSection(**trained)
        pinned = {**trained, "source": "some/where", "revision": "abc", "content_hash": "def"}
        found = self.section(ask("fiqa_sa", trained=pinned))
        assert (found.source, found.config, found.revision) == ("some/where", "flare", "abc")

    def test_what_is_named_goes_before_the_training(self, ask, tmp_path):
        trained = {"name": "fiqa_sa", "config": "flare", "source": "some/where", "revision": "abc"}
        original = self.section(ask("fiqa_sa@", trained=trained))
        assert (original.config, original.source, original.revision) == ("", None, None)
        elsewhere = self.section(ask("fiqa_sa:other/rows", trained=trained))
        assert (elsewhere.config, elsewhere.source, elsewhere.revision) == (None, "other/rows", None)
        assert self.section(ask("fiqa_sa@flare", trained=trained)).source == "some/where"

    def test_the_training_goes_before_a_suites_division(self, ask, caplog):
        trained = {"name": "fiqa_sa", "source": "some/where"}
        sections = {section.name: section for section in ask("flare", trained=trained)[0].data.tasks}
        assert (sections["fiqa_sa"].config, sections["fiqa_sa"].source) == (None, "some/where")
        assert "name fiqa_sa@flare for that" in caplog.text
        assert {section.config for section in ask("flare")[0].data.tasks if section.name != "fiqa_sa"} == {None}

    def test_a_suite_has_its_own_division_and_answers(self, ask):
        recipe = ask("flare")[0]
        assert {s.name: s.config for s in recipe.data.tasks}["fiqa_sa"] == "flare"
        assert recipe.evaluation.decoding == ask("flare/fpb")[0].evaluation.decoding == "both"
        assert ask("flare", decoding="free")[0].evaluation.decoding == "free"
        assert ask("fpb")[0].evaluation.decoding == ask("fingpt")[0].evaluation.decoding == "constrained"

    def test_rows_of_the_training_that_are_not_here_are_looked_for(self, ask, tmp_path, caplog):
        trained = {"name": "fiqa_sa", "config": "flare", "source": str(tmp_path / "gone")}
        found = self.section(ask("fiqa_sa", trained=trained))
        assert (found.source, found.config) == (None, "flare") and "which is not here" in caplog.text

    def test_the_recipe_of_the_adapter_is_passed_on(self, ask):
        assert ask("tfns", trained={"name": "fpb"})[1]["trained"].data.tasks[0].name == "fpb"
        own = {"name": "mine", "source": "mine.csv", "table": {"text": "a", "label": "b"}}
        assert self.section(ask("mine", trained=own)).table is not None
        with pytest.raises(RecipeError, match="no task or suite named 'mein'") as caught:
            ask("mein", trained=own)
        assert "Did you mean mine?" in caught.value.remedy


def test_names_are_checked_before_torch_is_loaded():
    program = (
        "import sys, fintune\n"
        "try: fintune.evaluate('m', tasks=['flair'])\n"
        "except fintune.FintuneError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Did you mean flare?" in done.stdout and done.stdout.endswith("False\n")


@pytest.mark.usefixtures("own_cache")
def test_results_and_the_log_tell_of_leakage(base, tmp_path, division, other_division, caplog):
    outcome = run(base, tmp_path / "run", f"data.tasks=[{{name: tfns, source: {division}}}]", "training.max_steps=1")
    options = {"adapter": outcome.run_dir, "progress": False, "overrides": ["evaluation.bootstrap_samples=100"]}
    clean = fintune.evaluate(base, tasks=["tfns"], **options)
    assert clean.data[0].source == str(division) and [report.exact for report in clean.overlap] == [0]
    assert "flatter" not in caplog.text
    place = tmp_path / "out"
    leaky = fintune.evaluate(base, tasks=[f"tfns:{other_division}"], output_dir=place, **options)
    assert leaky.overlap[0].exact == 4 and "4 of 12 scored documents" in caplog.text
    assert json.loads((place / "results.json").read_text())["overlap"][0]["exact"] == 4

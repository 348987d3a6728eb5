"""Recipes load, round-trip and fail in words: behaviour of fintune.schema.loading."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fintune.schema.errors import RecipeError
from fintune.schema.loading import list_recipes, load_recipe, recipe_text, save_recipe
from fintune.schema.recipe import Recipe
from fintune.schema.support import CONFLICTS
from fintune.schema.yaml_text import dump, parse

MINIMAL: dict[str, Any] = {"name": "mine", "model": {"base": "smollm2-135m"}, "data": {"tasks": [{"name": "fpb"}]}}


def error_of(source: Any, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    text = str(caught.value)
    assert "pydantic" not in text and "validation error" not in text and "\n" not in caught.value.message
    return caught.value


# --- what loads ----------------------------------------------------------------------------------------------------


def test_every_shipped_recipe_loads_and_is_named_like_its_file() -> None:
    infos = list_recipes()
    assert {"quickstart", "finllama-sentiment", "finllama-sentiment-3epoch"} <= {info.name for info in infos}
    for info in infos:
        recipe = load_recipe(info.name)
        assert recipe.name == info.name and recipe.description and recipe.model.base == info.base


def test_every_knob_of_the_shipped_recipes_has_a_comment() -> None:
    for info in list_recipes():
        for number, line in enumerate(recipe_text(info.name).splitlines(), 1):
            key, _, value = line.partition(":")
            is_knob = bool(value.strip()) and not line.startswith(("#", "name:", "description:"))
            assert not is_knob or "#" in value, f"{info.name}.yaml line {number}: {line}"


def test_quickstart_and_finllama_say_what_the_documents_promise() -> None:
    quick = load_recipe("quickstart")
    assert (quick.model.base, quick.model.quantization) == ("smollm2-135m", "nf4")
    assert quick.training.learning_rate == 1.5e-3 and quick.evaluation.baselines == ("majority", "lexicon", "tfidf")
    one, three = load_recipe("finllama-sentiment"), load_recipe("finllama-sentiment-3epoch")
    assert (one.adapter.rank, one.adapter.alpha, one.training.learning_rate) == (16, 16, 2e-4)
    assert (one.training.epochs, three.training.epochs) == (1, 3)
    assert (
        three.model_copy(update={"name": one.name, "description": one.description, "training": one.training}) == one
    ), "the two differ in the epochs alone"


def test_the_same_recipe_from_a_mapping_a_file_a_run_directory_and_a_recipe(tmp_path: Path) -> None:
    expected = Recipe.model_validate(MINIMAL)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    for source in (MINIMAL, path, str(path), tmp_path, expected):
        assert load_recipe(source) == expected
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_recipe(path) == expected, "a byte-order mark does no harm"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-3", -3), ("012", 12), ("089", 89),
        ("no", "no"), ("on", "on"), ("true", True), ("~", None), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("-.inf", -math.inf), ("[a, 2e-4]", ["a", 2e-4]), ("''", ""), ("0x1f", "0x1f"), ("1_000", "1_000"),
    ],
)  # fmt: skip
def test_yaml_scalars_read_as_people_mean_them(text: str, value: object) -> None:
    read = parse(text)[0]
    assert read == value and type(read) is type(value)


def test_overrides_set_values_lists_and_entries_in_order() -> None:
    recipe = load_recipe(
        MINIMAL,
        [
            "training.learning_rate=2e-4",
            "training.epochs=5",
            "training.epochs=2",
            "adapter.targets=[q_proj, v_proj]",
            "data.tasks.0.config=AllAgree",
            "data.tasks.1.name=tfns",
            "evaluation.tasks.0.name=fiqasa",
            "report.title=Rates: a study",
            "training.warmup_steps=null",
        ],
    )
    assert recipe.training.learning_rate == 2e-4 and recipe.training.epochs == 2
    assert recipe.adapter.targets == ("q_proj", "v_proj")
    assert [task.name for task in recipe.data.tasks] == ["fpb", "tfns"]
    assert recipe.data.tasks[0].config == "AllAgree"
    assert recipe.evaluation.tasks is not None and recipe.evaluation.tasks[0].name == "fiqasa"


def test_loading_leaves_the_callers_mapping_alone() -> None:
    before = dump(MINIMAL)
    load_recipe(MINIMAL, ["data.tasks.0.config=AllAgree", "model.base=other"])
    assert dump(MINIMAL) == before


def test_anchors_share_text_but_not_fate() -> None:
    values = parse("name: a\nmodel: {base: b}\ndata: {tasks: [&t {name: fpb}]}\nevaluation: {tasks: [*t]}")[0]
    recipe = load_recipe(values, ["data.tasks.0.config=AllAgree"])
    assert recipe.evaluation.tasks is not None
    assert (recipe.data.tasks[0].config, recipe.evaluation.tasks[0].config) == ("AllAgree", None)


# --- what fails, and how -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("training.learning_rat=1", "training.learning_rate"),
        ("learning_rate=1", "training.learning_rate"),
        ("trainning.epochs=1", "training.epochs"),
        ("training.rank=8", "adapter.rank"),
        ("data.tasks.name=fpb", "data.tasks.0.name"),
        ("data.tasks.0.confg=x", "data.tasks.0.config"),
        ("lora_alpha=16", "adapter.alpha"),
        ("training.per_device_train_batch_size=2", "training.samples_per_step"),
        ("model.load_in_4bit=true", "model.quantization"),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbour(override: str, near: str) -> None:
    error = error_of("quickstart", override)
    assert f"unknown key {override.partition('=')[0]}" in error.message
    assert error.remedy == f"Did you mean {near}?"
    assert error.exit_code == 2


def test_an_unknown_key_in_a_file_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: a\nmodel:\n  base: b\ndata:\n  tasks:\n    - name: x\n    - nam: y\n", encoding="utf-8")
    error = error_of(path)
    assert error.message == f"{path}, line 7: unknown key data.tasks.1.nam."
    assert error.remedy == "Did you mean data.tasks.1.name?"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("adapter.rank=0", ["adapter.rank must be a whole number of at least 1, but is 0"]),
        ("adapter.rank=1.5", ["whole number", "1.5"]),
        ("adapter.rank=true", ["whole number", "but is true"]),
        ("adapter.dropout=1", ["at least 0 and below 1"]),
        ("model.quantization=nf5", ["one of none, nf4, int8", "Did you mean nf4?"]),
        ("adapter.targets=7", ["all-linear or a list of names"]),
        ("training.tracking=wandb", ["Did you mean [wandb]?"]),
        ("evaluation.baselines=[majorty]", ["Did you mean [majority]?"]),
        ("data.tasks=[]", ["non-empty list"]),
        ("data.tasks.0=7", ["data.tasks.0 must be a section of keys (name, source"]),
        ("training=7", ["training must be a section of keys (epochs"]),
        ("name=a b", ["letters, digits, dots, dashes and underscores"]),
        ("training.epochs=.inf", ["finite"]),
        ("model.revision=12", ["Put it in quotes"]),
        ("data.tasks.5.name=x", ["position 5 does not exist"]),
        ("model.base", ["not an override", "key=value"]),
        ("=3", ["not an override"]),
        ("model..base=3", ["not an override"]),
        ("model.base=[a", ["not valid YAML"]),
        ("model.base=null", ["model.base must be text"]),
    ],
)
def test_a_bad_value_says_what_is_allowed(override: str, parts: list[str]) -> None:
    text = str(error_of("quickstart", override))
    for part in parts:
        assert part in text, text


def test_a_missing_key_is_named() -> None:
    assert "the key data is missing" in str(error_of({"name": "a", "model": {"base": "b"}}))
    assert "model.base is missing" in str(error_of({**MINIMAL, "model": {}}))


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["adapter.kind=none", "model.quantization=nf4"], ("adapter.kind", "model.quantization")),
        (["training.warmup_steps=5", "training.warmup_ratio=0.1"], ("training.warmup_steps", "training.warmup_ratio")),
        (["training.best_metric=loss"], ("training.best_metric", "training.eval_steps")),
        (["training.best_metric=loss", "training.eval_steps=7"], ("training.eval_steps", "training.save_steps")),
        (["adapter.targets=[]"], ("adapter.targets", "adapter.kind")),
        (["data.mixture=weights"], ("data.mixture", "data.tasks.0.weight")),
        (["data.tasks.0.weight=2"], ("data.tasks.0.weight", "data.mixture")),
        (["data.mixture=temperature", "data.tasks.0.epochs=2"], ("data.tasks.0.epochs", "data.mixture")),
        (["data.tasks.1.name=fpb", "data.tasks.1.config=AllAgree"], ("data.tasks", "evaluation.tasks")),
        *(
            (
                ["adapter.init_adapter=runs/a", "adapter.hand_over=stack", f"distributed.strategy={strategy}"],
                ("adapter.hand_over", "distributed.strategy"),
            )
            for strategy in ("zero2", "zero3", "fsdp2")
        ),
    ],
)
def test_an_impossible_combination_gives_the_tables_words(overrides: list[str], keys: tuple[str, str]) -> None:
    row = next(conflict for conflict in CONFLICTS if conflict.keys == keys)
    error = error_of(MINIMAL, *overrides)
    assert error.message == f"recipe: {row.reason}" and error.remedy == row.remedy


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: a\nmodel: {base: b\n", ["line 3"]),
        ("name: a\n\tmodel: b\n", ["line 2"]),
        ("name: a\nmodel:\n  base: b\n  base: c\n", ["line 4", "model.base is given twice"]),
        ("", ["is empty"]),
        ("- a\n- b\n", ["mapping of keys"]),
        ("just words", ["mapping of keys"]),
        ("name: !!python/object/apply:os.getcwd []\n", ["line 1"]),
        ("name: !!int abc\n", [": "]),
        ("? [a]\n: b\n", ["line 1", "list or a mapping"]),
        ("name: a\n1: b\n", ["unknown key 1"]),
        ("a: &a [*a]\n", ["nested too deeply"]),
        ("name: a\n---\nname: b\n", ["line 2"]),
        ("[" * 3000, ["nested too deeply"]),
        ("name: \x07\n", ["not allowed"]),
    ],
)
def test_broken_yaml_names_file_and_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    error = error_of(path)
    assert "mine.yaml" in error.message
    for part in parts:
        assert part in str(error), str(error)


def test_a_missing_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    error = error_of("quikstart")
    assert "Did you mean quickstart?" in error.remedy and "finllama-sentiment" in error.remedy
    error_of(tmp_path)
    error_of("a\0b")
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    assert "not UTF-8" in error_of(tmp_path / "latin.yaml").message


def test_repeated_anchors_do_not_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    error_of(parse("\n".join(lines))[0])


# --- properties ----------------------------------------------------------------------------------------------------

WORDS = st.text(min_size=1, max_size=30)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
FINITE = st.floats(min_value=1e-12, max_value=1e12)


@st.composite
def valid_recipes(draw: st.DrawFn) -> Recipe:
    def task(name: str) -> dict[str, Any]:
        optional = {key: draw(st.none() | WORDS) for key in ("source", "config", "prompt", "revision")}
        return {"name": name, **optional}

    names = st.lists(WORDS, min_size=1, max_size=3, unique=True)
    return Recipe.model_validate(
        {
            "name": draw(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")),
            "description": draw(st.text(max_size=200)),
            "seed": draw(st.integers(0, 2**64)),
            "model": {"base": draw(WORDS), "chat_template": draw(st.none() | st.text(max_size=80))},
            "adapter": {
                "rank": draw(st.integers(1, 512)),
                "alpha": draw(FINITE),
                "targets": draw(st.just("all-linear") | st.lists(WORDS, min_size=1, max_size=4)),
            },
            "data": {"tasks": [task(name) for name in draw(names)], "balance": draw(st.booleans())},
            "training": {
                "learning_rate": draw(FINITE),
                "epochs": draw(FINITE),
                "warmup_steps": draw(st.none() | st.just(3)),
            },
            "evaluation": {
                "tasks": draw(st.none() | st.just([{"name": "fpb"}])),
                "limit": draw(st.none() | st.just(5)),
            },
            "report": {"title": draw(st.none() | st.text(max_size=40))},
        }
    )


@given(valid_recipes())
def test_a_saved_recipe_loads_equal(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = save_recipe(recipe, tmp_path_factory.mktemp("recipe") / "deep" / "recipe.yaml")
    assert load_recipe(path) == recipe
    assert list(path.parent.iterdir()) == [path], "no temporary file stays behind"


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4)))
def test_what_is_dumped_parses_back(value: object) -> None:
    assert repr(parse(dump(value))[0]) == repr(value)


KEYS = st.sampled_from(
    [*Recipe.model_fields, "base", "tasks", "kind", "rank", "alpha", "targets", "epochs", "baselines", "quantization"]
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | WORDS | st.integers(), inner, max_size=4)
        | st.tuples(inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(KEYS | WORDS, TREES, max_size=6), st.booleans())
@example({"name": {"a": float("nan")}}, True)
@example({"model": {"base": "\ud800"}}, True)
def test_any_mapping_is_a_recipe_or_a_recipe_error(values: dict[str, Any], complete: bool) -> None:
    try:
        load_recipe({**MINIMAL, **values} if complete else values)
    except RecipeError as error:
        assert error.message and "\n" not in error.message


@given(st.text(max_size=60), st.text(max_size=30))
@example("training.epochs", "\x00")
@example("data.tasks.99999999999999999999", "1")
@example("data.tasks.0", "{name: x}")
def test_any_override_is_a_recipe_or_a_recipe_error(key: str, value: str) -> None:
    for override in (key, f"{key}={value}", f"model.base={value}", f"data.tasks.0.{key}={value}"):
        try:
            load_recipe(MINIMAL, [override])
        except RecipeError as error:
            assert error.message


@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file_is_a_recipe_or_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "recipe.yaml"
    path.write_bytes(content)
    error_of(path)

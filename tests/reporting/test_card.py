import pytest
import yaml

from fintune.reporting import write_model_card
from fintune.reporting.card import LICENCES, UNKNOWN, licence_id, strictest_licence
from fintune.schema.results import DataLicence, EvaluationResults


def card(tmp_path, recipe, results, facts):
    path = write_model_card(tmp_path / "adapter", recipe=recipe, results=results, model_facts=facts)
    assert path == tmp_path / "adapter" / "README.md"
    text = path.read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def with_sources(results, *sources):
    data = tuple(DataLicence(task="t", source=s, licence=licence, citation="c") for s, licence in sources)
    return results.model_copy(update={"data": data})


def test_front_matter_is_what_the_hub_reads(tmp_path, recipe, results, model_facts):
    from huggingface_hub import ModelCard

    front, body = card(tmp_path, recipe, results, model_facts)
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["library_name"] == "peft" and front["license"] == "apache-2.0"
    assert front["datasets"] == ["zeroshot/twitter-financial-news-sentiment"]
    assert {"finance", "lora", "qlora"} <= set(front["tags"])
    loaded = ModelCard.load(tmp_path / "adapter" / "README.md").data
    values = {r.metric_type: r.metric_value for r in loaded.eval_results}
    assert values["accuracy"] == round(results.find("tfns", "tuned").metrics["accuracy"].value, 4)


@pytest.mark.parametrize(
    ("form", "library", "code"), [("merged", "transformers", "transformers"), ("gguf", "gguf", "Ollama")]
)
def test_an_export_says_what_it_is_and_how_it_is_loaded(tmp_path, recipe, results, model_facts, form, library, code):
    write_model_card(tmp_path, recipe=recipe, results=results, model_facts=model_facts, form=form)
    _, front, body = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    stated = yaml.safe_load(front)
    assert stated["library_name"] == library and stated["base_model_relation"] == "finetune"
    assert ("gguf" in stated["tags"]) == (form == "gguf")
    assert code in body and "PeftModel" not in body


def test_the_body_is_honest(tmp_path, recipe, results, model_facts):
    _, body = card(tmp_path, recipe, results, model_facts)
    for words in (
        "the tuned model beats the base model",
        "TF-IDF + logistic regression",
        "not investment advice",
        "balanced by class; not the natural mix",
        "| tfns | 900 | 120 | 2 | 3 | 3 |",
        'AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")',
        'PeftModel.from_pretrained(base, "path/to/this/folder")',
        "base weights in nf4",
    ):
        assert words in body, words


def test_the_strictest_source_wins_and_unknown_is_said(tmp_path, recipe, results, model_facts):
    mixed = with_sources(results, ("a/b", "MIT"), ("c/d", "CC BY-NC-SA 3.0"))
    front, body = card(tmp_path, recipe, mixed, model_facts)
    assert front["license"] == "cc-by-nc-sa-3.0" and front["datasets"] == ["a/b", "c/d"]
    front, body = card(tmp_path, recipe, with_sources(results, ("a/b", "MIT"), ("c/d", "")), model_facts)
    assert front["license"] == "unknown" and "check before any use" in body
    front, _ = card(tmp_path, recipe, results, {})
    assert front["license"] == "unknown"


def test_the_licence_covers_every_source_and_samples_name_their_data_set(tmp_path, recipe, results, model_facts):
    trained = with_sources(results, ("sample of a/b", "MIT"), ("hf://c/d@main", "CC BY-NC-SA 3.0"))
    front, _ = card(tmp_path, recipe, trained, model_facts)
    assert front["license"] == "cc-by-nc-sa-3.0" and front["datasets"] == ["a/b", "c/d"]
    front, _ = card(tmp_path, recipe, results, {**model_facts, "base_licence": "llama3.2"})
    assert front["license"] == "llama3.2"


def test_a_derived_base_is_said_to_be_one(tmp_path, recipe, results, model_facts):
    derived = "derived from a 4-bit file (Q4_1 GGUF)"
    for source, said in (
        ("smollm2-135m", True),
        (model_facts["base_model"], False),
        ("hf://" + model_facts["base_model"], False),
        (None, False),
    ):
        _, body = card(tmp_path, recipe, results, {**model_facts, "base_source": source})
        assert (derived in body) is said, source
    _, body = card(tmp_path, recipe, results, {"base_model": "/models/a", "base_source": "a.gguf"})
    assert derived not in body and "path/to/the/base/model" in body


def test_local_names_do_not_leave_the_machine(tmp_path, recipe, results):
    for base in ("/home/someone/models/llama", "smollm2-135m", "./models/base.gguf", "models/base.gguf"):
        front, _ = card(tmp_path, recipe, results, {"base_model": base})
        assert "base_model" not in front
    front, _ = card(tmp_path, recipe, with_sources(results, ("/data/fpb.csv", "MIT"), ("sample", "MIT")), {})
    assert "datasets" not in front


def test_full_fine_tune_without_results(tmp_path, recipe):
    whole = type(recipe).model_validate(
        {**recipe.model_dump(), "adapter": {"kind": "none"}, "model": {"base": "org/model"}}
    )
    front, body = card(tmp_path, whole, EvaluationResults(model="m", adapter=None, results=()), {})
    assert front["library_name"] == "transformers" and front["base_model"] == "org/model"
    assert "metrics" not in front and "Nothing was measured" in body and "Full fine-tune" in body
    assert "AutoPeft" not in body and "Not measured." in body and "unquantised" in body


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("MIT", "mit"),
        ("MIT License", "mit"),
        ("Apache License 2.0", "apache-2.0"),
        ("apache2", "apache-2.0"),
        ("CC BY-NC-SA 3.0", "cc-by-nc-sa-3.0"),
        ("cc_by_4.0", "cc-by-4.0"),
        ("Creative Commons BY-SA 4.0 International", "cc-by-sa-4.0"),
        ("Llama 3.2 Community License", "llama3.2"),
        ("llama3.1", "llama3.1"),
        ("proprietary", UNKNOWN),
        ("CC BY", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_licences_are_read_however_written(written, expected):
    assert licence_id(written) == expected


def test_non_commercial_stands_before_permissive():
    last_non_commercial = max(i for i, x in enumerate(LICENCES) if "-nc" in x)
    assert last_non_commercial < min(LICENCES.index(x) for x in ("apache-2.0", "mit", "cc-by-4.0", "cc0-1.0"))
    assert all(strictest_licence([a, b]) == a for a, b in zip(LICENCES, LICENCES[1:], strict=False))
    assert all(licence_id(x) == x for x in LICENCES)


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        (
            [("zeroshot/x", "MIT"), ("fpb/y", "CC BY-NC-SA 3.0")],
            "The strictest terms among its sources are CC BY-NC-SA 3.0 (two): non-commercial use only.",
        ),
        ([("a/b", "MIT"), ("c/d", "MIT")], "are Apache-2.0 (the base model): commercial use allowed."),
        ([("a/b", "MIT"), ("c/d", "CC BY-SA 4.0")], "are CC BY-SA 4.0 (two): commercial use under conditions;"),
        ([("a/b", "MIT"), ("c/d", " ")], "are not known (two): no stated terms, so no use is clearly allowed."),
        ([("a/b", "CC BY-NC 4.0"), ("c/d", "not stated")], "are not stated (two): no stated terms"),
    ],
)
def test_the_strictest_terms_stand_in_a_sentence(tmp_path, recipe, results, model_facts, sources, sentence):
    names = ("one", "two")
    data = tuple(
        DataLicence(task=name, source=s, licence=licence, citation="c")
        for name, (s, licence) in zip(names, sources, strict=True)
    )
    mixed = results.model_copy(update={"data": data})
    _, body = card(tmp_path, recipe, mixed, {**model_facts, "base_licence": "Apache-2.0"})
    assert sentence in body


def test_an_unknown_base_licence_is_named_among_the_strictest(tmp_path, recipe, results, model_facts):
    _, body = card(tmp_path, recipe, results, {**model_facts, "base_licence": "unknown"})
    assert "are not known (the base model)" in body and "base model's licence is not known" in body
    _, body = card(tmp_path, recipe, results, {**model_facts, "base_licence": "llama3.2"})
    assert "are llama3.2 (the base model): commercial use under conditions" in body

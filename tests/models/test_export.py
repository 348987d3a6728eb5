"""Exports of tiny adapters and models: what other programs load computes what fintune computes."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import fintune
from fintune import adapters
from fintune.cli import main
from fintune.exporting import export
from fintune.models import attach_adapter, load_adapter, merging, save_adapter, write_tiny_model
from fintune.models.export.chat_shape import chat_shape
from fintune.models.export.gguf_file import write_gguf
from fintune.models.export.launchers import go_template, modelfile
from fintune.models.export.llama_cpp import LlamaCpp, has_llama_cpp
from fintune.models.merging import TEXTS
from fintune.models.tiny import tiny_tokenizer
from fintune.schema.errors import AdapterError, DependencyError, ModelError
from fintune.schema.recipe import AdapterSection

needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="cyllama, which brings llama.cpp, is not installed")
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.index0 == 1 and messages[0].role == 'system' %}"
    "{{ '<<SYS>>' + messages[0].content + '<</SYS>>' }}{% endif %}{{ m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def adapter(load_tiny, tmp_path):
    base = load_tiny()
    adapted = attach_adapter(base, AdapterSection(rank=4), seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return save_adapter(adapted, base.tokenizer, tmp_path / "tuned", base.files)


def test_one_folder_that_every_program_reads(adapter, load_tiny, tmp_path):
    report = export(adapter, tmp_path / "out", formats=["merged", "adapter", "f16", "q8_0"], shard_size="100KB")
    out = tmp_path / "out"
    assert set(report.files) == {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    shards = sorted(out.glob("merged/model-*.safetensors"))
    assert len(shards) > 1 and {f.stat().st_mode & 0o777 for f in shards} == {
        (out / "vllm-lora.yaml").stat().st_mode & 0o777
    }
    assert (out / "merged" / "generation_config.json").is_file()
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    base = load_tiny()
    expected = load_adapter(base, adapter)
    assert tokenizer.chat_template == base.tokenizer.chat_template
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        difference = (merged(ids).logits - expected(input_ids=ids).logits).abs().mean()
    assert difference == pytest.approx(report.merge.gap.mean, rel=1)
    assert yaml.safe_load((out / "vllm-merged.yaml").read_text())["model"] == "merged"
    settings = yaml.safe_load((out / "vllm-lora.yaml").read_text())
    assert settings["lora-modules"] == ["tuned=adapter"] and settings["max-lora-rank"] == 8
    assert settings["tokenizer"] == "adapter" and (out / "adapter" / "adapter_config.json").is_file()
    lines = (out / "gguf" / "Modelfile").read_text()
    assert lines.startswith("FROM ./tuned-f16.gguf\n# FROM ./tuned-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in lines and "PARAMETER num_ctx 2048" in lines
    assert (
        str(tmp_path)
        not in (out / "merged" / "README.md").read_text() + (out / "merged" / "fintune_merge.json").read_text()
    )


def test_an_adapter_alone_is_copied_without_a_merge(adapter, tmp_path, monkeypatch):
    everything = export(adapter, tmp_path / "all", formats=["merged", "adapter"])
    monkeypatch.setattr("fintune.models.merging.merge_adapter", None)
    report = export(adapter, tmp_path / "out", formats=["adapter"])
    assert report.merge is None and report.notes == everything.notes
    assert {name.split("/")[0] for name in report.files} == {"adapter", "vllm-lora.yaml"}
    assert report.files.items() <= everything.files.items()
    for name in report.files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_an_adapter_without_a_tokenizer_is_served_with_its_base_s(adapter, tmp_path):
    for file in adapter.glob("tokenizer*"):
        file.unlink()
    export(adapter, tmp_path / "out", formats=["adapter"])
    settings = yaml.safe_load((tmp_path / "out" / "vllm-lora.yaml").read_text())
    assert "tokenizer" not in settings and settings["lora-modules"] == ["tuned=adapter"]
    AutoTokenizer.from_pretrained(settings["model"])


def test_an_adapter_alone_is_not_exported_for_another_base(adapter, tiny_folder, tmp_path):
    other = write_tiny_model(tmp_path / tiny_folder.name, seed=1)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    note = json.loads((adapter / "fintune_base.json").read_text())
    (adapter / "fintune_base.json").write_text(json.dumps(note | {"base": str(other)}))
    with pytest.raises(AdapterError, match="was trained on"):
        export(adapter, tmp_path / "out", formats=["adapter"])
    assert not (tmp_path / "out").exists()


@needs_llama_cpp
def test_llama_cpp_answers_as_the_adapter_on_its_base_does(adapter, load_tiny, tmp_path):
    report = export(adapter, tmp_path / "out", formats=["f16"])
    assert report.tokens_checked == 5 and not (tmp_path / "out" / "merged").exists()
    base = load_tiny()
    prompt, choices = base.tokenizer(TEXTS[1])["input_ids"], [[20, 30, 2], [41, 2], [300, 2]]
    opened = LlamaCpp(report.gguf[0].path, context=256, threads=1)
    with torch.no_grad():
        untuned = base.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        tuned = load_adapter(base, adapter)(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    for token in (20, 41, 300):
        found = opened.choice_log_likelihoods(prompt, [[token]])[0]
        assert found == pytest.approx(float(tuned[token]), abs=0.1)
    assert float((tuned - untuned).abs().mean()) > 0.5
    assert len(opened.choice_log_likelihoods(prompt, choices)) == 3


def test_a_model_folder_is_exported_and_read_back(tiny_folder, tmp_path, capsys):
    assert main(["export", str(tiny_folder), "-o", str(tmp_path / "out"), "--name", "My model!", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["files"]) >= {"merged/model.safetensors", "gguf/My-model-q8_0.gguf", "gguf/Modelfile"}
    assert report["merge"] is None and report["gguf"][0]["architecture"] == "llama"
    assert main(["export", str(tmp_path / "out" / "gguf" / "My-model-q8_0.gguf"), "-o", str(tmp_path / "again")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again" / "merged", dtype=torch.float32)
    first = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        found, expected = again(ids).logits, first(ids).logits
    assert (found - expected).abs().mean() < 0.1 * expected.std()  # rounded to 8 bits, and in the right places


def test_what_has_no_gguf_form_is_merged_and_said(tmp_path):
    folder = write_tiny_model(tmp_path / "gemma", "gemma2")
    report = export(folder, tmp_path / "out")
    assert not report.gguf and "gemma2 model is not written to GGUF" in report.notes[0]
    with pytest.raises(ModelError, match="gemma2 model is not written to GGUF"):
        export(folder, tmp_path / "other", formats=["q8_0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gemma", "out"]  # nothing of what failed


def test_mistakes_are_found_before_anything_is_loaded(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(AdapterError, match="would be overwritten"):
        export(tiny_folder, tmp_path / "there")
    with pytest.raises(ModelError, match="q3_k is no format"):
        export(tiny_folder, tmp_path / "out", formats=["merged", "q3_k"])
    with pytest.raises(AdapterError, match="has no LoRA adapter"):
        export(tiny_folder, tmp_path / "out", formats=["adapter"])
    monkeypatch.setitem(__import__("sys").modules, "cyllama.llama.llama_cpp", None)
    with pytest.raises(DependencyError, match="needs llama.cpp"):
        export(tiny_folder, tmp_path / "out", formats=["q4_k_m"])


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (
            {"shard_size": "abc"},
            "'abc' is no size of a file. Write a number above 0 with KB, MB, GB or TB, such as 5GB.",
        ),
        ({"shard_size": "-1GB"}, "'-1GB' is no size of a file"),
        ({"shard_size": "0.0001KB"}, "'0.0001KB' is no size of a file"),
        ({"shard_size": "5"}, "'5' is no size of a file"),
        ({"device": "foo"}, "'foo' is no device. Choose cpu, cuda"),
        ({"device": "cuda:99"}, "The device cuda:99 was asked for, but PyTorch finds"),
        ({"device": "xla"}, "The device xla does not work"),
        ({"quantization": "foo"}, "'foo' is no quantization. Choose from none, nf4, int8, fp8."),
        ({"dtype": "float32"}, "float32 is not a type of 16 bits. Choose bfloat16 or float16."),
    ],
)
def test_words_that_mean_nothing_are_said_before_the_merge(adapter, tmp_path, capsys, monkeypatch, mistake, sentence):
    monkeypatch.setattr("fintune.models.merging.merge_adapter", None)
    words = [f"--{key.replace('_', '-')}={value}" for key, value in mistake.items()]
    if "dtype" not in mistake:  # which the command line knows itself
        assert main(["export", str(adapter), "-o", str(tmp_path / "out"), *words]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModelError, match=re.escape(sentence)):
        export(adapter, tmp_path / "out", **mistake)
    if "shard_size" not in mistake:
        with pytest.raises(ModelError, match=re.escape(sentence)):
            adapters.merge(adapter, tmp_path / "out", **mistake)
    if mistake.keys() & {"device", "quantization"}:
        with pytest.raises(ModelError, match=re.escape(sentence)):
            fintune.load(adapter, **mistake)
    assert not (tmp_path / "out").exists()


def test_a_file_that_would_answer_as_the_untuned_base_is_refused(load_tiny, tiny_folder, tmp_path):
    """The base lies on the grid of q4_1, as one read from such a file does, and the update is below its step."""
    packed = write_gguf(tiny_folder, tmp_path / "base.gguf", "q4_1").path
    base = load_tiny(packed)
    adapted = attach_adapter(base, AdapterSection(rank=4), seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.003, generator=torch.Generator().manual_seed(len(name)))
    adapter = save_adapter(adapted, base.tokenizer, tmp_path / "tuned", base.files)
    with pytest.raises(ModelError, match=r"As q4_1 only \d+% of what tuning changed would be left"):
        export(adapter, tmp_path / "out", formats=["q4_1"])
    assert not (tmp_path / "out").exists()
    assert export(adapter, tmp_path / "out", formats=["q8_0"]).gguf[0].kept > 0.8


@pytest.mark.parametrize(("template", "joins", "default"), [(LLAMA2, True, None), (DEFAULT_SYSTEM, False, "Be kind.")])
def test_a_template_is_found_as_texts_around_messages(template, joins, default):
    tokenizer = tiny_tokenizer(chat_template=template)
    shape = chat_shape(tokenizer)
    assert (shape.joins_user, shape.default_system) == (joins, default)
    turns = [("system", "One word."), ("user", "Up {{3}}%?"), ("assistant", "Yes"), ("user", "And now?\nWell?")]
    for start in (0, 1):
        chat = [{"role": role, "content": content} for role, content in turns[start:]]
        assert shape.render(chat) == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def test_a_template_that_does_more_is_left_to_the_gguf_file():
    counting = "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}"
    assert chat_shape(tiny_tokenizer(chat_template=counting)) is None
    assert "TEMPLATE" not in modelfile("m.gguf", None, context=100, stops=["</s>"])


def test_the_modelfile_of_a_default_system_message():
    shape = chat_shape(tiny_tokenizer(chat_template=DEFAULT_SYSTEM))
    assert modelfile("m.gguf", shape, context=100_000, stops=["<|im_end|>"], greedy=True) == (
        "FROM ./m.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}"""\n'
        'SYSTEM """Be kind."""\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 8192\n'
        "PARAMETER temperature 0\nPARAMETER repeat_penalty 1\n"
    )
    bos = go_template(chat_shape(tiny_tokenizer(chat_template=LLAMA2)), "<|im_start|>")
    assert bos.count("<|im_start|>") == 1 and "{{ if $i }}<|im_start|>{{ end }}[INST] " in bos


@pytest.mark.parametrize("write", [partial(export, formats=["merged"]), adapters.merge], ids=["export", "merge"])
def test_a_folder_that_comes_while_one_is_written_is_kept(adapter, tmp_path, monkeypatch, write):
    def meanwhile(*given, **named):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious.txt").write_text("of another export")
        return measured(*given, **named)

    measured, before = merging.logit_gap, {file.name for file in tmp_path.iterdir()}
    monkeypatch.setattr(merging, "logit_gap", meanwhile)
    with pytest.raises(ModelError, match=r"out was made by another program meanwhile"):
        write(adapter, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["precious.txt"]
    assert {file.name for file in tmp_path.iterdir()} == {*before, "out"}

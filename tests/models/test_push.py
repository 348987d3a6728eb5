"""What is sent to the hub: the model's files and nothing of this machine, through the hub's own client."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from tests.models.stored_adapters import write_adapter
from transformers import AutoModelForCausalLM

from fintune.cli import main
from fintune.exporting.cleaning import require_no_secret, without_paths
from fintune.exporting.push import push
from fintune.models.export.gguf_file import write_gguf
from fintune.schema.errors import ModelError, ProviderError

CARD = "---\nlicense: mit\n---\n# Mine\n\nRows from /home/jane/data/fpb/rows.csv, see https://example.org/home/x/y.\n"


@pytest.fixture
def adapter(tmp_path) -> Path:
    folder = write_adapter(tmp_path / "run" / "adapter", base=str(tmp_path / "models" / "tiny"))
    (folder / "README.md").write_text(CARD)
    (folder / "recipe.yaml").write_text(f"data:\n  tasks:\n  - name: fpb\n    source: {tmp_path}/rows/fpb.csv\n")
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"/home/user/a": 1, "\u0120/usr/bin/env": 2}}})
    )
    (folder / "optimizer.pt").write_text("not ours")
    (folder / ".env").write_text("SECRET=1")
    return folder


def test_a_dry_run_shows_what_would_be_sent(adapter, tmp_path, capsys):
    assert main(["push", str(adapter.parent), "jane/tone", "--dry-run", "--offline", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {file["name"] for file in shown["files"]} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "tokenizer.json",
    }  # fmt: skip
    assert shown["left_out"] == [".env", "optimizer.pt"] and shown["licence"] == "mit" and shown["private"]
    assert "Rows from rows.csv, see https://example.org/home/x/y." in shown["card"] and shown["address"] is None
    files = {file.name: file for file in push(adapter, "jane/tone", dry_run=True).files}
    assert files["recipe.yaml"].content.decode().endswith("source: fpb.csv\n")
    assert json.loads(files["adapter_config.json"].content)["base_model_name_or_path"] == "tiny"
    assert files["tokenizer.json"].content is None  # a vocabulary's fragments are no paths of this machine
    everything = b"".join(file.content or file.source.read_bytes() for file in files.values())
    assert str(tmp_path).encode() not in everything and b"jane/data" not in everything


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see /mnt/disk/a b", "see a b"),
        ("'/home/user/x/runs/one/'", "'one'"),
        (r"from C:\\Users\\jane\\rows.csv,", "from rows.csv,"),
        ("~/models/llama.", "llama."),
        ("file:///srv/x/y.json", "y.json"),
        ("and/or 3/4 10-K/A https://huggingface.co/data/x org/model src/data/x ./data/x", None),
    ],
)
def test_paths_are_shortened_and_nothing_else_is(text, clean):
    assert without_paths(text)[0] == (text if clean is None else clean)


def test_secrets_are_refused_without_being_said(adapter, monkeypatch):
    monkeypatch.setenv("EODHD_API_KEY", "k3yThatNobodyKnows")
    for secret in ("hf_" + "a" * 34, "sk-" + "b1" * 15, "postgres://jane:pw@db/x", "k3yThatNobodyKnows"):
        (adapter / "README.md").write_text(CARD + secret)
        with pytest.raises(ModelError, match=r"README\.md holds") as refused:
            push(adapter, "jane/tone", dry_run=True)
        assert secret not in str(refused.value)
    require_no_secret("README.md", CARD)


SECRET = b"hf_" + b"a" * 34


def test_a_byte_that_is_no_text_hides_nothing(adapter, monkeypatch, tmp_path):
    (adapter / "config.json").write_bytes(b'{"a":"\xff /home/bob/x ' + SECRET + b'"}')
    with pytest.raises(ModelError, match=r"config\.json is no text in UTF-8 \(byte 6\).*Write it again as UTF-8"):
        push(adapter, "jane/tone", dry_run=True)
    (adapter / "config.json").unlink()
    home = tmp_path / "j\u00fcrgen"
    monkeypatch.setenv("FINTUNE_HOME", str(home))
    for inside, reason in ((SECRET, "holds a Hugging Face token"), (f"{home}/corpus".encode(), "names the local path")):
        (adapter / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\xff\x00 " + inside + b"\x15\x00")
        with pytest.raises(ModelError, match=rf"tokenizer\.model {reason}"):
            push(adapter, "jane/tone", dry_run=True)


def test_a_vocabulary_is_sent_as_it_is_or_not_at_all(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    sentencepiece = b"\n\x0e\n\x05<unk>\x15\xff\x00 \n\x08\n\x04/tmp\x15\xff/usr/bin/x"
    (adapter / "tokenizer.model").write_bytes(sentencepiece)
    (adapter / "vocab.json").write_text('{"/tmp": 1, "tmp": 2, "/tmp/": 3, "/home": 4}')
    files = {file.name: file for file in push(adapter, "jane/tone", dry_run=True).files}
    assert all(files[name].content is None for name in ("tokenizer.model", "vocab.json", "tokenizer.json"))
    for name in ("vocab.json", "tokenizer.model"):
        kept = (adapter / name).read_bytes()
        (adapter / name).write_text(f'{{"{tmp_path}/rows": 1}}')
        with pytest.raises(ModelError, match=rf"{name} names the local path {tmp_path}"):
            push(adapter, "jane/tone", dry_run=True)
        (adapter / name).write_bytes(kept)


def sharded(folder, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("model-00002-of-*.safetensors", r"lacks model-00002-of-\d+\.safetensors, one of"),
        ("model.safetensors.index.json", r"lacks model\.safetensors\.index\.json"),
        ("config.json", r"has no config\.json"),
    ],
)
def test_a_model_with_a_file_missing_is_not_sent(tiny_folder, tmp_path, missing, reason):
    folder = sharded(tmp_path / "merged", tiny_folder)
    assert len(push(folder, "jane/tone", dry_run=True).files) > 5
    next(folder.glob(missing)).unlink()
    with pytest.raises(ModelError, match=rf"{reason}.* Export or copy it again"):
        push(folder, "jane/tone", dry_run=True)


def test_an_adapter_without_its_weights_is_not_sent(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks adapter_model\.safetensors"):
        push(adapter, "jane/tone", dry_run=True)


@pytest.mark.parametrize("kept", [0, 9, 300, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "tone-q8_0.gguf"])
def test_weights_that_are_cut_off_are_named(tiny_folder, tmp_path, name, kept):
    whole = tiny_folder / name
    if name.endswith(".gguf"):
        whole = write_gguf(tiny_folder, tmp_path / name, "q8_0").path
    else:
        shutil.copy(tiny_folder / "config.json", tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / name).write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ModelError, match=rf"{name} .*It is damaged or cut off: export it again"):
        push(tmp_path, "jane/tone", dry_run=True)


def test_what_cannot_be_pushed_is_said(adapter, tmp_path):
    with pytest.raises(ModelError, match="OWNER/tone"):
        push(adapter, "tone", dry_run=True)
    with pytest.raises(ModelError, match="no name of a repository"):
        push(adapter, "a b/c", dry_run=True)
    (tmp_path / "out" / "merged").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"Push .*merged"):
        push(tmp_path / "out", "jane/tone", dry_run=True)
    with pytest.raises(ProviderError, match="offline is set"):
        push(adapter, "jane/tone")
    (adapter / "README.md").unlink()
    with pytest.raises(ModelError, match="no model card"):
        push(adapter, "jane/tone", dry_run=True)


class Hub(BaseHTTPRequestHandler):
    """The three addresses of the hub that a commit of small files takes."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        own = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.server.status != 200:
            answer = {"error": "no"}
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        elif self.path.endswith("/commit/main"):
            answer = {"commitUrl": f"{own}/jane/tone/commit/1", "commitOid": "1", "pullRequestUrl": None}
        else:
            answer = {"url": f"{own}/jane/tone", "id": "1", "name": "jane/tone"}
        text = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments) -> None:
        """Keeps the tests' output clean."""


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("FINTUNE_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_one_commit_holds_the_files_as_the_dry_run_showed_them(adapter, hub):
    shown = push(adapter, "jane/tone", dry_run=True)
    assert not hub.seen
    report = push(adapter, "jane/tone", message="First")
    assert report.address.endswith("/jane/tone/commit/1")
    created = json.loads(hub.seen[0][2])
    assert (created["name"], created["organization"], created["visibility"]) == ("tone", "jane", "private")
    assert {token for _, token, _ in hub.seen} == {"Bearer hf_" + "x" * 34}
    lines = [json.loads(line) for line in hub.seen[-1][2].splitlines()]
    assert lines[0]["value"]["summary"] == "First"
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
    assert sent == {file.name: file.content or file.source.read_bytes() for file in shown.files}


def test_a_refusal_is_one_sentence(adapter, hub, capsys):
    hub.status = 403
    assert main(["push", str(adapter), "jane/tone"]) == 2
    message = capsys.readouterr().err
    assert "refused jane/tone (403)" in message and "hf auth login" in message and "hf_x" not in message


def test_a_hub_that_cannot_be_reached_is_one_sentence(adapter, hub, capsys, monkeypatch):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert main(["push", str(adapter), "jane/tone"]) == 2
    message = capsys.readouterr().err
    assert "The hub cannot be reached (ConnectError)" in message and "Check the connection" in message


def test_a_hub_that_does_not_answer_in_time_is_one_sentence(adapter, hub, monkeypatch):
    factory = huggingface_hub.get_session
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(factory(), "timeout", 0.2)
        with pytest.raises(ProviderError, match=r"cannot be reached \(ReadTimeout\)"):
            push(adapter, "jane/tone")

"""The settings that other programs start an exported model with: an Ollama Modelfile, and YAML for ``vllm serve``.

Enters: names of files beside them, the chat template as texts, lengths and stop words. Leaves: text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fintune.models.export.chat_shape import ChatShape

_QUOTES = '"""'
_USUAL_CONTEXT = 8192
"""Tokens that Ollama reserves memory for, at most; its own default is shorter, and cuts long reports silently."""


def modelfile(
    gguf: str,
    shape: ChatShape | None,
    *,
    context: int,
    stops: Sequence[str],
    bos: str = "",
    greedy: bool = False,
    others: Sequence[str] = (),
) -> str:
    """The text of an Ollama Modelfile.

    Args:
        gguf: name of the GGUF file, which lies beside it.
        shape: the chat template; Ollama takes the one inside the GGUF file when None.
        context: tokens the model reads at most.
        stops: texts that end an answer.
        bos: the token that Ollama puts before every prompt by itself, which the template must not repeat.
        greedy: always the likeliest token, as labels are asked for.
        others: further GGUF files, named in a comment.
    """
    lines = [f"FROM ./{gguf}"]
    lines += [f"# FROM ./{other}" for other in others]
    template = go_template(shape, bos) if shape is not None else None
    if template is None:
        lines.append("# The chat template cannot be said in Ollama's language; Ollama uses the one in the GGUF file.")
    else:
        lines.append(f"TEMPLATE {_QUOTES}{template}{_QUOTES}")
    if shape is not None and shape.default_system and _QUOTES not in shape.default_system:
        lines.append(f"SYSTEM {_QUOTES}{shape.default_system}{_QUOTES}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {min(context, _USUAL_CONTEXT)}")
    if greedy:
        lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


def go_template(shape: ChatShape, bos: str = "") -> str | None:
    """The chat template in the language of Go's text/template; None where it cannot be quoted in a Modelfile."""
    system, user, answer = shape.system or ("", ""), shape.user, shape.answer
    opening, repeated = shape.opening.removeprefix(bos), ""
    if bos and not shape.opening and system[0].startswith(bos):
        system = (system[0].removeprefix(bos), system[1])
        if user[0].startswith(bos):  # before each question, so that only the first one is put there by itself
            user, repeated = (user[0].removeprefix(bos), user[1]), f"{{{{ if $i }}}}{_literal(bos)}{{{{ end }}}}"
    before_user = repeated + _literal(user[0])
    if shape.joins_user:
        before_user = f"{{{{ if not $joined }}}}{before_user}{{{{ end }}}}{{{{ $joined = false }}}}"
    system_end = _literal(system[1]) + ("{{ $joined = true }}" if shape.joins_user else "")
    parts = [
        "{{ $joined := false }}" if shape.joins_user else "",
        _literal(opening),
        "{{ range $i, $turn := .Messages }}" if repeated else "{{ range .Messages }}",
        f'{{{{ if eq .Role "system" }}}}{_literal(system[0])}{{{{ .Content }}}}{system_end}',
        f'{{{{ else if eq .Role "user" }}}}{before_user}{{{{ .Content }}}}{_literal(user[1])}',
        f'{{{{ else if eq .Role "assistant" }}}}{_literal(answer[0])}{{{{ .Content }}}}{_literal(answer[1])}',
        "{{ end }}{{ end }}",
    ]
    text = "".join(parts)
    return None if _QUOTES in text else text


def _literal(text: str) -> str:
    """Text as it stands; braces that would open an action are quoted."""
    return text.replace("{{", '{{ "{{" }}')


def vllm_yaml(settings: Mapping[str, Any], comment: str) -> str:
    """The text of a configuration for ``vllm serve --config``; keys are the long names of its options."""
    stated = {key: value for key, value in settings.items() if value is not None}
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(stated, sort_keys=False, allow_unicode=True)


def vllm_merged(folder: str, name: str, context: int) -> str:
    """For merged weights in ``folder``, relative to where vLLM is started."""
    settings = {"model": folder, "served-model-name": name, "dtype": "auto", "max-model-len": context}
    return vllm_yaml(settings, "Start in this folder: vllm serve --config vllm-merged.yaml")


def vllm_lora(
    base: str,
    adapter: str,
    name: str,
    *,
    tokenizer: str | None,
    rank: int,
    context: int,
    held: str,
    revision: str | None,
) -> str:
    """For a base with an adapter on it.

    Args:
        base: hub id or folder of the base.
        adapter: folder of the adapter, relative to where vLLM is started.
        name: what requests name as their model to be answered by the adapter; ``base`` gets the base.
        tokenizer: folder of the tokenizer and its template; the base's when None.
        rank: that vLLM reserves room for.
        context: tokens read at most.
        held: how the base was held in training; nf4 is what vLLM calls bitsandbytes.
        revision: commit of the base on the hub.
    """
    settings: dict[str, Any] = {
        "model": base,
        "revision": revision,
        "tokenizer": tokenizer,
        "served-model-name": "base",
        "enable-lora": True,
        "max-lora-rank": rank,
        "lora-modules": [f"{name}={adapter}"],
        "quantization": "bitsandbytes" if held == "nf4" else None,
        "dtype": "auto",
        "max-model-len": context,
    }
    return vllm_yaml(settings, "Start in this folder: vllm serve --config vllm-lora.yaml")

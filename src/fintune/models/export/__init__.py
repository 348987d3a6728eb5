"""Models for other programs: whole 16-bit folders, GGUF files, and the settings that Ollama and vLLM start them with.

Enters: a base and an adapter, or a model folder. Leaves: files that no longer need fintune.
"""

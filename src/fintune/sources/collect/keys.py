"""Keys of data providers: found in the environment or the system's keyring, shown nowhere.

Enters: the name of a provider. Leaves: a ``Key``, whose text only ``reveal`` gives. It is asked for at the last moment,
where a request goes out on the wire, so that no URL, exception, log line or file has ever held it.
"""

from __future__ import annotations

import os
from urllib.parse import quote, quote_plus

from fintune.schema.errors import ProviderError

VARIABLES = {"finnhub": "FINNHUB_API_KEY", "eodhd": "EODHD_API_KEY"}
"""Where the key of each provider is looked for first; the keyring has it under the service ``fintune`` otherwise."""
SIGN_UP = {"finnhub": "https://finnhub.io/register", "eodhd": "https://eodhd.com/register"}
KEYRING_SERVICE = "fintune"
MASK = "<key>"
_SHORTEST_SECRET = 8  # EODHD's public key "demo" is a word of ordinary texts


class Key:
    """The text of a key, which neither ``repr`` nor ``str`` nor pickling gives away."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The key itself, for the wire only."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return MASK

    @property
    def is_plausible(self) -> bool:
        """Whether it can be sent: a header with other letters would be refused, with its content in the message."""
        return all("!" <= letter <= "~" for letter in self._text)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("A key is not to be stored.")

    def hidden(self, text: str) -> str:
        """``text`` with the key masked, as it is and as URLs write it; a public key of a few letters stays."""
        if len(self._text) < _SHORTEST_SECRET:
            return text
        for form in sorted({self._text, quote(self._text, safe=""), quote_plus(self._text)}, key=len, reverse=True):
            text = text.replace(form, MASK)
        return text


def find_key(provider: str) -> Key:
    """The key of ``provider``: from its variable, else from the system's keyring where that library is installed.

    Raises:
        ProviderError: there is none, or what is there cannot be a key.
    """
    variable = VARIABLES[provider]
    key, place = Key(os.environ.get(variable, "").strip()), f"The variable {variable}"
    if not key:
        key, place = _from_keyring(variable), f"The keyring's entry {KEYRING_SERVICE} {variable}"
    if not key:
        raise ProviderError(
            f"There is no key for {provider}: {variable} is not set.",
            f"Get one at {SIGN_UP[provider]} and set {variable}, or store it with "
            f"`keyring set {KEYRING_SERVICE} {variable}`.",
        )
    if not key.is_plausible:
        raise ProviderError(f"{place} holds spaces or letters that no key has.", "Copy the key again.")
    return key


def _from_keyring(variable: str) -> Key:
    try:
        import keyring
    except ImportError:
        return Key("")
    try:
        return Key((keyring.get_password(KEYRING_SERVICE, variable) or "").strip())
    except keyring.errors.KeyringError:  # none on this system, or locked
        return Key("")

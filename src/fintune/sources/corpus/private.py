"""What identifies a person, replaced by its kind: e-mail addresses, phone, IBAN, card and US social security numbers.

Enters: a text. Leaves: the text with ``[EMAIL]`` and the like, and counts by kind. Numbers with a check digit count
only where it is right, so that amounts and identifiers of securities stay.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d.,]?\d)")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_PHONE = re.compile(
    r"(?<![\w.+$£€-])(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}+"
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[ .-]\d{4})(?![\w-]|[.,]\d)"
)
_CODE = re.compile(r"\+(?:\d{1,3}(?!\d)|\d\d)")
_LEAST_DIGITS = 8
"""Of a phone number after the country's code."""


def luhn(number: str) -> bool:
    """Whether the digits of a card number end in the right check digit."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the check digits of an IBAN are right (ISO 7064, modulo 97)."""
    letters = text.replace(" ", "")
    return 15 <= len(letters) <= 34 and int("".join(str(int(c, 36)) for c in letters[4:] + letters[:4])) % 97 == 1


def is_phone(text: str) -> bool:
    """Whether a number with a country's code is long enough for one and has no decimal part; others have a form."""
    code = _CODE.match(text)
    if code is None:
        return True
    points = text.count(".")
    is_decimal = points == 1 or (points > 1 and " " in text)
    return not is_decimal and sum(map(str.isdigit, text[code.end() :])) >= _LEAST_DIGITS


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _EMAIL, bool),
    ("iban", _IBAN, is_iban),
    ("card", _CARD, luhn),
    ("ssn", _SSN, bool),
    ("phone", _PHONE, is_phone),
)


def without_private(text: str) -> tuple[str, Counter[str]]:
    """The text with what identifies a person replaced by its kind in brackets, and how often each kind was."""
    counts: Counter[str] = Counter()
    for kind, pattern, is_valid in _KINDS:

        def replaced(match: re.Match[str], kind: str = kind, valid: Callable[[str], bool] = is_valid) -> str:
            if not valid(match[0]):
                return match[0]
            counts[kind] += 1
            return f"[{kind.upper()}]"

        text = pattern.sub(replaced, text)
    return text, counts

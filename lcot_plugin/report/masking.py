"""Arguments of a run in, the same without secrets out: API keys, tokens, passwords in addresses become `***`.

What is a secret: the value of a key that says so, whatever a text hands over under such a name (`--api-key x`,
`judge(api_key=x)`, `?token=x`), the password of an address, texts that look like a known kind of key, and the values of
environment variables with such names. Rather too much is masked than too little. Consumer: integration.run_record.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_WORDS = (
    r"(?:api[_-]?key|apikey|access[_-]?key|private[_-]?key|secret[_-]?key|webhook[_-]?url|webhook|token|password|passwd"
    r"|secret|credentials?|authorization)"
)
_KEY = re.compile(rf"(?:^|.*[_\-.\s]){_WORDS}$", re.IGNORECASE)
"""`hub_token`, `swanlab_api_key`; not `pack_max_tokens`, nor `grpo_vllm_api_key_env`, which names a variable."""
_HANDED_OVER = re.compile(
    rf"""(?P<name>\b[\w-]*?{_WORDS}["']?\s*[=:]\s*|--?[\w-]*?{_WORDS}\s+)"""
    r"""(?P<value>"[^"]*"|'[^']*'|(?:bearer\s+|basic\s+)?[^\s,;&)}\]"']+)""",
    re.IGNORECASE,
)
"""`api_key=x`, `"api_key": "x"`, `--api-key x`, `Authorization: Bearer x`."""
_VARIABLE = re.compile(r"[A-Z0-9_]+_KEY")
"""`OPENAI_KEY`, as variables of an environment are called."""
_ADDRESS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)[^\s/]+@", re.IGNORECASE)
"""Up to the last @: a password may hold one."""
_QUERY = re.compile(r"""(?P<name>[?&](?:key|sig|signature|x-amz-[a-z-]+)=)[^\s&#"',)}\]]+""", re.IGNORECASE)
"""`?key=x`, and what signs an address for whoever has it."""
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)
_MIN_LENGTH = 8
"""Characters of a variable's value; shorter ones occur in any text."""


def masked(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A copy of plain values (dicts, lists, texts, numbers) without secrets. environment: default the process's own."""
    environment = os.environ if environment is None else environment
    secrets = sorted(
        {text for name, text in environment.items() if is_secret(name) and len(text) >= _MIN_LENGTH},
        key=len,
        reverse=True,
    )
    return _masked(value, secrets)


def is_secret(name: str) -> bool:
    """Whether what goes by this name is not to be seen."""
    return bool(_KEY.match(name) or _VARIABLE.fullmatch(name))


def _masked(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            name: MASK if is_secret(str(name)) and _says_something(inner) else _masked(inner, secrets)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_masked(inner, secrets) for inner in value]
    return _masked_text(value, secrets) if isinstance(value, str) else value


def _says_something(value: Any) -> bool:
    return value not in (None, "", True, False)


def _masked_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _ADDRESS.sub(rf"\g<scheme>{MASK}@", text)
    text = _QUERY.sub(rf"\g<name>{MASK}", text)
    text = _HANDED_OVER.sub(_without_value, text)
    return _KNOWN.sub(MASK, text)


def _without_value(match: re.Match[str]) -> str:
    quote = match["value"][0] if match["value"][0] in "\"'" else ""
    return f"{match['name']}{quote}{MASK}{quote}"

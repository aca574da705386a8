"""JSON values with a digest, so that a changed bit in a file that a build reads again is noticed."""

import hashlib
import json
from typing import Any


def seal(value: dict, key: str = '') -> dict:
    """Return a JSON object with the field 'digest', which `unseal` checks; `key` says what it belongs to."""
    return {**value, 'digest': _digest(value, key)}


def unseal(value: Any, key: str = '') -> dict:
    """Return what `seal` got with the same `key`. Raise ValueError if it is not that."""
    if not isinstance(value, dict):
        raise ValueError('it is not a JSON object')
    content = {name: one for name, one in value.items() if name != 'digest'}
    if value.get('digest') != _digest(content, key):
        raise ValueError('it does not have its digest')
    return content


def _digest(value, key):
    return hashlib.sha256(json.dumps([key, value], sort_keys=True).encode()).hexdigest()

"""Changes of files: by bytes, and by the structure of JSON, headers and archives."""

import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

from io_samples import header_file

Files = dict[str, bytes]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 4, 2**31, 2**63, 2**64, 10**400, -(10**30)),
    *(0.5, -0.0, 1e308, 1e-320, 4.0, float("nan"), float("inf")),
    *("", "x", "rank", "\x1b[2J", "\ud800", "\u202eabc", "..", "/", "a" * 600, "é"),
    *([], {}, [[]], {"": None}, [1, 2], ["x"], {"x": 1}, [None] * 50),
)
WORDS = (
    *(b"lora_A", b"lora_B", b"lora_E", b"weight", b"base_model.model.", b"default"),
    *(b"vera_A", b"vera_B", b"modules_to_save", b"F32", b"BF16", b"F8_E4M3", b"BOOL"),
    *(b"LORA", b"ADALORA", b"VERA", b"null", b"NaN", b"1e999", b"-1", b"\\ud800"),
    *(b"\x1b[2J", b"\xff\xfe", b"\x00", b"{}", b"[", b"]", b",", b'"', b"99999999999"),
    *(b"a*a*a*", b"(a|b)+", b"(?=", b"..", b"PK\x01\x02", b"PK\x05\x06", b"\x80\x02"),
    *(b"R", b"h\x00", b"q\x00", b"K\xff", b"\x8b", b"\x96", b"(", b"t", b"Q", b"."),
)


def change(valid: Files, dice: random.Random) -> Files:
    """The files with one or a few changes."""
    files = dict(valid)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        name = dice.choice(sorted(files))
        if dice.random() < 0.03:
            _move(files, name, dice)
            if not files:
                break
            continue
        files[name] = _changed(name, files[name], dice)
    return files


def _move(files: Files, name: str, dice: random.Random) -> None:
    """A file vanishes, becomes empty, or gets the content of another."""
    kind = dice.randrange(3)
    if kind == 0:
        del files[name]
    else:
        files[name] = b"" if kind == 1 else files[dice.choice(sorted(files))]


def _changed(name: str, data: bytes, dice: random.Random) -> bytes:
    structures: list[Callable[[bytes, random.Random], bytes]] = [_bytes]
    if name.endswith((".json", ".jsonl")):
        structures += [_json, _json]
    if name.endswith(".safetensors"):
        structures += [_header, _header]
    if data.startswith(b"PK"):
        structures += [_zip, _zip]
    try:
        return dice.choice(structures)(data, dice)
    except Exception:
        return _bytes(data, dice)  # an earlier change has taken its structure


def _bytes(data: bytes, dice: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        place = dice.randrange(len(found) + 1)
        kind = dice.randrange(6)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << dice.randrange(8)
        elif kind == 1 and place < len(found):
            found[place] = dice.randrange(256)
        elif kind == 2:
            found[place:place] = dice.choice(WORDS)
        elif kind == 3:
            del found[place : place + dice.choice((1, 2, 8, 100))]
        elif kind == 4:
            piece = found[place : place + dice.choice((1, 4, 40))]
            found[place:place] = piece * dice.choice((1, 3, 50))
        elif place:
            end = place + dice.choice((1, 8, len(found)))
            found[place:end] = b"" if dice.random() < 0.5 else dice.choice(WORDS)
    return bytes(found)


def _json(data: bytes, dice: random.Random) -> bytes:
    lines = data.split(b"\n") if b"\n{" in data else [data]
    place = dice.randrange(len(lines))
    lines[place] = _dumped(_tree(json.loads(lines[place]), dice))
    return b"\n".join(lines)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _tree(value: Any, dice: random.Random) -> Any:
    """One node of a JSON value is removed, added, replaced, renamed or swapped."""
    if not isinstance(value, dict | list) or not value or dice.random() < 0.1:
        return dice.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = dice.choice(keys)
    kind = dice.randrange(8)
    if kind < 4:
        value[key] = _tree(value[key], dice)
    elif kind == 4:
        value[key] = dice.choice(VALUES)
    elif kind == 5:
        del value[key]
    elif kind == 6:
        other = dice.choice(keys)
        value[key], value[other] = value[other], value[key]
    elif isinstance(value, dict):
        names = ("", "x", "\x1b[2J", "\ud800", "r", "lora_alpha", f"{key}.x", "a" * 600)
        value[dice.choice(names)] = value.get(key)
    else:
        value.append(value[key])
    return value


def _header(data: bytes, dice: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    if dice.random() < 0.2:  # a tensor twice, or renamed
        key = dice.choice(list(table))
        text = _dumped(table)[:-1] + b", " + _dumped({key: table[key]})[1:]
    elif dice.random() < 0.3:
        old, new = dice.choice(list(table)), dice.choice(WORDS).decode("latin-1")
        renamed = {
            old.replace("lora_A", new, 1) if k == old else k: v
            for k, v in table.items()
        }
        text = _dumped(renamed)
    else:
        text = _dumped(_tree(table, dice))
    size = len(text) if dice.random() < 0.9 else dice.choice((0, 2**32, 2**63, 7))
    return header_file(text, data[8 + length :], size)


def _zip(data: bytes, dice: random.Random) -> bytes:
    """An entry is changed, removed, renamed, doubled, compressed, with right sums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    place = dice.randrange(len(entries))
    name, content = entries[place]
    kind = dice.randrange(7)
    how = zipfile.ZIP_STORED
    if kind < 3:
        entries[place] = (name, _bytes(content, dice))
    elif kind == 3:
        del entries[place]
    elif kind == 4:
        entries[place] = (name + dice.choice(("x", "\x1b", "é", "/../x")), content)
    elif kind == 5:
        entries.append((name, content))
    else:
        how = zipfile.ZIP_DEFLATED
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(out, "w", how) as archive:
            for name, content in entries:
                archive.writestr(name, content)
    return out.getvalue()

"""The tables and patterns of ftfy that crates/models/src/tokenizer/ftfy.rs works by, from the installed ftfy: crates/models/data/ftfy.json.

    pip install ftfy==6.3.1 && python tests/goldens/tokenizer/ftfy_tables.py

Patterns are written without Python's verbose whitespace, and with classes for what `\\s` and `\\w` mean to Python. Those over bytes are
written over the characters U+0000 to U+00FF.
"""

import html
import json
import pathlib
import re
import string

from ftfy import chardata, fixes
from ftfy.badness import BADNESS_RE

OUT = pathlib.Path(__file__).resolve().parents[3] / "crates" / "models" / "data" / "ftfy.json"


def terse(pattern: re.Pattern) -> str:
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    verbose = bool(pattern.flags & re.VERBOSE)
    out, inside, i = [], False, 0
    while i < len(text):
        c = text[i]
        if c == "\\":
            escape = text[i : i + 2]
            assert not (inside and escape in ("\\s", "\\w")), text
            out.append({"\\s": r"[\s\x1c-\x1f]", "\\w": r"[\p{L}\p{N}_]"}.get(escape, escape))
            i += 2
            continue
        if verbose and not inside and c in string.whitespace:
            pass
        elif verbose and not inside and c == "#":
            i = text.index("\n", i)
        else:
            # Signs that other engines read as operators within a class.
            out.append("\\" + c if inside and c in "[&~" else c)
            inside = c == "[" or inside and c != "]"
        i += 1
    return "".join(out)


def decoded(encoding: str) -> str:
    return bytes(range(256)).decode(encoding)


def main() -> None:
    tables = {
        "source": "ftfy 6.3.1, Apache-2.0, https://github.com/rspeer/python-ftfy",
        "encodings": [[name, decoded(name)] for name in chardata.CHARMAP_ENCODINGS],
        "entities": chardata.HTML_ENTITIES,
        "charrefs": {str(k): v for k, v in html._invalid_charrefs.items()},
        "no_charrefs": sorted(html._invalid_codepoints),
        "ligatures": {chr(k): v for k, v in chardata.LIGATURES.items()},
        "widths": {chr(k): v for k, v in chardata.WIDTH_MAP.items()},
        "controls": "".join(map(chr, chardata.CONTROL_CHARS)),
        "single_quotes": terse(chardata.SINGLE_QUOTE_RE),
        "double_quotes": terse(chardata.DOUBLE_QUOTE_RE),
        "entity": terse(chardata.HTML_ENTITY_RE),
        "terminal": terse(fixes.ANSI_RE),
        "badness": terse(BADNESS_RE),
        "utf8": terse(chardata.UTF8_DETECTOR_RE),
        "altered_utf8": terse(chardata.ALTERED_UTF8_RE),
        "a_grave": terse(fixes.A_GRAVE_WORD_RE),
        "lossy_utf8": terse(chardata.LOSSY_UTF8_RE),
    }
    OUT.write_text(json.dumps(tables, ensure_ascii=True, indent=0) + "\n")
    print(OUT.stat().st_size)


if __name__ == "__main__":
    main()

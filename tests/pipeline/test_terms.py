"""What the card of a model says of its licence and citation, and what cards that were made to harm come to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.models.files import CONVERSION, open_files
from pipeline.models.terms import MOST_CARD, NOTHING_SAID, Terms, card_terms, recorded_terms


def head(*lines: str) -> bytes:
    return "\n".join(("---", *lines, "---", "# A model", "")).encode()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (head("tags: [a]", "license: apache-2.0", "x: {"), "apache-2.0"),
        (head("license:", "- mit", "- cc0-1.0"), "mit, cc0-1.0"),
        (head("license: other", "license_name: own", "license_link: https://x.org/l"), "own (https://x.org/l)"),
        (head("license: other", "license_link: LICENSE.md"), "a licence of its own"), (head("license: unknown"), None),
        (head("license: other"), None), (head("license: 3"), None), (head("a: 1"), None), (b"license: mit\n", None),
        (b"", None),
        (b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n", "mit"), (head('license: "m\\e[2Ji\\u202et"'), "m[2Jit"),
    ],
)  # fmt: skip
def test_the_licence_of_a_card_is_what_its_yaml_names(card: bytes, licence: str | None) -> None:
    assert card_terms(card).licence == licence


def test_what_to_cite_is_the_first_bibtex_in_a_block_of_its_own() -> None:
    card = head() + b"```python\n@decorated\ndef f(): {}\n```\n\n"
    card += b"```bibtex\n@misc{a,\n\ttitle={A}\n}\n```\n```\n@misc{b}\n```\n"
    assert card_terms(card).citation == "@misc{a,\n  title={A}\n}"
    assert card_terms(b"@misc{not in a block}").citation is None


@pytest.mark.parametrize(
    "card",
    [
        head("license: " + "[" * 5000), head("license: &a [*a]"), b"---\n" + b"license:\n- a\n" * 80_000 + b"---\n",
        b"```\n@a{" * 150_000, b"```\n" + b" \n" * 500_000, b"```\n@a{" + b"}\n" * 500_000, b"---" + b"\n--" * 300_000,
        b"\xff" * 100, b"---\n" + b"license:" + b" " * 10**6,
    ],
)  # fmt: skip
def test_a_card_that_was_made_to_harm_takes_no_time_and_breaks_nothing(card: bytes) -> None:
    started = time.process_time()
    found = card_terms(card[:MOST_CARD])
    assert time.process_time() - started < 5
    assert all(text is None or len(text) <= 4096 for text in (found.licence, found.citation))


def test_a_record_of_conversion_comes_before_a_card_and_texts_alone_count(tmp_path: Path) -> None:
    assert recorded_terms({"licence": ["mit"], "citation": 3}) == NOTHING_SAID
    (tmp_path / "README.md").write_bytes(head("license: mit") + b"```\n@misc{card}\n```\n")
    assert open_files(tmp_path).terms == Terms("mit", "@misc{card}")
    (tmp_path / CONVERSION).write_text('{"licence": "CC  BY-NC 4.0", "citation": null}')
    files = open_files(tmp_path)
    assert files.origin.terms == Terms("CC BY-NC 4.0", "@misc{card}")
    assert set(files.origin.files) == {CONVERSION}

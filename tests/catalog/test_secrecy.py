"""What lets somebody in is taken out of text, in whatever form it is written there, and the rest can still be read."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.secrecy import HIDDEN, guard_logs, without_secrets

SECRET = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'<>\\"), min_size=12, max_size=40
).filter(lambda text: any(map(str.isalnum, text)) and HIDDEN not in text)
"""Anything without spaces, quotes and brackets."""
WORD = st.text(st.sampled_from("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"), min_size=16, max_size=40)
NAMES = ("password", "SecretAccessKey", "aws_secret_access_key", "AccessKeyId", "SessionToken", "X-Amz-Security-Token",
         "api_key", "api-key", "PGPASSWORD", "AccountKey", "client_secret", "HF_TOKEN", "X-Amz-Signature")  # fmt: skip


def spelt(secret: str, name: str) -> dict[str, str]:
    """A secret of a name as it is found in errors."""
    return {
        "json": json.dumps({name: secret, "Code": "x"}),
        "tight json": json.dumps({"Code": "x", name: secret}, separators=(",", ":")),
        "json in json": json.dumps({"body": json.dumps({name: secret})}),
        "python": repr({name: secret, "other": 1}),
        "bytes": repr({name: secret.encode()}),
        "xml": f"<Error><{name}>{secret}</{name}><Code>x</Code></Error>",
        "ini": f"{name} = {secret}",
        "setting": f"{name}={secret}",
        "header": f"{name}: {secret}",
        "cut": f'{{"{name}": "{secret}',
        "option": f"--{name} {secret}",
    }


@settings(max_examples=300)
@given(SECRET, st.sampled_from(NAMES), st.sampled_from(sorted(spelt("", ""))), st.sampled_from(["", "no: ", "a\n"]))
def test_a_value_that_is_called_a_secret_is_taken_out(secret: str, name: str, form: str, before: str) -> None:
    told = without_secrets(before + spelt(secret, name)[form])
    assert secret not in told
    assert HIDDEN in told
    assert told.startswith(before.rstrip())


@settings(max_examples=300)
@given(SECRET, WORD, st.sampled_from(["https", "postgresql", "postgresql+asyncpg", "s3", "redis"]))
def test_users_and_passwords_of_urls_are_taken_out_whatever_they_hold(password: str, user: str, scheme: str) -> None:
    urls = {
        "token": f"{scheme}://{user}@host.example/x",
        "both": f"{scheme}://{user}:{password}@host.example/x",
        "password": f"{scheme}://:{password}@host.example/x",
        "quoted": f"{scheme}://{user}:{quote(password, safe='')}@host.example/x",
        "bare": f"{user}:{password}x@host.example",
    }
    for name, url in urls.items():
        told = without_secrets(f"cannot reach {url} now")
        assert user not in told or name == "password"
        assert password not in told and quote(password, safe="") not in told
        assert told.startswith("cannot reach ") and told.endswith(" now")


@settings(max_examples=200)
@given(WORD)
def test_tokens_headers_and_signed_urls_are_taken_out(word: str) -> None:
    for text in (
        f"Authorization: Basic {word}==",
        f"Authorization: Basic {word[:8]} {word}",
        f"'Authorization': 'AWS4-HMAC-SHA256 Credential={word}/x, Signature={word}'",
        f"{{'authorization': 'Bearer {word}', 'accept': 'x'}}",
        f"authorization=token {word}",
        f"sent basic {word}==",
        f"hf_{word} is no token of organisation x",
        f"ghp_{word}",
        f"GET https://host/x?X-Amz-Credential={word}&X-Amz-Signature={word} failed",
        f"GET /x?sig={word} failed",
        f"-----BEGIN RSA PRIVATE KEY-----\n{word}\n{word}\n-----END RSA PRIVATE KEY-----",
    ):
        assert word not in without_secrets(text)


@settings(max_examples=300)
@given(st.text(max_size=300))
def test_text_that_was_made_harmless_stays_as_it_is(text: str) -> None:
    once = without_secrets(text)
    assert without_secrets(once) == once


@pytest.mark.parametrize("text", [
    "tokens of a sentence", "s3://bucket/path/file.parquet", "a/b.png: found 3; expected 4", "user@host",
    "s3://bucket/hub/org/name@1.2.0", "https://huggingface.co/datasets/org/name@>=1.2,<2",
    "out of memory: tried to allocate 2.00 GiB (GPU 0; 79.1 GiB total)", "is it?", "what? yes = no",
    "CalledProcessError: Command '['a', 'b']' returned 1", "mean of image 3 = 0.5", "http://127.0.0.1:4200/api",
    "the model has no bottleneck: keys ['down.0', 'up.0']", "conv1.weight: found (3, 3); expected (4, 4)",
])  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize("piece", ["a", "a:", "://", "token", "?", "@", "a:b@", "-", '"', "\\", "<password>", "basic "])
def test_long_text_takes_no_long_time(piece: str) -> None:
    began = time.monotonic()
    without_secrets(piece * (20_000 // len(piece)))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("before", [True, False], ids=["guarded first", "guarded later"])
def test_what_the_client_logs_is_clean_for_every_handler_wherever_it_listens(before: bool) -> None:
    library, root = logging.getLogger("huggingface_hub"), logging.getLogger()
    speaker = logging.getLogger("huggingface_hub.some.module")
    former = list(library.handlers)
    library.handlers.clear()
    own, users = (logging.StreamHandler(io.StringIO()) for _ in range(2))
    try:
        if before:
            guard_logs()
        library.addHandler(own)
        root.addHandler(users)
        guard_logs()
        guard_logs()
        try:
            raise OSError("https://store.example/x?X-Signature=abcdef")
        except OSError:
            speaker.error("while requesting %s %s", "PUT", "https://store.example/y?signature=abcdef", exc_info=True)
        for handler in (own, users):
            said = handler.stream.getvalue()
            assert f"while requesting PUT https://store.example/y?{HIDDEN}" in said
            assert f"https://store.example/x?{HIDDEN}" in said and "abcdef" not in said
        assert len(library.handlers) == 2
    finally:
        root.removeHandler(users)
        library.handlers[:] = former


def test_whatever_runs_in_flows_is_guarded_and_so_is_the_hub() -> None:
    asked = "import {}, logging; print(type(logging.getLogger('huggingface_hub').handlers[0]).__name__)"
    for module in ("flows", "catalog.hub.hugging_face_calls"):
        done = subprocess.run([sys.executable, "-c", asked.format(module)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "_Cleaner"


@pytest.mark.parametrize("key", ["AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "AIzaSyA-1234567890abcdefghij"])
def test_keys_of_clouds_are_taken_out(key: str) -> None:
    assert key[4:] not in without_secrets(f"unknown id {key} of {key}/x")


@pytest.mark.parametrize("text", ["asian-faces of 2024", "aizawa-portraits", "basic features, bearer bonds"])
def test_words_that_begin_as_keys_do_are_left_alone(text: str) -> None:
    assert without_secrets(text) == text

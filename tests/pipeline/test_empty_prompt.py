"""The embedding of no words: from the recorded files alone, in single precision, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.models.conditional import TEXT_FILES, empty_prompt
from tests.pipeline.test_conditional import text_folder


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_prompt_is_as_long_as_the_encoder_has_positions(tmp_path: Path) -> None:
    folder = text_folder(tmp_path)
    before = empty_prompt(folder).embedding
    for length in (10**30, 10**6):
        edited(folder / "tokenizer/tokenizer_config.json", model_max_length=length)
        torch.testing.assert_close(empty_prompt(folder).embedding, before)
    (folder / "tokenizer/tokenizer_config.json").unlink()
    assert empty_prompt(folder).embedding.shape == (1, 7, 6)


def test_a_half_precision_encoder_is_run_in_single(tmp_path: Path) -> None:
    folder = text_folder(tmp_path)
    path = folder / "text_encoder/model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file({name: tensor.float() for name, tensor in half.items()}, path, metadata={"format": "pt"})
    expected = empty_prompt(folder).embedding
    save_file(half, path, metadata={"format": "pt"})
    edited(folder / "text_encoder/config.json", dtype="float16")
    assert torch.equal(empty_prompt(folder).embedding, expected)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_tokenizer_without_its_vocabulary_is_refused(missing: str, tmp_path: Path) -> None:
    folder = text_folder(tmp_path)
    (folder / "tokenizer" / missing).unlink()
    with pytest.raises(ModelError, match=r"tokenizer: found no vocabulary"):
        empty_prompt(folder)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("vocab.json", "{}", "a vocabulary without"),
        ("vocab.json", "[", "parts that do not load"),
        ("tokenizer_config.json", '{"fast_tokenizer_files": ["../../tokenizer.1.0.json"]}', "fast_tokenizer_files"),
        ("tokenizer_config.json", '{"model_max_length": -5}', "parts that do not load"),
    ],
)
def test_a_tokenizer_that_is_not_whole_is_refused(file: str, content: str, reason: str, tmp_path: Path) -> None:
    folder = text_folder(tmp_path)
    (folder / "tokenizer" / file).write_text(content)
    with pytest.raises(ModelError, match=reason):
        empty_prompt(folder)


def test_the_prompt_comes_from_the_recorded_files_and_from_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    folder, seen = text_folder(tmp_path), set()
    for name in ("added_tokens.json", "chat_template.jinja", "notes.txt"):
        (folder / "tokenizer" / name).write_text("{}")
    real = transformers.CLIPTokenizer.from_pretrained

    def watched(place: Path, **options: Any) -> Any:
        seen.update(f"tokenizer/{file.name}" for file in place.iterdir())
        return real(place, **options)

    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", watched)
    empty_prompt(folder)
    assert "tokenizer/added_tokens.json" in seen
    assert seen <= set(TEXT_FILES)


def test_the_encoder_is_loaded_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = text_folder(tmp_path)
    capfd.readouterr()
    empty_prompt(folder)
    assert capfd.readouterr() == ("", "")


def test_a_part_of_a_pipeline_is_told_to_name_the_whole(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Name the whole pipeline's folder"):
        empty_prompt(tmp_path)

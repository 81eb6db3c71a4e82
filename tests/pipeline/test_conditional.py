"""UNets with cross-attention behind the denoiser contract, under one prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models.conditional import ConditionalDenoiser, OwnPrompt, empty_prompt
from pipeline.models.forward_mode import forward_mode_copy
from tests.pipeline.tiny_latents import noise, tiny_conditional, tiny_conditional_denoiser, tiny_prompt
from tests.pipeline.tiny_models import tiny_scheduler

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd sides": {"size": (7, 6)},
    "classes": {"num_class_embeds": 4, "class_embeddings_concat": False},
    "linear projections": {"use_linear_projection": True, "cross_attention_dim": 6, "center_input_sample": True},
    "learned variance": {"out_channels": 8},
    "plain middle block": {"mid_block_type": "UNetMidBlock2D"},
    "cross-attention norm": {"only_cross_attention": True, "time_embedding_act_fn": "silu"},
}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[ConditionalDenoiser, Any]:
    network = tiny_conditional(**MODELS[name]).to(dtype)
    label = 2 if "num_class_embeds" in MODELS[name] else None
    return ConditionalDenoiser(network, tiny_scheduler("epsilon"), tiny_prompt(), class_label=label), network


@pytest.mark.parametrize("name", MODELS)
def test_the_noise_is_the_networks_own(name: str) -> None:
    denoiser, network = made(name)
    x = noise(denoiser.info.image_shape, torch.float64, 3)
    label = {"class_labels": torch.full((3,), 2)} if name == "classes" else {}
    words = tiny_prompt().double().expand(3, -1, -1)
    with torch.no_grad():
        own = network(x, 20, encoder_hidden_states=words, **label).sample[:, : x.shape[1]]
    torch.testing.assert_close(denoiser.predict_noise(x, 20), own)
    torch.testing.assert_close(denoiser.differentiable().predict_noise(x, 20), own)


@pytest.mark.parametrize("name", ["plain", "odd sides"])
def test_the_halves_before_and_behind_h_make_the_whole(name: str) -> None:
    denoiser, _ = made(name)
    x = noise(denoiser.info.image_shape, torch.float64)
    h = denoiser.bottleneck(x, 20)
    assert tuple(h.shape[1:]) == denoiser.info.bottleneck_shape
    behind = denoiser.noise_from_bottleneck(x, 20)
    torch.testing.assert_close(behind(h), denoiser.predict_noise(x, 20))
    shifts = noise(tuple(h.shape[1:]), torch.float64, 2, seed=5)
    together = behind(h + shifts)
    for i, shift in enumerate(shifts):
        torch.testing.assert_close(together[i : i + 1], denoiser.predict_noise(x, 20, shift[None]))


def test_another_prompt_is_another_model() -> None:
    one = ConditionalDenoiser(tiny_conditional(), tiny_scheduler("epsilon"), tiny_prompt(2))
    two = ConditionalDenoiser(tiny_conditional(), tiny_scheduler("epsilon"), tiny_prompt(3))
    x = noise(one.info.image_shape)
    assert one.info.fingerprint != two.info.fingerprint
    assert not torch.allclose(one.predict_noise(x, 20), two.predict_noise(x, 20))
    assert one.info == tiny_conditional_denoiser().info


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        (torch.zeros(1, 5, 6), "zeros"),
        (torch.full((1, 5, 6), torch.nan), "not finite"),
        (torch.ones(2, 5, 6), r"\(2, 5, 6\)"),
        (torch.ones(1, 5, 7), r"\(1, 5, 7\); expected shape \(1, L, 6\)"),
        (torch.ones(1, 0, 6), r"\(1, 0, 6\)"),
        (torch.ones(5, 6), r"\(5, 6\)"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: torch.Tensor, found: str) -> None:
    with pytest.raises(ModelError, match=f"prompt: found .*{found}"):
        ConditionalDenoiser(tiny_conditional(), tiny_scheduler(), prompt)


@pytest.mark.parametrize(
    "options",
    [
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "encoder_hid_dim": 6},
        {"time_cond_proj_dim": 4},
        {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 3},
        {"encoder_hid_dim": 5, "encoder_hid_dim_type": "text_proj"},
    ],
)
def test_conditions_that_are_no_prompt_are_refused_by_name(options: dict[str, Any]) -> None:
    named = next(key for key in options if "type" in key or "time" in key)
    with pytest.raises(ModelError, match=f"{named}: found .* no adapter"):
        ConditionalDenoiser(tiny_conditional(**options), tiny_scheduler(), tiny_prompt())


@pytest.mark.parametrize(
    "options",
    [
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D")},
        {"up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_attention_that_plain_products_leave_out_is_refused_at_once(options: dict[str, Any]) -> None:
    network = tiny_conditional(**options)
    with pytest.raises(ModelError, match=r"block_types?: found \w*SimpleCrossAttn\w*; .*no Jacobians"):
        ConditionalDenoiser(network, tiny_scheduler(), tiny_prompt())
    with pytest.raises(ModelError, match="added"):
        forward_mode_copy(network)


def text_folder(folder: Path, width: int = 6) -> Path:
    """A tiny CLIP text encoder and its tokenizer, as a pipeline has them."""
    transformers: Any = pytest.importorskip("transformers")
    (folder / "tokenizer").mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>"]
    (folder / "tokenizer/vocab.json").write_text(str({word: i for i, word in enumerate(words)}).replace("'", '"'))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer/tokenizer_config.json").write_text(
        '{"model_max_length": 7, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}'
    )
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=4, hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=7, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def test_the_empty_prompt_is_embedded_by_the_pipelines_own_encoder(tmp_path: Path) -> None:
    folder = text_folder(tmp_path)
    prompt = empty_prompt(folder)
    embedding = prompt.embedding
    assert (embedding.shape, embedding.dtype, embedding.requires_grad) == ((1, 7, 6), torch.float32, False)
    transformers: Any = pytest.importorskip("transformers")
    encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        truth = encoder(torch.tensor([[0, *[1] * 6]])).last_hidden_state
    torch.testing.assert_close(embedding, truth)
    ConditionalDenoiser(tiny_conditional(), tiny_scheduler(), prompt)


def test_the_last_bits_of_its_own_prompt_do_not_change_a_model() -> None:
    one = tiny_prompt()
    two = torch.nextafter(one, one + 1)
    assert not torch.equal(one, two)

    def fingerprint(prompt: torch.Tensor | OwnPrompt) -> str:
        return ConditionalDenoiser(tiny_conditional(), tiny_scheduler(), prompt).info.fingerprint

    own = fingerprint(OwnPrompt(one, "a"))
    assert own == fingerprint(OwnPrompt(two, "a"))
    assert len({own, fingerprint(OwnPrompt(one, "b")), fingerprint(one), fingerprint(two)}) == 4


def test_the_identity_of_the_empty_prompt_is_what_it_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = text_folder(tmp_path)
    first = empty_prompt(folder)
    clip: Any = pytest.importorskip("transformers").CLIPTextModel
    forward = clip.forward

    def other_arithmetic(self: Any, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        output.last_hidden_state = torch.nextafter(output.last_hidden_state, torch.zeros(()))
        return output

    with monkeypatch.context() as machine:
        machine.setattr(clip, "forward", other_arithmetic)
        second = empty_prompt(folder)
    assert not torch.equal(first.embedding, second.embedding)
    assert first.identity == second.identity

    def changed(name: str, old: str, new: str) -> str:
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        identity = empty_prompt(folder).identity
        path.write_text(text)
        return identity

    others = {
        changed("tokenizer/tokenizer_config.json", '"pad_token": "<|endoftext|>"', '"pad_token": "a</w>"'),
        changed("text_encoder/config.json", '"hidden_act": "quick_gelu"', '"hidden_act": "gelu"'),
    }
    encoder = clip.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    encoder.save_pretrained(folder / "text_encoder")
    assert len(others | {first.identity, empty_prompt(folder).identity}) == 4


def test_an_encoder_of_other_weights_is_refused(tmp_path: Path) -> None:
    folder = text_folder(tmp_path)
    (folder / "text_encoder/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="parts that do not load"):
        empty_prompt(folder)


def test_without_transformers_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install .rhumb.masks...*prompt"):
        empty_prompt(tmp_path)


def test_a_model_without_text_encoder_asks_for_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no text_encoder and tokenizer.*Pass the embedding"):
        empty_prompt(tmp_path)

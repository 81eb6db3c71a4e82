"""The denoiser contract over diffusers' `UNet2DConditionModel`: cross-attention to one prompt, fixed at construction.

`prompt` is where text comes in: an embedding of it, or of no words at all. Guidance, which needs two of them, mixes two
denoisers (`prompted.py`).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import UNet2DConditionModel

from pipeline.errors import ModelError
from pipeline.models.fingerprints import fingerprint
from pipeline.models.quiet import quiet
from pipeline.models.unet2d import Encoded, UNet2DDenoiser

TEXT_FILES = (
    *(f"text_encoder/{name}" for name in ("config.json", "model.safetensors")),
    *(f"tokenizer/{name}" for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
                                       "tokenizer.json", "added_tokens.json")),
)  # fmt: skip

# Configuration keys of further inputs, which this adapter has no place for, and the values that mean none.
_NO_FURTHER_INPUT: dict[str, tuple[object, ...]] = {
    "addition_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
    "attention_type": (None, "default"),
    "class_embed_type": (None, "timestep"),
}
_BLOCKS = ("down_block_types", "mid_block_type", "up_block_types")
# Settings of a text encoder that its weights do not tell and that change what it computes.
_TEXT_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "use_attention_mask")


@dataclass(frozen=True)
class OwnPrompt:
    """A prompt embedded by the pipeline's own text encoder.

    Attributes:
        embedding: (1, L, D), float32; its last bits are the machine's.
        identity: hash of what fixes it: token ids, weights and settings of the encoder.
    """

    embedding: torch.Tensor
    identity: str


class ConditionalDenoiser(UNet2DDenoiser):
    """A `UNet2DConditionModel` with the schedule of a diffusers scheduler, under one fixed prompt. h: its middle block.

    Args:
        unet: any `UNet2DConditionModel` that is conditioned on a prompt, and at most on a class besides.
        scheduler: any diffusers scheduler with `alphas_cumprod`.
        prompt: embedding (1, L, D) for the cross-attention, `encoder_hidden_states`, or what `empty_prompt` made. The
            bytes of an embedding enter the fingerprint; of the pipeline's own prompt, what it was made from does.
        device, dtype: where and how to compute; default the network's own.
        class_label: the class of a network that is class-conditional too.

    Raises:
        ModelError: a prompt of another shape, not finite or all zeros, conditions that have no adapter, and all that
            `UNet2DDenoiser` refuses.
    """

    family: ClassVar[str] = "diffusers UNet2DConditionModel"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: Any,
        prompt: torch.Tensor | OwnPrompt,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        class_label: int | None = None,
    ) -> None:
        _check_conditions(dict(unet.config))
        embedding = prompt.embedding if isinstance(prompt, OwnPrompt) else prompt
        self._prompt = _checked(embedding, cast(Any, unet.config).cross_attention_dim).to(
            device=unet.device if device is None else device, dtype=unet.dtype if dtype is None else dtype
        )
        words = prompt.identity if isinstance(prompt, OwnPrompt) else _identity(prompt)
        super().__init__(
            cast(Any, unet), scheduler, device=device, dtype=dtype, class_label=class_label,
            condition=[class_label, words],
        )  # fmt: skip

    def _encode(self, x: torch.Tensor, t: int) -> Encoded:
        """First half of `UNet2DConditionModel.forward`: time, class, down blocks, middle block."""
        net = self._unet
        timesteps = self._times(x, t)
        embedding = net.time_embedding(net.get_time_embed(sample=x, timestep=timesteps))
        if self._class_label is not None:
            classes = net.get_class_embed(sample=x, class_labels=torch.full_like(timesteps, self._class_label))
            concatenated = net.config.class_embeddings_concat
            embedding = torch.cat([embedding, classes], dim=-1) if concatenated else embedding + classes
        if net.time_embed_act is not None:
            embedding = net.time_embed_act(embedding)
        hidden = net.conv_in(2 * x - 1.0 if net.config.center_input_sample else x)
        skips: tuple[torch.Tensor, ...] = (hidden,)
        for block in net.down_blocks:
            hidden, more = block(hidden_states=hidden, temb=embedding, **self._words(block, hidden))
            skips += more
        if net.mid_block is not None:
            hidden = net.mid_block(hidden, embedding, **self._words(net.mid_block, hidden))
        return Encoded(hidden, skips, embedding, timesteps)

    def _decode(self, h: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        """Second half of `UNet2DConditionModel.forward`: up blocks and output, from any h (B', ...)."""
        net, skips, embedding = self._unet, encoded.skips, encoded.embedding
        if h.shape[0] != embedding.shape[0]:
            skips = tuple(skip.expand(h.shape[0], *skip.shape[1:]) for skip in skips)
            embedding = embedding.expand(h.shape[0], -1)
        hidden = h
        for block in net.up_blocks:
            count = len(block.resnets)
            skips, own = skips[:-count], skips[-count:]
            # The size of the next skips is said, as sides that are no multiple of every halving are rounded up there.
            size = skips[-1].shape[2:] if skips else None
            hidden = block(
                hidden_states=hidden,
                temb=embedding,
                res_hidden_states_tuple=own,
                upsample_size=size,
                **self._words(block, hidden),
            )
        if net.conv_norm_out is not None:
            hidden = net.conv_act(net.conv_norm_out(hidden))
        hidden = net.conv_out(hidden)
        return cast(torch.Tensor, hidden[:, : hidden.shape[1] // 2] if self._learned_variance else hidden)

    def _words(self, block: Any, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """The prompt as an argument of a block that attends to one, as often as the batch of `hidden` needs it."""
        if not getattr(block, "has_cross_attention", False):
            return {}
        words = self._prompt.to(hidden.device)
        return {"encoder_hidden_states": words.expand(hidden.shape[0], *words.shape[1:])}


def empty_prompt(folder: Path) -> OwnPrompt:
    """Embedding (1, L, D) of no words, computed in float32, by a pipeline's own `text_encoder` and `tokenizer` (CLIP).

    L is what the tokenizer pads to, at most what the encoder has positions for. Reads `TEXT_FILES` and no other file,
    safetensors and plain text; runs no code from the folder.

    Raises:
        ModelError: a part is missing, of another class or does not load, or transformers is not installed.
    """
    if not (folder / TEXT_FILES[0]).is_file() or not (folder / "tokenizer").is_dir():
        raise ModelError(
            str(folder), "no text_encoder and tokenizer", "a pipeline with both, or the embedding of a prompt",
            "Name the whole pipeline's folder. Pass the embedding as `prompt` only from Python.",
        )  # fmt: skip
    try:
        transformers: Any = import_module("transformers")  # optional, and slow to import
    except ImportError as error:
        raise ModelError(
            "text_encoder", "no package transformers to run it with", "the embedding of a prompt",
            "Install it (pip install 'rhumb[masks]'), or pass the embedding of a prompt as `prompt`.",
        ) from error  # fmt: skip
    own = {name for name in TEXT_FILES if (folder / name).is_file()}
    # Without a vocabulary transformers builds a tokenizer of three words, and the prompt would be another.
    if "tokenizer/tokenizer.json" not in own and not {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= own:
        raise ModelError(
            str(folder / "tokenizer"), "no vocabulary", "tokenizer.json, or vocab.json with merges.txt",
            "Download the pipeline again.",
        )  # fmt: skip
    try:
        with quiet(transformers.utils.logging), tempfile.TemporaryDirectory() as alone:
            for name in own:  # what lies beside them is neither recorded nor read
                (Path(alone) / name).parent.mkdir(exist_ok=True)
                (Path(alone) / name).symlink_to((folder / name).resolve())
            return _embedded(transformers, Path(alone))
    except Exception as error:  # foreign files may fail anywhere in transformers
        found = f"parts that do not load ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise ModelError(
            str(folder), found, "a CLIP text encoder and its tokenizer", "Download the pipeline again."
        ) from error


def _embedded(transformers: Any, folder: Path) -> OwnPrompt:
    settings = folder / "tokenizer/tokenizer_config.json"
    if settings.exists() and "fast_tokenizer_files" in json.loads(settings.read_text(encoding="utf-8")):
        raise ValueError("fast_tokenizer_files, which name further files")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    if not {tokenizer.bos_token, tokenizer.eos_token} <= words.keys():
        raise ValueError(f"a vocabulary without {tokenizer.bos_token} and {tokenizer.eos_token}")
    encoder, report = transformers.CLIPTextModel.from_pretrained(
        folder / "text_encoder", local_files_only=True, use_safetensors=True, output_loading_info=True,
        dtype=torch.float32,
    )  # fmt: skip
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError("weights of another network")
    return no_words(tokenizer, encoder)


@torch.no_grad()
def no_words(tokenizer: Any, encoder: Any) -> OwnPrompt:
    """The prompt of no words by a `CLIPTokenizer` and a `CLIPTextModel` in single precision on the CPU."""
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    embedding = encoder.eval()(tokens.input_ids, attention_mask=mask).last_hidden_state
    chosen = {key: getattr(encoder.config, key, None) for key in _TEXT_SETTINGS}
    weights = {name.removeprefix("text_model."): weight for name, weight in encoder.named_parameters()}
    return OwnPrompt(embedding, fingerprint(["CLIPTextModel", chosen, tokens.input_ids.tolist()], weights))


def _check_conditions(config: dict[str, Any]) -> None:
    for key, harmless in _NO_FURTHER_INPUT.items():
        if config.get(key) not in harmless:
            raise ModelError(
                key, config[key], "a network of timestep, prompt and at most a class", "This kind has no adapter."
            )
    for key in _BLOCKS:
        names = config[key] if isinstance(config[key], list | tuple) else [config[key]]
        foreign = next((name for name in names if "SimpleCrossAttn" in str(name)), None)
        if foreign is not None:
            raise ModelError(
                key, foreign, "blocks with queries, keys and values of their own", "This kind has no Jacobians."
            )


def _identity(embedding: torch.Tensor) -> str:
    """sha256 of an embedding that came from outside, of which nothing but its numbers is known."""
    return hashlib.sha256(embedding.detach().cpu().double().contiguous().numpy().data).hexdigest()


def _checked(prompt: torch.Tensor, width: Any) -> torch.Tensor:
    """The prompt, if it is one: finite, (1, L, D) with D = `width`, and not zeros, which are no text's embedding."""
    widths = {width} if isinstance(width, int) else set(width)
    if prompt.ndim != 3 or len(prompt) != 1 or prompt.shape[1] == 0 or widths != {prompt.shape[2]}:
        raise ModelError("prompt", tuple(prompt.shape), f"shape (1, L, {', '.join(map(str, sorted(widths)))}), L >= 1")
    if not bool(prompt.isfinite().all()) or not bool(prompt.any()):
        raise ModelError(
            "prompt", "zeros or values that are not finite", "an embedding of some text, if only of no words",
            "Embed the empty prompt with the pipeline's own text encoder.",
        )  # fmt: skip
    return prompt.detach()

"""A random CLIP model of a few channels with its tokenizer, saved as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

WORDS = "a face with smile closed eyes"


def tiny_clip(folder: Path, *, safe: bool = True) -> Path:
    """Write model, tokenizer (letter by letter) and image settings into `folder`, and return it."""
    transformers.utils.logging.disable_progress_bar()
    letters = sorted(set(WORDS) - {" "})
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    common = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    text = {**common, **ends, "vocab_size": len(tokens), "max_position_embeddings": 24}
    vision = {**common, "image_size": 12, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        )
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
    if safe:
        network.save_pretrained(folder)
    else:
        network.config.save_pretrained(folder)
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder

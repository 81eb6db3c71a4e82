"""A random Segment Anything model of a few channels, saved as transformers saves one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers


def small_sam(folder: Path) -> Path:
    """Write the model and its processor's settings into `folder`, and return it."""
    transformers.utils.logging.disable_progress_bar()
    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16}
    vision = {**common, "output_channels": 16, "image_size": 64, "window_size": 2, "global_attn_indexes": [0]}
    decoder = {**common, "attention_downsample_rate": 1, "iou_head_depth": 1, "iou_head_hidden_dim": 16}
    prompt = {"hidden_size": 16, "image_size": 64, "mask_input_channels": 4}
    config = transformers.SamConfig(
        vision_config={**vision, "num_pos_feats": 8}, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    torch.manual_seed(0)
    network = transformers.SamModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    network.save_pretrained(folder)
    settings = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder

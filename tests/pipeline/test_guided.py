"""guided-diffusion's networks in diffusers: the same numbers, or a refusal that says why not."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.errors import InputError, ModelError
from pipeline.jacobian import jacobian
from pipeline.models.guided import GuidedFlags, plan, scheduler_config, translate, unet_config
from pipeline.models.guided_checkpoint import check_fit, describe, described_flags, read_checkpoint
from pipeline.models.guided_presets import PRESETS, flags_of
from pipeline.models.unet2d import UNet2DDenoiser
from tests.pipeline.guided_reference import (
    Network,
    State,
    guided_settings,
    original_shapes,
    random_state,
    reduced_p2,
    reference,
)

SIZE = 8


def flags(net: Network, **changes: Any) -> GuidedFlags:
    return GuidedFlags.model_validate({**guided_settings(net, SIZE), **changes})


def converted(state: State, these: GuidedFlags) -> UNet2DModel:
    unet = UNet2DModel(**unet_config(these)).eval()
    unet.load_state_dict(translate(state, these), strict=True)
    return unet


def outputs(
    net: Network, these: GuidedFlags, *, seed: int = 0, t: int = 321, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """(theirs, ours), each (2, 3 or 6, H, W), on the same random state, images and classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((2, net.image_channels, SIZE, SIZE), generator=generator).to(dtype)
    y = None if net.classes is None else torch.randint(net.classes, (2,), generator=generator)
    state, times = random_state(net, seed), torch.full((2,), t)
    shown = times.float() * (1000.0 / these.diffusion_steps) if these.rescale_timesteps else times
    with torch.no_grad():
        ours = converted(state, these).to(dtype)(x, times, class_labels=y).sample
        return reference(net, {name: value.to(dtype) for name, value in state.items()}, x, shown, y), ours


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Every layout that diffusers can express, small: 32 to 64 channels, one to three levels."""
    multipliers = (1, *draw(st.sampled_from([(), (1,), (2,), (2, 2), (2, 1), (1, 2)])))
    levels = range(len(multipliers))
    head_channels = draw(st.sampled_from([-1, 16, 32]))
    attending = draw(st.frozensets(st.sampled_from([2**level for level in levels])))
    if head_channels == -1:  # heads by number have one width only where channels are the same
        attending = frozenset(rate for rate in attending if multipliers[rate.bit_length() - 1] == multipliers[-1])
    return Network(
        multipliers=multipliers,
        blocks=draw(st.integers(1, 2)),
        attention_rates=attending,
        heads=draw(st.sampled_from([1, 2, 4])),
        head_channels=head_channels,
        scale_shift=draw(st.booleans()),
        updown=draw(st.booleans()),
        conv_resample=draw(st.booleans()),
        new_order=draw(st.booleans()),
        classes=draw(st.sampled_from([None, 5])),
        learn_sigma=draw(st.booleans()),
        image_channels=draw(st.sampled_from([1, 3])),
    )


@settings(max_examples=25, deadline=None)
@given(networks(), st.integers(0, 2**16), st.integers(0, 999))
def test_every_layout_gives_the_original_networks_output(net: Network, seed: int, t: int) -> None:
    """In float64: some random networks of groups of four numbers amplify float32's rounding to 1e-4 by themselves."""
    theirs, ours = outputs(net, flags(net), seed=seed, t=t, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 0.05  # an output that is nearly nothing would agree with anything


@pytest.mark.parametrize(
    "net",
    [
        reduced_p2(),
        reduced_p2(multipliers=(1, 1, 2, 2), attention_rates=frozenset({2, 4, 8}), blocks=2),  # ADM's, reduced
        reduced_p2(new_order=True, classes=7, blocks=3),
        Network(multipliers=(1, 2, 2, 2), attention_rates=frozenset({2, 4}), heads=4, blocks=3, learn_sigma=True),
        Network(multipliers=(1, 2), heads=1, scale_shift=False, learn_sigma=True, blocks=2),
    ],
    ids=["p2", "adm", "imagenet64", "cifar10-improved", "lsun-improved"],
)
def test_the_published_layouts_give_the_original_networks_output(net: Network) -> None:
    theirs, ours = outputs(net, flags(net))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"use_new_attention_order": True}, {"num_head_channels": 16}, {"num_head_channels": 64}],
    ids=["order", "narrow heads", "wide heads"],
)
def test_flags_that_shapes_do_not_show_change_the_output(wrong: dict[str, Any]) -> None:
    net = reduced_p2()
    theirs, ours = outputs(net, flags(net, **wrong))
    assert (theirs - ours).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [1000, 50, 4000])
def test_rescaled_timesteps_show_the_network_the_same_times(steps: int) -> None:
    net = reduced_p2()
    these = flags(net, diffusion_steps=steps, rescale_timesteps=True)
    for t in (0, 7, steps - 1):
        theirs, ours = outputs(net, these, t=t)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def published_alphas(name: str, steps: int) -> torch.Tensor:
    """Cumulative alphas of improved-diffusion's two schedules, in float64."""
    if name == "linear":
        betas = torch.linspace(1000 / steps * 1e-4, 1000 / steps * 0.02, steps, dtype=torch.float64)
    else:
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(bar)], dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [100, 1000, 4000])
def test_the_schedule_is_the_published_one(name: str, steps: int) -> None:
    these = flags(reduced_p2(), noise_schedule=name, diffusion_steps=steps)
    found = DDPMScheduler(**scheduler_config(these)).alphas_cumprod.double()
    torch.testing.assert_close(found, published_alphas(name, steps), rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(
    ("net", "more", "reason"),
    [
        (Network(attention_rates=frozenset({1, 2}), heads=2), {}, "num_heads.*32 and 64 channels.*attention_head_dim"),
        (Network(heads=2), {"num_heads_upsample": 4}, "num_heads.*2 and 4 heads"),
        (Network(multipliers=(2, 2), heads=2), {}, "channel_mult.*2 at full size.*time embedding"),
        (Network(head_channels=48), {}, "num_head_channels.*48 at an attention of 64 channels.*divisor"),
    ],
    ids=["heads of two widths", "other heads on the way up", "wide first level", "indivisible"],
)
def test_what_diffusers_cannot_express_is_refused_with_the_reason(
    net: Network, more: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=f"(?s){reason}"):
        plan(flags(net, **more))


@settings(max_examples=30, deadline=None)
@given(networks())
def test_the_plan_has_the_originals_names_and_shapes_and_these_tell_the_flags(net: Network) -> None:
    shapes, these = original_shapes(net), flags(net)
    assert {name: shape for name, (shape, _) in plan(these).items()} == shapes
    assert describe({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}) == described_flags(
        these
    )


def test_shapes_of_another_network_are_no_description() -> None:
    assert describe({"conv.weight": torch.zeros(3, 3, 1, 1)}) is None


def test_missing_extra_and_misshapen_parameters_are_counted_and_named() -> None:
    net = reduced_p2()
    state = random_state(net)
    for number in range(5):
        state[f"more.{number}"] = torch.zeros(1)
    del state["out.2.bias"]
    state["out.0.bias"] = torch.zeros(3)
    with pytest.raises(ModelError) as raised:
        check_fit(Path("a.pt"), state, plan(flags(net)), "do this")
    text = str(raised.value)
    assert "a.pt" in text and "do this" in text
    assert "1 missing (out.2.bias)" in text
    assert "5 extra (more.0; more.1; more.2; ...)" in text
    assert "1 misshapen (out.0.bias (3,), not (32,))" in text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.full((32,), math.nan), "NaN or infinity in out.0.bias"),
        (torch.zeros(32, dtype=torch.int64), "out.0.bias of torch.int64"),
        (torch.zeros(32).to_sparse(), "out.0.bias of torch.float32, torch.sparse_coo"),
        (torch.full((32,), 1e300, dtype=torch.float64), "NaN or infinity in out.0.bias"),
        (torch.zeros(32, device="meta"), "out.0.bias without numbers"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(value: torch.Tensor, reason: str) -> None:
    net = reduced_p2()
    with pytest.raises(ModelError, match=reason):
        check_fit(Path("a.pt"), {**random_state(net), "out.0.bias": value}, plan(flags(net)), "")


def test_weights_in_eight_bits_are_read() -> None:
    net = reduced_p2()
    state = {**random_state(net), "out.0.bias": torch.full((32,), 0.5).to(torch.float8_e4m3fn)}
    check_fit(Path("a.pt"), state, plan(flags(net)), "")
    assert torch.equal(translate(state, flags(net))["conv_norm_out.bias"], torch.full((32,), 0.5))


def test_jacobian_products_of_a_converted_network_are_adjoint() -> None:
    these = flags(reduced_p2())
    unet = converted(random_state(reduced_p2()), these)
    denoiser = UNet2DDenoiser(unet, DDPMScheduler(**scheduler_config(these)), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, SIZE, SIZE), generator=generator, dtype=torch.float64)
    for kind in ("x0/x", "eps/h"):
        operator = jacobian(denoiser, x, 300, kind)
        u, v = (torch.randn((2, *shape), generator=generator, dtype=torch.float64)
                for shape in (operator.shape_out, operator.shape_in))  # fmt: skip
        torch.testing.assert_close((operator.matvec(v) * u).sum(), (operator.rmatvec(u) * v).sum())


# Presets.


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_network_that_diffusers_has(name: str) -> None:
    these, preset = flags_of(name)
    assert plan(these)
    assert preset is not None and preset.source.startswith("https://") and "arXiv" in preset.citation
    assert "Weights: " in preset.licence and "Images: " in preset.licence


@pytest.mark.parametrize(
    ("name", "millions"),
    [("metfaces-p2", 93), ("lsun-cat-adm", 552), ("cifar10-improved", 52), ("imagenet64-adm", 295)],
)
def test_presets_have_as_many_parameters_as_their_authors_say(name: str, millions: int) -> None:
    count = sum(math.prod(shape) for shape, _ in plan(flags_of(name)[0]).values())
    assert count // 10**6 == millions


def test_a_printed_command_line_can_be_given_as_settings() -> None:
    printed = (
        "--attention_resolutions 16 --class_cond False --diffusion_steps 1000 --dropout 0.0 --image_size 256 "
        "--learn_sigma True --noise_schedule linear --num_channels 128 --num_res_blocks 1 --num_head_channels 64 "
        "--resblock_updown True --use_fp16 False --use_scale_shift_norm True --timestep_respacing 250"
    )
    words = printed.split()
    pairs = [f"{key}={value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    assert flags_of("custom", pairs)[0] == flags_of("ffhq-p2")[0]


@pytest.mark.parametrize(
    ("preset", "setting", "reason"),
    [
        ("metface-p2", "", "Did you mean 'metfaces-p2'"),
        ("custom", "num_chanels=32", "unknown flag 'num_chanels'.*Did you mean 'num_channels'"),
        ("custom", "num_channels", "KEY=VALUE"),
        ("custom", "num_channels=33", "num_channels: found 33; expected a multiple of 32"),
        ("custom", "noise_schedule=sqrt", "noise_schedule: found sqrt; expected 'linear' or 'cosine'"),
        ("custom", "image_size=48", "channel_mult"),
        ("custom", "image_size=0", "image_size"),
        ("ffhq-p2", "channel_mult=1,1,1,1,1,1,1,1,1,1", "image_size that 9 halvings"),
        ("custom", "channel_mult=1,nan", "channel_mult"),
        ("custom", "channel_mult=1,inf", "channel_mult"),
        ("custom", "attention_resolutions=0", "attention_resolutions"),
        ("custom", "num_head_channels=0", "num_head_channels"),
    ],
)
def test_a_wrong_preset_or_flag_is_named(preset: str, setting: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"(?s){reason}"):
        flags_of(preset, [setting] if setting else [])


# Checkpoint files.

NET = Network(multipliers=(1,), attention_rates=frozenset())


@pytest.fixture(scope="module")
def small() -> State:
    return random_state(NET)


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda s, o: s, ""),
        (lambda s, o: prefixed(s, "module."), "module"),
        (lambda s, o: {"state_dict": s, "step": 3}, "state_dict"),
        (lambda s, o: {"model": o, "ema": s}, "ema"),
        (lambda s, o: {"model": prefixed(o, "module."), "ema_model": prefixed(s, "module.")}, "ema_model/module"),
        (lambda s, o: {**prefixed(o, "net."), **prefixed(s, "net_ema.")}, "net_ema"),
        (lambda s, o: {"a": {"b": prefixed(s, "model.diffusion_model.")}}, "a/b/model.diffusion_model"),
    ],
)
def test_the_network_is_found_wherever_it_lies(
    wrap: Callable[[State, State], object], place: str, small: State, tmp_path: Path
) -> None:
    other = {name: value + 1 for name, value in small.items()}
    found = read_checkpoint(saved(tmp_path / "a.pt", wrap(small, other)))
    assert found.place == place
    assert found.state.keys() == small.keys()
    assert all(torch.equal(found.state[name], small[name]) for name in small)


def test_other_parts_of_a_larger_model_are_named(small: State, tmp_path: Path) -> None:
    prefix = "model.diffusion_model"
    state = {**prefixed(small, f"{prefix}."), "betas": torch.zeros(3), "first_stage_model.x": torch.zeros(1)}
    with pytest.raises(ModelError, match=rf"2 other parts \(betas, first_stage_model.x\) beside the network {prefix}"):
        read_checkpoint(saved(tmp_path / "a.pt", state))


def test_two_networks_without_ema_are_ambiguous(small: State, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a.pt.*2 networks .a, b."):
        read_checkpoint(saved(tmp_path / "a.pt", {"a": small, "b": small}))


def test_older_torch_files_and_safetensors_are_read(small: State, tmp_path: Path) -> None:
    old = saved(tmp_path / "old.pt", small, _use_new_zipfile_serialization=False)
    save_file(small, tmp_path / "a.safetensors")
    for path in (old, tmp_path / "a.safetensors"):
        found = read_checkpoint(path).state
        assert all(torch.equal(found[name], small[name]) for name in small)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_precision_become_float32(dtype: torch.dtype, small: State) -> None:
    weights = translate({name: value.to(dtype) for name, value in small.items()}, flags(NET))
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["conv_in.weight"], small["input_blocks.0.0.weight"].to(dtype).float())


class Bomb:
    """Would create a file if a reader ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("form", ["zip", "old", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_nothing_is_run(form: str, small: State, tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    content = {**small, "bomb": Bomb(proof)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"bomb": Bomb(proof)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError, match="evil.pt.*asks for code.*none of it was run"):
        read_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<html>", "found a web page"),
        (b"\n<!DOCTYPE html>", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 10\n", "found a Git-LFS pointer"),
        (b"hello", "damaged"),
        (b"", "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(content: bytes, found: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=found):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_said_to_hold_code_only_where_it_names_some(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps({"betas": [0.5]}, protocol))
    with pytest.raises(ModelError) as harmless:
        read_checkpoint(path)
    assert "code" not in str(harmless.value) and "Weights" not in str(harmless.value)
    assert protocol < 2 or f"plain Python pickle (protocol 0{protocol})" in str(harmless.value)
    path.write_bytes(pickle.dumps({"bomb": Bomb(tmp_path / "proof")}, protocol))
    with pytest.raises(ModelError) as evil:
        read_checkpoint(path)
    assert protocol < 2 or "asks for code (" in str(evil.value)
    assert not (tmp_path / "proof").exists()


def test_tensors_in_a_newer_protocol_are_not_called_code(small: State, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="plain Python pickle .protocol 04.*default protocol"):
        read_checkpoint(saved(tmp_path / "a.pt", small, pickle_protocol=4))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_files_are_named_whatever_was_cut_or_changed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    options = {"_use_new_zipfile_serialization": data.draw(st.booleans())}
    whole = bytearray(saved(folder / "a.pt", {"time_embed.0.weight": torch.zeros(4, 1)}, **options).read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.pt"
    path.write_bytes(whole)
    try:
        read_checkpoint(path)
    except ModelError as error:
        assert "damaged.pt" in str(error)


def test_a_compressed_archive_is_refused(small: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", small)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ModelError, match="b.pt.*compressed"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [{}, [1, 2], {"classifier.weight": torch.zeros(2)}, torch.zeros(3)])
def test_a_file_without_such_a_network_says_what_it_holds(content: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a.pt: found no time_embed.0.weight"):
        read_checkpoint(saved(tmp_path / "a.pt", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none.pt: found no such file"):
        read_checkpoint(tmp_path / "none.pt")


def test_the_reference_knows_its_own_layouts_apart() -> None:
    net = reduced_p2()
    x, t, state = torch.randn((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)), torch.tensor([5]), None
    state = random_state(net)
    base = reference(net, state, x, t, None)
    assert (reference(replace(net, new_order=True), state, x, t, None) - base).abs().max() > 1e-2
    assert (reference(net, state, x, t + 300, None) - base).abs().max() > 1e-2

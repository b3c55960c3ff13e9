"""The encoder: the student's own ViT, and any other model of timm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.train.deploy.export import check, drawn_views
from clipocr.train.deploy.onnx_format import open_onnx, write_onnx
from clipocr.train.models.config import SIZES, StudentConfig, StudentSize
from clipocr.train.models.encoder import Encoder
from clipocr.train.models.recogniser import Recogniser
from clipocr.train.models.student import Student
from clipocr.train.models.tokenizer import LabelTokenizer

TOKENIZER = LabelTokenizer(Charset.load("36"), 6)
MINI = StudentSize(
    width=32, patch_height_px=16, patch_width_px=16, encoder_layers=8, encoder_heads=2,
    decoder_heads=4,
)  # fmt: skip


# -- models of timm's kinds, but tiny ---------------------------------------------------------


@register_model
def clipocr_test_vit_gap(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
    """No class token, and a norm that belongs to the pooling."""
    sizes = {"patch_size": 16, "embed_dim": 24, "depth": 6, "num_heads": 2, "class_token": False,
             "global_pool": "avg"}  # fmt: skip
    return build_model_with_cfg(VisionTransformer, "vit", pretrained, **{**sizes, **kwargs})


@register_model
def clipocr_test_vit_reg(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
    """A class token and two registers."""
    sizes = {"patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 2, "reg_tokens": 2}
    return build_model_with_cfg(VisionTransformer, "vit", pretrained, **{**sizes, **kwargs})


@register_model
def clipocr_test_swin(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
    sizes = {"window_size": 4, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    return build_model_with_cfg(SwinTransformer, "swin", pretrained, **{**sizes, **kwargs})


@register_model
def clipocr_test_resnet(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
    sizes = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (8, 12, 16, 20)}
    return build_model_with_cfg(ResNet, "resnet", pretrained, **{**sizes, **kwargs})


@register_model
def clipocr_test_shallow(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
    sizes = {"patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return build_model_with_cfg(VisionTransformer, "vit", pretrained, **{**sizes, **kwargs})


@register_model
def clipocr_test_blind(pretrained: bool = False, **_: Any) -> torch.nn.Module:
    """A model from before timm showed intermediate features."""
    del pretrained
    return torch.nn.Conv2d(3, 8, 4, stride=4)


OTHERS = {
    "clipocr_test_vit_gap": ([(16, 24)] * 4, (2, 8)),
    "clipocr_test_vit_reg": ([(19, 24)] * 4, (2, 8)),
    "clipocr_test_swin": ([(256, 16), (64, 32), (16, 64), (4, 128)], (1, 4)),
    "clipocr_test_resnet": ([(256, 8), (64, 12), (16, 16), (4, 20)], (1, 4)),
}
"""By name: the stages' (S, D), and the last stage's grid."""


def make_images(batch_size: int) -> torch.Tensor:
    return torch.randn(batch_size, 3, 32, 128, generator=torch.Generator().manual_seed(batch_size))


def make_student(encoder: str, **options: Any) -> Student:
    torch.manual_seed(7)
    return Student(StudentConfig(size=MINI, encoder=encoder, **options), TOKENIZER)


# -- the student's own ViT --------------------------------------------------------------------


def test_stages_are_raw_quarters_and_only_the_last_is_normed() -> None:
    encoder = Encoder(StudentConfig(size=MINI)).eval()
    after_block: dict[int, torch.Tensor] = {}
    for i, block in enumerate(encoder.model.blocks):
        block.register_forward_hook(lambda _m, _in, out, i=i: after_block.update({i: out}))
    stages = encoder(make_images(2))
    for stage, block in ((0, 1), (1, 3), (2, 5)):
        assert torch.equal(stages[stage], after_block[block])
    assert torch.equal(stages[3], encoder.model.norm(after_block[7]))
    assert torch.equal(stages[3], encoder.model.forward_features(make_images(2)))
    assert torch.equal(encoder.summary(stages[3]), stages[3][:, 0])
    assert encoder.stage_shapes == ((17, 32),) * 4
    assert (encoder.grid, encoder.num_prefix_tokens, encoder.has_class_token) == ((2, 8), 1, True)


def test_it_starts_as_the_official_one_does() -> None:
    torch.manual_seed(0)
    model = Encoder(StudentConfig(size=SIZES["small"])).model
    assert model.cls_token.abs().max() < 1e-5
    weights = [model.pos_embed, model.blocks[0].attn.qkv.weight, model.blocks[11].mlp.fc2.weight]
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    # The convolution is left as PyTorch makes it: uniform, +-1 / sqrt(3 * 4 * 8).
    convolution = model.patch_embed.proj
    for parameter in (convolution.weight, convolution.bias):
        assert 0.09 < parameter.abs().max() <= 96**-0.5
    assert not any(m.bias.any() for m in model.blocks.modules() if hasattr(m, "bias"))
    assert model.norm.eps == 1e-6


def test_it_compiles_into_one_graph_for_any_number_of_rows() -> None:
    encoder = Encoder(StudentConfig(size=MINI))
    # "eager" runs the captured graph as it is, so this needs no C++ compiler and can be exact.
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for batch_size in (2, 3, 0):
        images = make_images(batch_size)
        for stage, expected in zip(compiled(images), encoder(images), strict=True):
            assert torch.equal(stage, expected)


# -- any other --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_any_model_of_timm_trains_and_reads(name: str) -> None:
    student = make_student(name)
    encoder = student.encoder
    shapes, grid = OTHERS[name]
    assert (list(encoder.stage_shapes), encoder.grid) == (shapes, grid)
    for num_rows in (2, 0):
        images, token_ids = make_images(num_rows), TOKENIZER.encode(["ab", "c"][:num_rows], 3)
        student.zero_grad()
        output = student.train()(images, token_ids)
        assert [s.shape for s in output.encoder_stages] == [(num_rows, *shape) for shape in shapes]
        assert output.summary.shape == (num_rows, shapes[-1][1])
        assert output.logits.shape == (num_rows, 3, 37)
        (output.logits.square().sum() + output.summary.sum()).backward()
        trained = {n: p.grad for n, p in student.named_parameters() if p.requires_grad}
        # DistributedDataParallel waits for the gradient of every parameter from every process.
        assert all(gradient is not None for gradient in trained.values())
        assert any(gradient.any() for gradient in trained.values()) == bool(num_rows)
    student.eval()
    assert student.decode(make_images(3)).isfinite().all()
    seen = student.image_attention(make_images(1), TOKENIZER.encode(["ab"]))
    assert seen.places.shape == (1, 3, *grid)
    torch.testing.assert_close(seen.places.sum((2, 3)) + seen.elsewhere, torch.ones(1, 3))


class TokenReader(Recogniser):
    """Reads a class in each of the last stage's tokens; made for exporting an encoder quickly."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder = Encoder(StudentConfig(encoder=encoder))
        num_positions, width = self.encoder.stage_shapes[-1]
        self.tokenizer = LabelTokenizer(Charset.load("36"), num_positions - 1)
        self.head = torch.nn.Linear(width, self.tokenizer.num_classes)

    @torch.no_grad()
    def decode(self, images: torch.Tensor, max_length: int | None = None) -> torch.Tensor:
        del max_length
        return self.head(self.encoder(images)[-1])


@pytest.mark.timeout(300)  # PyTorch's exporter takes seconds of one core, and there may be others.
@pytest.mark.parametrize("name", ["clipocr_test_vit_gap", "clipocr_test_swin", "test_convnext"])
def test_any_model_of_timm_exports_to_onnx(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = TokenReader(name).eval()
    write_onnx(tmp_path / "model.onnx", reader, {"clipocr_version": "1"})
    views = drawn_views(reader)
    agreement = check(open_onnx(tmp_path / "model.onnx"), reader, views, what="the file")
    assert agreement.num_texts > 1


def test_without_a_class_token_the_mean_stands_for_it() -> None:
    for name, has_class_token, num_prefix in (
        ("clipocr_test_vit_gap", False, 0),
        ("clipocr_test_vit_reg", True, 3),
        ("clipocr_test_resnet", False, 0),
    ):
        encoder = make_student(name).encoder
        last = encoder(make_images(2))[-1]
        expected = last[:, 0] if has_class_token else last.mean(dim=1)
        torch.testing.assert_close(encoder.summary(last), expected)
        assert (encoder.has_class_token, encoder.num_prefix_tokens) == (has_class_token, num_prefix)


def test_the_last_stage_is_normed_whatever_the_model() -> None:
    for name in OTHERS:
        last = make_student(name).encoder.eval()(100 * make_images(2))[-1]
        torch.testing.assert_close(last.std(dim=-1, correction=0), torch.ones(last.shape[:2]),
                                   rtol=0, atol=0.01)  # fmt: skip


def test_pictures_reach_a_model_with_the_mean_and_std_it_was_trained_with() -> None:
    encoder = make_student("test_vit").encoder
    about = encoder.model.pretrained_cfg
    pixels = torch.rand(1, 3, 32, 128)
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    seen = []
    encoder.model.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    about["mean"] = (0.5, 0.4, 0.3)
    encoder._adapt_inputs()
    encoder((pixels - 0.5) / 0.5)
    mean = torch.tensor((0.5, 0.4, 0.3)).view(3, 1, 1)
    torch.testing.assert_close(seen[0], (pixels - mean) / std)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet81", "timm has no model 'resnet81'; did you mean resnet"),
        ("hf-hub:timm/resnet18", "timm has no model 'hf-hub:timm/resnet18'"),
        ("clipocr_test_shallow", "clipocr_test_shallow cannot be the encoder: it shows 3 feature "
         "maps, expected 4 or more. Pass another timm model"),
        ("clipocr_test_blind", "does not show intermediate features"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_an_encoder_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_student(name)


# -- weights ----------------------------------------------------------------------------------


def test_weights_of_a_file_are_loaded_only_when_training_begins(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.manual_seed(1)
    # Of pictures of another size, and with a classifier.
    theirs = timm.create_model("test_vit", img_size=48, num_classes=10)
    torch.save(theirs.state_dict(), path)
    student = make_student("test_vit", encoder_weights=str(path))
    before = student.encoder.model.blocks[0].attn.qkv.weight.clone()
    assert not torch.equal(before, theirs.blocks[0].attn.qkv.weight)
    student.load_pretrained()
    for own, given in zip(student.encoder.model.blocks, theirs.blocks, strict=True):
        assert torch.equal(own.attn.qkv.weight, given.attn.qkv.weight)
    assert torch.equal(student.encoder.model.norm.weight, theirs.norm.weight)


def test_weights_that_cannot_be_had_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host\nand many lines more")

    with pytest.raises(UsageError, match=r"no file missing\.pth; pass a path, or timm"):
        make_student("test_vit", encoder_weights="missing.pth").load_pretrained()
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("clipocr_test_resnet").state_dict(), other)
    for name in ("test_vit", "clipocr_test_vit_reg"):
        with pytest.raises(UsageError, match=rf"other\.pth holds no weights of {name}: "):
            make_student(name, encoder_weights=str(other)).load_pretrained()
    with pytest.raises(UsageError, match="timm's weights of clipocr_test_vit_reg cannot be"):
        make_student("clipocr_test_vit_reg", encoder_weights="timm").load_pretrained()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(UsageError) as e:
        make_student("test_vit", encoder_weights="timm").load_pretrained()
    assert "cannot be fetched (no route to host); pass the path of a file" in str(e.value)
    assert "\n" not in str(e.value)

"""Our taps against a plain forward of open_clip's own model with hooks."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path

import open_clip
import pytest
import torch
from samples import TINY_CLIP
from torch.utils._python_dispatch import TorchDispatchMode

from clipocr.precompute.teacher.clip import (
    Teacher,
    load_teacher,
    store_products_in,
    teacher_models,
    why_no_teacher,
)
from clipocr.precompute.teacher.tokens import TeacherTokenizer
from clipocr.shared.clip.encoders import crop_positions
from clipocr.shared.errors import TeacherError, UsageError
from clipocr.shared.geometry import CLIP_MEAN, CLIP_STD, normalize

CPU = torch.device("cpu")


def load(name: str = "ViT-tiny-test/random:0", **changes: object) -> Teacher:
    settings: dict[str, object] = {
        "image_taps": (1, 2, 3),
        "text_taps": (1, 2, 3),
        "precision": "fp32",
        "device": CPU,
    }
    return load_teacher(name, **(settings | changes))


def hooked(blocks: torch.nn.ModuleList) -> dict[int, torch.Tensor]:
    """Return a dict that the next forward fills with each block's output."""
    seen: dict[int, torch.Tensor] = {}
    for idx, block in enumerate(blocks, start=1):
        block.register_forward_hook(
            lambda _module, _inputs, output, idx=idx: seen.__setitem__(idx, output.detach())
        )
    return seen


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load()


@pytest.fixture(scope="module")
def device_teacher(device: str) -> Teacher:
    return load(device=torch.device(device))


@pytest.fixture
def plain(teacher: Teacher) -> torch.nn.Module:
    return copy.deepcopy(teacher._model)


def test_image_taps_equal_open_clip_with_cropped_positions(
    device_teacher: Teacher, plain: torch.nn.Module
) -> None:
    small = open_clip.create_model("ViT-tiny-test", force_image_size=(32, 128)).eval()
    state = plain.state_dict()
    positions = state["visual.positional_embedding"]
    # The official crop for a 14 x 14 grid: rows 0 to 8 and 15 to 22.
    state["visual.positional_embedding"] = torch.cat([positions[:9], positions[15:23]])
    small.load_state_dict(state)
    seen = hooked(small.visual.transformer.resblocks)
    views = torch.randint(0, 256, (5, 32, 128, 3), dtype=torch.uint8)
    pixels = views.permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        projected = small.encode_image((pixels - mean) / std)
    torch.testing.assert_close(
        device_teacher.image_embeddings(views).cpu(), projected, rtol=1e-5, atol=1e-5
    )
    arrays = device_teacher.image_features(views)
    assert list(arrays) == ["block1", "block2", "block3"]
    for block, features in enumerate(arrays.values(), start=1):
        assert features.shape == (5, 17, 64)
        torch.testing.assert_close(features.cpu(), seen[block], rtol=1e-5, atol=1e-5)


def test_blocks_after_the_last_tap_are_not_run(teacher: Teacher) -> None:
    seen = hooked(teacher._model.visual.transformer.resblocks)
    teacher.image_features(torch.zeros(1, 32, 128, 3, dtype=torch.uint8))
    assert sorted(seen) == [1, 2, 3]


def test_text_taps_and_eot_equal_open_clip(device_teacher: Teacher, plain: torch.nn.Module) -> None:
    tokenizer = TeacherTokenizer("char", 25)
    sequences = [tokenizer.tokenize(label).ids for label in ("cat", "a", "catalogue")]
    short = torch.zeros(3, 12, dtype=torch.int32)
    full = torch.zeros(3, 77, dtype=torch.int32)
    for row, ids in enumerate(sequences):
        short[row, : len(ids)] = full[row, : len(ids)] = torch.tensor(ids)
    seen = hooked(plain.transformer.resblocks)
    with torch.no_grad():
        projected = plain.encode_text(full)
    arrays = device_teacher.text_features(short, torch.tensor([len(ids) - 1 for ids in sequences]))
    assert list(arrays) == ["block1", "block2", "block3", "eot"]
    torch.testing.assert_close(arrays.pop("eot").cpu(), projected, rtol=1e-5, atol=1e-5)
    # Causal: a context of 12 is the beginning of a context of 77.
    for block, features in enumerate(arrays.values(), start=1):
        assert features.shape == (3, 12, 32)
        torch.testing.assert_close(features.cpu(), seen[block][:, :12], rtol=1e-5, atol=1e-5)


def test_last_text_block_can_be_a_tap() -> None:
    arrays = load(text_taps=(2, 4)).text_features(
        torch.zeros(1, 5, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    )
    assert list(arrays) == ["block2", "block4", "eot"]


def test_crop_is_class_row_and_top_left_block() -> None:
    rows = torch.arange(1 + 14 * 14).unsqueeze(1)
    expected = [*range(9), *range(15, 23)]
    assert crop_positions(rows, (16, 16)).flatten().tolist() == expected
    with pytest.raises(UsageError, match=r"32x128 do not fit this teacher, .* covers 112x112"):
        crop_positions(torch.zeros(50, 1), (16, 16))


def test_half_precision_stays_close(teacher: Teacher) -> None:
    views = torch.randint(0, 256, (2, 32, 128, 3), dtype=torch.uint8)
    exact, rounded = teacher.image_features(views), load(precision="bf16").image_features(views)
    for tap in exact:
        assert rounded[tap].dtype == torch.float32
        assert not torch.equal(exact[tap], rounded[tap])
        torch.testing.assert_close(exact[tap], rounded[tap], rtol=0.05, atol=0.05)


def test_weights_kept_in_half_precision_give_the_bits_of_those_that_are_cast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half, casting = load(precision="bf16"), load(precision="bf16")
    store_products_in(torch.bfloat16, half._model)
    # A CPU's attention of its own, which knows no autocast.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    views = torch.randint(0, 256, (2, 32, 128, 3), dtype=torch.uint8)
    tokens = torch.randint(1, 90, (2, 9))
    ends = torch.tensor([4, 8])
    results, num_casts = [], []
    for teacher in (half, casting):
        with _ParameterCasts(teacher) as casts:
            results.append(teacher.image_features(views) | teacher.text_features(tokens, ends))
        num_casts.append(len(casts.found))
    for array, features in results[0].items():
        assert torch.equal(features, results[1][array]), array
    # What is left are embeddings and raw projections: 3 parameters, or views of them.
    assert num_casts[0] <= 3 < 20 < num_casts[1]


class _ParameterCasts(TorchDispatchMode):
    """Collects casts to another type of what a teacher's parameters hold."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self._held = {p.untyped_storage().data_ptr() for p in teacher._model.parameters()}
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (
            args[0].untyped_storage().data_ptr() in self._held
        ):
            self.found.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_cudnn_stays_on_and_rounds_to_no_tf32(device_teacher: Teacher) -> None:
    """Without cuDNN a GPU runs the patch embedding once for every picture of a batch."""
    seen = []

    def look(*_: object) -> None:
        flags = torch.backends.cudnn
        seen.append((flags.enabled, flags.allow_tf32, flags.deterministic))

    handle = device_teacher._model.visual.conv1.register_forward_pre_hook(look)
    device_teacher.image_features(torch.zeros(1, 32, 128, 3, dtype=torch.uint8))
    handle.remove()
    assert seen == [(True, False, True)]


def test_random_weights_are_their_seed_and_nothing_else() -> None:
    before = torch.get_rng_state()
    digests = [load(f"ViT-tiny-test/random:{seed}").spec.weights_sha256 for seed in (7, 7, 8)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(before, torch.get_rng_state())
    spec = load("ViT-tiny-test/random:7").spec
    assert spec.is_random
    assert spec.name == "ViT-tiny-test/random:7"


def test_a_teacher_says_what_its_arrays_are(teacher: Teacher) -> None:
    assert teacher.image_shapes == dict.fromkeys(("block1", "block2", "block3"), (17, 64))
    assert teacher.text_widths() == {"block1": 32, "block2": 32, "block3": 32, "eot": 24}


def test_a_chunk_is_run_whole_with_each_row_at_its_place(device_teacher: Teacher) -> None:
    views = torch.randint(0, 256, (8, 32, 128, 3), dtype=torch.uint8)
    whole = device_teacher.image_features(views)
    for rows, places in (([0, 1, 2], None), ([5, 2], [5, 2])):
        some = views.clone()
        some[[row for row in range(8) if row not in rows]] = 0
        expected = device_teacher.image_features(some)
        found = device_teacher.chunk_features(views[rows].numpy(), 8, places)
        for array in whole:
            assert torch.equal(found[array], expected[array][rows])


def test_openai_weights_get_quickgelu_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, bool]] = []
    real = open_clip.create_model

    def create(model: str, pretrained: str | None = None, *, force_quick_gelu: bool) -> object:
        asked.append((model, pretrained, force_quick_gelu))
        return real("ViT-tiny-test", force_quick_gelu=force_quick_gelu)

    monkeypatch.setattr(open_clip, "create_model", create)
    assert load("ViT-B-16/openai").spec.activation == "quickgelu"
    assert load("ViT-B-16/laion2b_s34b_b88k").spec.activation == "gelu"
    assert asked == [
        ("ViT-B-16", "openai", True),
        ("ViT-B-16", "laion2b_s34b_b88k", False),
    ]
    with pytest.raises(UsageError, match="trained with quickgelu, not gelu"):
        load("ViT-B-16/openai", activation="gelu")


def test_a_file_must_say_its_activation(teacher: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(teacher._model.state_dict(), path)
    with pytest.raises(UsageError, match="pass --activation quickgelu"):
        load(f"ViT-tiny-test/{path}")
    loaded = load(f"ViT-tiny-test/{path}", activation="gelu").spec
    assert loaded.weights_sha256 == teacher.spec.weights_sha256
    assert loaded.weights == "file:weights.pt"
    assert load(f"ViT-tiny-test-quickgelu/{path}").spec.activation == "quickgelu"
    assert load(f"ViT-tiny-test/{path}", activation="quickgelu").spec.activation == "quickgelu"


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_openais_torchscript_archive(teacher: Teacher, tmp_path: Path) -> None:
    class Archive(torch.nn.Module):
        """Holds CLIP's parameters by their names, as OpenAI's published archive does."""

        def __init__(self) -> None:
            super().__init__()
            for name, tensor in teacher._model.state_dict().items():
                owner: torch.nn.Module = self
                *path, last = name.split(".")
                for part in path:
                    if part not in owner._modules:
                        owner.add_module(part, torch.nn.Module())
                    owner = owner._modules[part]
                owner.register_parameter(last, torch.nn.Parameter(tensor.clone()))
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.logit_scale

    path = tmp_path / "ViT-tiny.pt"
    torch.jit.trace(Archive(), torch.zeros(1)).save(str(path))
    spec = load(f"ViT-tiny-test/{path}").spec
    assert spec.activation == "quickgelu"
    assert spec.weights_sha256 == teacher.spec.weights_sha256
    with pytest.raises(UsageError, match="trained with quickgelu"):
        load(f"ViT-tiny-test/{path}", activation="gelu")


def test_without_the_hub_the_error_comes_at_once_and_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants as constants

    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # Nothing listens there.
    started = time.perf_counter()
    with pytest.raises(TeacherError, match=r"--teacher ViT-B-16/PATH.*ViT-B-16/random:0") as e:
        load("ViT-B-16/openai")
    assert time.perf_counter() - started < 10
    # 149,620,737 parameters.
    said = r"\(no connection to http://127.0.0.1:9\)\. .* https://openaipublic\..*/ViT-B-16\.pt, "
    assert re.search(rf"{said}up to 598\.5 MB\.", str(e.value))
    hub = "http://127.0.0.1:9/laion/CLIP-ViT-B-16-laion2B-s34B-b88K/resolve/main"
    with pytest.raises(TeacherError, match=f"{hub}/open_clip_model.safetensors, up to 598.5 MB"):
        load("ViT-B-16/laion2b_s34b_b88k")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"no_causal_mask": True}, "a text encoder that is not causal"),
        ({"embed_cls": True}, "a class token that stands for EOT"),
        ({"hf_tokenizer_name": "some/other"}, "another tokenizer than CLIP's"),
    ],
)
def test_text_encoders_that_read_otherwise_are_refused(
    tmp_path: Path, text: dict[str, object], said: str
) -> None:
    name = f"ViT-{next(iter(text)).replace('_', '-')}"
    config = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], **text}}
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    with pytest.raises(TeacherError, match=said):
        load(f"{name}/random:0")


def names_of_open_clip() -> list[str]:
    """Return the models that come with open_clip, without those of tests."""
    folder = Path(open_clip.__file__).parent / "model_configs"
    return [path.stem for path in folder.glob("*.json")]


def test_which_models_are_teachers_is_known_by_their_names() -> None:
    of_clip = re.compile(
        r"ViT-(S|M|B|L|H|g|e|bigG)-(14|16|32)(-plus)?(-alt)?(-\d{3})?(-quickgelu)?"
    )
    others = {
        "timm's image encoder": r"SigLIP|siglip|EVA0|MobileCLIP|PE-Core|ViTamin|convnext|swin|vit_",
        "a ResNet": "RN",
        "another text encoder": "roberta|mt5|nllb",
        "another tokenizer": "CLIPA|worldwide",
        "a class token that stands for EOT": "coca",
    }
    names = names_of_open_clip()
    assert len(names) > 100
    for name in names:
        why = why_no_teacher(name)
        assert (why == "") == bool(of_clip.fullmatch(name)), (name, why)
        expected = next((said for said, kind in others.items() if re.search(kind, name)), "")
        assert why.startswith(expected), (name, why)
        assert (name in teacher_models()) == (why == "")


def small(name: str) -> dict:
    """Return the configuration of a model with small numbers in the place of its sizes."""
    config = open_clip.get_model_config(name)
    image, text = config["vision_cfg"], config["text_cfg"]
    sizes = {"layers": 2, "width": 64, "head_width": 32, "image_size": 4 * image["patch_size"]}
    return {
        **config,
        "embed_dim": 24,
        "vision_cfg": {**image, **sizes},
        "text_cfg": {**text, "layers": 2, "width": 32, "heads": 2},
    }


def test_every_kind_of_teacher_gives_open_clips_own_embeddings(tmp_path: Path) -> None:
    kinds = {json.dumps(small(name), sort_keys=True): name for name in teacher_models()
             if name in names_of_open_clip()}  # fmt: skip
    assert len(kinds) > 8
    for config, name in kinds.items():
        (tmp_path / f"small-{name}.json").write_text(config)
    open_clip.add_model_config(tmp_path)
    sequence = TeacherTokenizer("char", 25).tokenize("word").ids
    tokens = torch.zeros(1, 77, dtype=torch.int32)
    tokens[0, : len(sequence)] = torch.tensor(sequence)
    for name in kinds.values():
        side = 4 * open_clip.get_model_config(name)["vision_cfg"]["patch_size"]
        teacher = load(f"small-{name}/random:0", image_taps=(1, "final"), text_taps=(1, 2),
                       view_px=(side, side))  # fmt: skip
        views = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
        arrays = teacher.image_features(views)
        assert arrays["block1"].shape == (2, 17, 64)
        plain = teacher._model
        with torch.no_grad():
            images = normalize(views, CLIP_MEAN, CLIP_STD)
            of_image, of_text = plain.encode_image(images), plain.encode_text(tokens)
        ends = torch.tensor([len(sequence) - 1])
        for mine, theirs in (
            (teacher.image_embeddings(views), of_image),
            (arrays["final"][:, 0], of_image),
            (teacher.text_features(tokens, ends)["eot"], of_text),
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "error", "said"),
    [
        ("ViT-B-16", {}, UsageError, "is not MODEL/WEIGHTS"),
        ("vit-b16/openai", {}, UsageError, r"unknown to open_clip; did you mean ViT-B-16 "),
        ("CLIP/openai", {}, UsageError, "unknown to open_clip; expected one such as ViT-B-16"),
        ("ViT-B-16/laion-2b-s34b", {}, TeacherError, "did you mean laion2b_s34b_b88k"),
        ("ViT-S-16/openai", {}, TeacherError, "its tags are none"),
        ("ViT-tiny-test/random:x", {}, UsageError, "random:SEED"),
        ("ViT-tiny-test/no/such/file.pt", {}, TeacherError, "neither a file nor a pretrained tag"),
        ("ViT-tiny-test/random:0", {"image_taps": (3, 2)}, UsageError, "from 1 to 4"),
        ("ViT-tiny-test/random:0", {"image_taps": (3, 6, 9)}, UsageError, "from 1 to 4"),
        ("ViT-tiny-test/random:0", {"text_taps": ()}, UsageError, "text taps"),
        ("RN50/random:0", {}, TeacherError, "has a ResNet, .* are ViT-B-16, .*ViT-L-14"),
    ],
)
def test_wrong_teachers_are_explained(
    name: str, changes: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        load(name, **changes)


def test_a_damaged_weights_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"not weights")
    with pytest.raises(TeacherError, match=r"broken\.pt does not hold weights of ViT-tiny-test"):
        load(f"ViT-tiny-test/{path}", activation="gelu")

import json
from dataclasses import replace

import pytest
import torch

from clipocr.shared.charset import Charset
from clipocr.shared.errors import UsageError
from clipocr.train.data.batch import Batch
from clipocr.train.methods.base import Needs, Shapes, TextNeeds
from clipocr.train.methods.clip_ocr.losses import AlignmentLoss
from clipocr.train.methods.clip_ocr.settings import ClipOcr, LossSettings
from clipocr.train.methods.clip_ocr.trainee import ClipOcrHeads
from clipocr.train.methods.recognition import recognition_loss
from clipocr.train.models.config import StudentConfig, StudentSize
from clipocr.train.models.student import Student, StudentOutput
from clipocr.train.models.tokenizer import LabelTokenizer

TOKENIZER = LabelTokenizer(Charset.load("36"), 25)
MINI = StudentConfig(
    size=StudentSize(
        width=16,
        patch_height_px=16,
        patch_width_px=32,
        encoder_layers=4,
        encoder_heads=2,
        decoder_heads=2,
    )
)
ALL_BLOCKS = [f"block{i}" for i in range(1, 13)]
TERMS = ["recognition", "image_1", "image_2", "image_3", "word", "text_1", "text_2", "text_3"]


SHAPES = Shapes(
    images=dict.fromkeys(ALL_BLOCKS, (5, 12)),
    text=dict.fromkeys(ALL_BLOCKS, (10,)) | {"eot": (8,)},
)


def make_heads(method: ClipOcr | None = None, seed: int | None = 0) -> ClipOcrHeads:
    if seed is not None:
        torch.manual_seed(seed)
    return ClipOcrHeads(method or ClipOcr(), SHAPES, stage_shapes=[(9, 16)] * 4, decoder_width=16)


def make_batch(labels: list[str], *, device: str = "cpu", dtype=torch.float32) -> Batch:
    """Random targets whose size grows with the block, as the teacher's residual streams do."""
    generator = torch.Generator().manual_seed(len(labels))
    num_positions = max(map(len, labels)) + 1

    def features(*shape: int, scale: int = 1) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)

    return Batch(
        views=torch.zeros(len(labels), 32, 128, 3, dtype=torch.uint8, device=device),
        labels=labels,
        token_ids=TOKENIZER.encode(labels).to(device),
        images={f"block{i}": features(len(labels), 5, 12, scale=i) for i in (3, 6, 9)},
        text={
            **{f"block{i}": features(len(labels), num_positions, 10, scale=i) for i in (3, 6, 9)},
            "eot": features(len(labels), 8),
        },
        device=torch.device(device),
    )


def run_student(batch: Batch) -> tuple[Student, StudentOutput]:
    torch.manual_seed(1)
    device = batch.device
    student = Student(MINI, TOKENIZER).to(device).eval()
    images = torch.randn(len(batch.labels), 3, 32, 128, device=device)
    return student, student(images, batch.token_ids)


def test_default_heads_have_the_official_number_of_parameters():
    method = ClipOcr()
    heads = ClipOcrHeads(
        method,
        Shapes(
            images=dict.fromkeys(method.needs().images, (17, 768)),
            text=dict.fromkeys(method.needs().text.arrays, (512,)),
        ),
        stage_shapes=[(129, 384)] * 4,
        decoder_width=384,
    )
    sizes = {
        name: sum(p.numel() for p in module.parameters()) for name, module in heads.named_children()
    }
    assert sizes == {"image_heads": 902_835, "word_head": 345_728, "text_heads": 597_504}
    assert sum(sizes.values()) == 1_846_067


def test_the_trainee_is_the_student_and_these_heads():
    batch = make_batch(["ab", "cde", ""])
    method = ClipOcr(student=MINI)
    torch.manual_seed(3)
    trainee = method.trainee(TOKENIZER, SHAPES).eval()
    torch.manual_seed(3)
    student = method.recogniser(TOKENIZER).eval()
    heads = make_heads(method, seed=None)
    expected = heads(student(batch.normalized_views(), batch.token_ids), batch)
    terms = trainee(batch)
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in expected.items()}
    assert list(trainee.term_names) == list(terms)
    assert trainee.recogniser.state_dict().keys() == student.state_dict().keys()


def test_needs_are_what_the_supervised_stages_follow():
    assert ClipOcr().needs() == Needs(
        images=("block3", "block6", "block9"),
        text=TextNeeds(tokenizer="char", arrays=("block3", "block6", "block9", "eot")),
        num_taps=3,
    )
    some = ClipOcr(image_stages=(2,), text_stages=(1,), word=False, tokenizer="word")
    assert some.needs() == Needs(
        images=("block6",), text=TextNeeds(tokenizer="word", arrays=("block9",)), num_taps=3
    )


def test_terms_pair_each_stage_with_its_tap_and_text_backwards():
    batch = make_batch(["ab", "cde", ""])
    _, output = run_student(batch)
    method = make_heads()
    loss = AlignmentLoss(intra_weight=5.0, inter_weight=0.1, temperature=0.03)
    expected = {"recognition": recognition_loss(output.logits, batch.token_ids[:, 1:])}
    for i, (image_tap, text_tap) in enumerate([(3, 9), (6, 6), (9, 3)]):
        image = method.image_heads[i](output.encoder_stages[i], batch.images[f"block{image_tap}"])
        text = method.text_heads[i](output.decoder_stages[i], batch.text[f"block{text_tap}"])
        expected[f"image_{i + 1}"] = loss(*image)
        expected[f"text_{i + 1}"] = loss(*text)
    word = method.word_head(output.encoder_stages[3][:, 0], batch.text["eot"])
    expected["word"] = loss(*word)
    terms = method(output, batch)
    assert list(terms) == TERMS
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in expected.items()}


def test_other_taps_and_weights_are_used():
    method = ClipOcr(
        image_taps=(2, 4, 6),
        text_taps=(1, 2, 3),
        loss=LossSettings(intra_weight=0.0, inter_weight=0.0),
    )
    batch = make_batch(["ab", "c"])
    batch = replace(
        batch,
        images=dict.fromkeys(("block2", "block4", "block6"), batch.images["block3"]),
        text=dict.fromkeys(("block1", "block2", "block3"), batch.text["block3"])
        | {"eot": batch.text["eot"]},
    )
    _, output = run_student(batch)
    terms = make_heads(method)(output, batch)
    assert [name for name, term in terms.items() if term.item() != 0] == ["recognition"]


def test_gradient_reaches_student_heads_and_teacher_norms_but_no_target():
    batch = make_batch(["ab", "cde"])
    targets = [*batch.images.values(), *batch.text.values()]
    for target in targets:
        target.requires_grad_()
    student, output = run_student(batch)
    method = make_heads()
    sum(method(output, batch).values()).backward()
    assert all(target.grad is None for target in targets)
    for name, parameter in [*student.named_parameters(), *method.named_parameters()]:
        assert parameter.grad is not None, name
    for norm in (method.image_heads[0].align.teacher_norm, method.text_heads[2].teacher_norm):
        assert norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "labels",
    [["a"], [""], ["abc"] * 4, ["", "", "abcdefgh"]],
    ids=["one sample", "one empty label", "identical labels", "mostly padding"],
)
def test_awkward_batches_have_finite_losses_and_gradients(labels):
    batch = make_batch(labels)
    student, output = run_student(batch)
    terms = make_heads()(output, batch)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_targets_under_autocast(device, dtype):
    batch = make_batch(["ab", "cde"], device=device, dtype=dtype)
    method = make_heads().to(device)
    with torch.autocast(device, dtype):
        _, output = run_student(batch)
        terms = method(output, batch)
    sum(terms.values()).backward()
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(term.isfinite() for term in terms.values())


def test_a_residual_stream_too_large_for_half_precision_stays_finite():
    batch = make_batch(["ab", "cde"])
    with torch.autocast("cpu", torch.float16):
        _, output = run_student(batch)
        for stage in output.encoder_stages[:3]:
            assert stage.dtype == torch.float32
            stage.detach().mul_(1e7)
        terms = make_heads()(output, batch)
    assert all(term.isfinite() for term in terms.values())


def test_settings_survive_json():
    method = ClipOcr(image_taps=(2, 4, 8), text_stages=(1, 3), loss=LossSettings(kind="kl"))
    assert ClipOcr.from_values(json.loads(json.dumps(method.to_values()))) == method


@pytest.mark.parametrize(
    ("stages", "terms"),
    [
        ({"image_stages": (), "text_stages": (), "word": False}, ["recognition"]),
        ({"text_stages": (), "word": False}, TERMS[:4]),
        ({"image_stages": ()}, ["recognition", "word", "text_1", "text_2", "text_3"]),
        (
            {"image_stages": (2,), "text_stages": (1, 3)},
            ["recognition", "image_2", "word", "text_1", "text_3"],
        ),
    ],
)
def test_stages_that_are_left_out_have_no_heads_and_need_no_taps(stages, terms):
    batch = make_batch(["ab", "cde"])
    _, output = run_student(batch)
    whole, method = make_heads(), make_heads(ClipOcr(**stages))
    assert list(method.term_names) == terms
    needs = method.method.needs()
    needed = replace(
        batch,
        images={name: batch.images[name] for name in needs.images},
        text={name: batch.text[name] for name in needs.text.arrays},
    )
    # The same heads at the same stages as in the whole method.
    for name, stage in [(n, int(n[-1])) for n in terms if n[-1].isdigit()]:
        own = {"image": method.image_heads, "text": method.text_heads}[name[:-2]]
        place = [n for n in terms if n.startswith(name[:-2])].index(name)
        theirs = {"image": whole.image_heads, "text": whole.text_heads}[name[:-2]]
        own[place].load_state_dict(theirs[stage - 1].state_dict())
    if method.word_head is not None:
        method.word_head.load_state_dict(whole.word_head.state_dict())
    expected = whole(output, batch)
    found = method(output, needed)
    assert {k: v.item() for k, v in found.items()} == {k: expected[k].item() for k in terms}


def test_masked_pads_are_out_of_the_text_terms_only():
    batch = make_batch(["ab", "cdefgh"])
    _, output = run_student(batch)
    official = make_heads()(output, batch)
    masked = make_heads(ClipOcr(mask_pads=True))(output, batch)
    for name, term in official.items():
        assert (masked[name].item() != term.item()) == name.startswith("text")
    # Positions after EOS could be anything now: "ab" has three positions that count, of seven.
    for name, features in batch.text.items():
        if name != "eot":
            features[0, 3:] = 1e3
    again = make_heads(ClipOcr(mask_pads=True))(output, batch)
    assert {k: v.item() for k, v in again.items()} == {k: v.item() for k, v in masked.items()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_taps": (3, 6)}, r"image_taps is \(3, 6\), expected 3"),
        ({"text_taps": (9, 6, 3)}, r"text_taps is \(9, 6, 3\)"),
        (
            {"text_taps": (0, 3, 6)},
            r"text_taps is \(0, 3, 6\), expected a list, each a whole number",
        ),
        ({"image_stages": (1, 4)}, r"image_stages is \(1, 4\), expected some of \(1, 2, 3\)"),
        ({"text_stages": (2, 1)}, r"text_stages is \(2, 1\)"),
        ({"tokenizer": "syllable"}, "tokenizer is 'syllable', expected one of char, word"),
    ],
)
def test_settings_refuse_nonsense(settings, message):
    with pytest.raises(UsageError, match=message):
        ClipOcr(**settings)

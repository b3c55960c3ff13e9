"""A model made of a teacher's own tensors is that teacher, and of no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from samples import TINY_TEACHER

from clipocr.shared.clip.weights import load_weights, model_from_tensors
from clipocr.shared.errors import TeacherError, UsageError


@pytest.mark.parametrize("name", [TINY_TEACHER, "ViT-tiny-test-quickgelu/random:3"])
def test_it_says_what_the_teacher_says(name: str) -> None:
    teacher, spec = load_weights(name, "fp32")
    before = torch.get_rng_state()
    model = model_from_tensors(spec, teacher.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 224, 224, generator=generator)
    tokens = torch.randint(1, 49408, (2, 77), generator=generator)
    with torch.no_grad():
        for found, expected in zip(model(images, tokens), teacher(images, tokens), strict=True):
            assert torch.equal(found, expected)
    # Copied: who trains the one does not change the other.
    with torch.no_grad():
        model.logit_scale += 1
    assert model.logit_scale != teacher.logit_scale


def test_other_tensors_are_refused() -> None:
    teacher, spec = load_weights(TINY_TEACHER, "fp32")
    tensors = teacher.state_dict()
    other = {**tensors, "logit_scale": tensors["logit_scale"] + 1}
    with pytest.raises(TeacherError, match=r"are not the weights of ViT-tiny-test/random:0 \(sha"):
        model_from_tensors(spec, other)
    del other["visual.proj"]
    with pytest.raises(TeacherError, match=r"(?s)weights of ViT-tiny-test: .*visual\.proj.*pass"):
        model_from_tensors(spec, other)
    with pytest.raises(TeacherError, match=r"(?s)weights of ViT-equal-test: .*size mismatch"):
        model_from_tensors(replace(spec, model="ViT-equal-test"), tensors)
    with pytest.raises(UsageError, match="'ViT-none' is unknown to open_clip"):
        model_from_tensors(replace(spec, model="ViT-none"), tensors)


def test_the_wrong_activation_is_refused() -> None:
    name = "ViT-tiny-test-quickgelu/random:0"
    teacher, spec = load_weights(name, "fp32")
    with pytest.raises(TeacherError, match="with quickgelu although these weights need gelu"):
        model_from_tensors(replace(spec, activation="gelu"), teacher.state_dict())

import numpy as np
import torch

from fakes.tiny_tuning import SEGMENTER, SIDE, disc, tiny_decoder, view_of
from vplab.training.tuning.batches import make_batch
from vplab.training.tuning.examples import build_examples
from vplab.training.tuning.prompting import PromptDrawer
from vplab.training.tuning.validation import validate
from vplab.training.tuning.values import EmbeddedView
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.specs import ColourEvidence

EVIDENCE = ColourEvidence(weight=0.5, levels=8, smoothing=1.0, sure_logit=1.0, reach=0.25)
SHARPENED = SEGMENTER.model_copy(update={"colour_evidence": EVIDENCE})


def colourful(mask):
    """Return a view whose object is red on blue, twice as fine as the decoder's grid."""
    view = view_of({1: mask})
    colours = np.zeros((3, SIDE, SIDE), np.float32)
    colours[0], colours[2] = mask, ~mask
    return EmbeddedView(**{**vars(view), "colours": colours})


def drawn(examples, segmenter):
    prompts = PromptDrawer(examples, segmenter).draw(6, np.random.default_rng(0))
    count = len(prompts[0].tokens.labels)
    return make_batch([p for p in prompts if len(p.tokens.labels) == count], examples, segmenter, "cpu")


def test_training_sees_the_logits_that_serving_sharpens():
    view = colourful(disc((30, 30), 12))
    batch = drawn(build_examples([view], [1], SHARPENED), SHARPENED)
    logits = torch.randn(len(batch.targets), 4, *SHARPENED.low_res_hw, requires_grad=True)
    sharp = batch.sharpened(logits)
    served = ColourModel.of(view.colours, view.transform, SHARPENED)
    assert served is not None
    wanted = served.sharpen(logits[0, 2].detach().numpy())
    np.testing.assert_allclose(sharp[0, 2].detach().numpy(), wanted, atol=1e-5)


def test_a_sharpened_mask_has_the_gradient_of_its_enlargement():
    batch = drawn(build_examples([colourful(disc((30, 30), 12))], [1], SHARPENED), SHARPENED)
    logits = torch.randn(len(batch.targets), 4, *SHARPENED.low_res_hw, requires_grad=True)
    sharp = batch.sharpened(logits)
    weights = torch.randn(sharp.shape)
    enlarged = torch.nn.functional.interpolate(logits, sharp.shape[-2:], mode="bilinear", align_corners=False)
    found, wanted = (torch.autograd.grad((weights * planes).sum(), logits)[0] for planes in (sharp, enlarged))
    assert sharp.shape[-1] > logits.shape[-1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_segmenter_without_colour_evidence_is_trained_on_its_logits():
    batch = drawn(build_examples([colourful(disc((30, 30), 12))], [1], SEGMENTER), SEGMENTER)
    logits = torch.randn(len(batch.targets), 4, *SEGMENTER.low_res_hw)
    assert batch.sharpened(logits) is logits


@torch.no_grad()
def test_validation_measures_what_serving_answers():
    view = colourful(disc((30, 30), 12))
    plain, sharp = (validate(tiny_decoder(), build_examples([view], [1], s), s)[0] for s in (SEGMENTER, SHARPENED))
    assert plain.proposal_iou is not None
    assert sharp.proposal_iou is not None
    assert sharp.proposal_iou > plain.proposal_iou  # the colours are those of the object

"""Matching of reference patches with target patches; three matchers behind one port (``matcher.Matcher``)."""

from vplab.vision.matching.class_bank import ClassBank, ClassReference, build_class_bank
from vplab.vision.matching.graph import GraphMatcher
from vplab.vision.matching.matcher import Match, Matcher, MatchOptions, PatchScores
from vplab.vision.matching.patches import PatchFeatures, TargetPatches
from vplab.vision.matching.pixel_classifier import PixelClassifier
from vplab.vision.matching.proposals import propose
from vplab.vision.matching.prototype import PrototypeMatcher
from vplab.vision.matching.softmatch import SoftMatcher

MATCHERS: dict[str, Matcher] = {"softmatch": SoftMatcher(), "prototype": PrototypeMatcher(), "graph": GraphMatcher()}
"""Matchers by the name callers use."""

__all__ = [
    "MATCHERS",
    "ClassBank",
    "ClassReference",
    "GraphMatcher",
    "Match",
    "MatchOptions",
    "Matcher",
    "PatchFeatures",
    "PatchScores",
    "PixelClassifier",
    "PrototypeMatcher",
    "SoftMatcher",
    "TargetPatches",
    "build_class_bank",
    "propose",
]

"""Segmentations against the truth: pairs of files, scores in one streaming pass, tables and pictures."""

from tilelab.evaluation.label_map import LabelMap
from tilelab.evaluation.labels import Labels, open_labels
from tilelab.evaluation.pairs import Pair, find_pairs
from tilelab.evaluation.scoring import Evaluation, PairScores, evaluate

__all__ = ["Evaluation", "LabelMap", "Labels", "Pair", "PairScores", "evaluate", "find_pairs", "open_labels"]

"""How good a segmentation is; no torch.

`confusion` counts pixels and scores them (accuracy, IoU, Dice, precision, recall, F1), `isbi` compares partitions
(V_rand, V_info), `surface` measures distances between outlines (ASSD), `tolerant` counts pixels but forgives
small displacements.  The last three compile with Numba when imported.
"""

from tilelab.evaluation.metrics.confusion import Scores, count_confusion, score_confusion

__all__ = ["Scores", "count_confusion", "score_confusion"]

"""What a segmentation says in numbers: areas and objects; streamed, in units where the pixel size is known.

>>> from tilelab.measure import measure
>>> survey = measure("cells.ome.zarr")          # doctest: +SKIP
>>> survey.fractions, survey.table()            # doctest: +SKIP
"""

from tilelab.measure.reading import Question
from tilelab.measure.survey import Survey, measure

__all__ = ["Question", "Survey", "measure"]

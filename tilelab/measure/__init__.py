"""What a segmentation says in numbers: areas and objects; streamed, in units where the pixel size is known.

>>> with tilelab.measure("sample.ome.zarr", only="secondary precipitate") as survey:
...     survey.unit, survey.objects.count == len(survey.table()["area_px"])
('px', True)
"""

from tilelab.measure.call import measure, plan
from tilelab.measure.forecast import Forecast
from tilelab.measure.reading import Question
from tilelab.measure.survey import Survey

__all__ = ["Forecast", "Question", "Survey", "measure", "plan"]

"""The studies: questions that name the fits they want and turn finished ones into an answer. They never fit."""

from pixfit.studies.climb import ClimbStudy
from pixfit.studies.prefit import PrefitStudy
from pixfit.studies.study import Answer, Counts, Study, StudyError, Table
from pixfit.studies.triples import Triple, distinct, original

__all__ = [
    "STUDIES", "Answer", "ClimbStudy", "Counts", "PrefitStudy", "Study", "StudyError", "Table", "Triple", "distinct",
    "original",
]  # fmt: skip

STUDIES: dict[str, type[Study]] = {"prefit": PrefitStudy, "climb": ClimbStudy}

"""The studies: questions that name the fits they want and turn finished ones into an answer. They never fit."""

from pixfit.studies.climb import ClimbStudy
from pixfit.studies.memorize import MemorizeStudy
from pixfit.studies.prefit import PrefitStudy
from pixfit.studies.restore import RestoreStudy
from pixfit.studies.study import Answer, Counts, Study, StudyError, Table
from pixfit.studies.triples import Triple, distinct, original

__all__ = [
    "STUDIES", "Answer", "ClimbStudy", "Counts", "MemorizeStudy", "PrefitStudy", "RestoreStudy", "Study", "StudyError",
    "Table", "Triple", "distinct", "original",
]  # fmt: skip

STUDIES: dict[str, type[Study]] = {
    "prefit": PrefitStudy, "climb": ClimbStudy, "restore": RestoreStudy, "memorize": MemorizeStudy,
}  # fmt: skip

"""Restore one damaged picture without training data: `denoise`, `inpaint`, `upscale` and `deblur`.

A convolutional network is fitted to the damaged picture alone (deep image prior, Ulyanov et al., CVPR 2018). It fits
structure sooner than noise, so the fit must end in time, and the truth that would tell when is not at hand: some whole
pixels are held out of the loss, and the answer is the running average of what the network showed, at the step where it
predicts those pixels best; small squares of pixels where neighbours share their noise. The same pixels weigh the answer
against a classical estimate, which costs next to nothing and mends what the network is worst at. Large pictures are
restored in pieces that overlap.
"""

from pixfit.restore.commands import deblur, denoise, inpaint, upscale
from pixfit.restore.restored import Options, Progress, Restored

__all__ = ["Options", "Progress", "Restored", "deblur", "denoise", "inpaint", "upscale"]

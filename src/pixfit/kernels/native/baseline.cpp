#define PIXFIT_ISA "baseline"
#include "kernel.h"

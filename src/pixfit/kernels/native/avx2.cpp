#define PIXFIT_ISA "avx2"
#include "kernel.h"

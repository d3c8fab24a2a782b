#define PIXFIT_ISA "avx512"
#include "kernel.h"

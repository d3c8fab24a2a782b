#define PIXFIT_ISA "avx512bf16"
#include "kernel.h"

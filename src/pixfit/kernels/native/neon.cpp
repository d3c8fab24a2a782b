#define PIXFIT_ISA "neon"
#include "kernel.h"

// The C interface of pixfit's fused kernels. Python calls it through ctypes; src/pixfit/kernels/native.py mirrors every
// struct field by field, and both sides state the same ABI number. All pointers are to float32 or int64 arrays that
// the caller owns and keeps alive; nothing is kept between two calls.
//
// Shape legend: F fits, P parameters of a fit, N samples, B of them in a batch, D coordinates of a sample, C outputs.

#ifndef PIXFIT_API_H
#define PIXFIT_API_H

#include <stdint.h>

#define PIXFIT_ABI 4

enum PixfitActivation { PIXFIT_NONE, PIXFIT_SINE, PIXFIT_FINER, PIXFIT_FINER_EXACT, PIXFIT_RELU, PIXFIT_GELU,
                        PIXFIT_SILU, PIXFIT_GAUSS };
enum PixfitNorm { PIXFIT_NO_NORM, PIXFIT_LAYER_NORM, PIXFIT_RMS_NORM };
enum PixfitLift { PIXFIT_RAW, PIXFIT_FOURIER, PIXFIT_GABOR, PIXFIT_POSITIONAL, PIXFIT_GRID };
enum PixfitInterpolation { PIXFIT_BILINEAR, PIXFIT_CATMULL_ROM, PIXFIT_SPLINE };
enum PixfitOutput { PIXFIT_LINEAR, PIXFIT_SIGMOID };
enum PixfitLoss { PIXFIT_MSE, PIXFIT_L1, PIXFIT_HUBER };
enum PixfitOptimiser { PIXFIT_GRADIENT_ONLY, PIXFIT_ADAM, PIXFIT_SCHEDULE_FREE };
// Operands of products: as they are, or in bfloat16, by vectors or by the processor's matrix units.
enum PixfitProducts { PIXFIT_FLOAT32, PIXFIT_BFLOAT16, PIXFIT_TILES };
enum PixfitStatus { PIXFIT_OK, PIXFIT_STOPPED, PIXFIT_BAD_ARGUMENT, PIXFIT_NO_MEMORY };

// y = norm(f(omega (W x + b))), or f(norm(...)) with norm_first, then (y + x) / sqrt 2 with skip.
// Offsets count floats from the start of a fit's row of P parameters; -1: there is none.
typedef struct {
  int64_t inputs, outputs;
  int64_t weight, bias;  // weight: (outputs, inputs) row-major
  int64_t gain, shift;   // of the norm, (outputs)
  double omega;
  double eps;            // of the norm
  int64_t activation, norm, norm_first, skip;
} PixfitLayer;

// One level of a feature grid: rows x columns vertices of `features` numbers, or `entries` hashed ones.
typedef struct {
  int64_t rows, columns, features, entries, hashed;
  int64_t table;  // offset of (entries, features) in the row of P parameters
} PixfitLevel;

typedef struct {
  int64_t abi;
  int64_t in_features, out_features, parameters;
  int64_t lift, lift_features;
  int64_t frequencies, centres;  // offsets in a fit's row of fixed numbers, both (D, lift_features / 2)
  double sigma;                  // of the Gabor envelope
  int64_t octaves, include_input;
  const PixfitLevel *levels;
  int64_t level_count, interpolation;
  int64_t corner;    // vertex i of n lies at i / (n - 1) of the range, else at (i + 1/2) / n
  int64_t row_axis;  // which coordinate says the row of a grid
  double low, high;  // range of the coordinates that a grid covers
  const PixfitLayer *layers;
  int64_t layer_count;
  int64_t output;
  int64_t backward;  // PixfitProducts on the way back
} PixfitPlan;

// Where the numbers of one fit are.
typedef struct {
  const float *coordinates;  // (N, D)
  const float *targets;      // (N, C); not read by a forward pass
  const float *weights;      // (N, C) or null
  const float *fixed;        // fixed frequencies and centres, or null
  const int64_t *index;      // (steps, B) rows of the tables above, or null: all N in order
  float *parameters;         // (P)
  float *gradient;           // (P): that of the last step; of a call that was stopped it has no meaning
  float *first, *second;     // (P): moments of Adam; z and second moment of schedule-free
  float *average;            // (P) or null: moving average of the parameters
  const float *mask;         // (P) of 0 and 1, or null
  const double *rates;       // (steps, 2): learning rate; of schedule-free also the averaging weight c
  double *plateau;           // (5) best, bad, factor, total, count; or null
  double *losses;            // (steps)
  double base_rate;          // learning rate that the plateau's factor works on
  int64_t rows;              // N
  int64_t count;             // updates made before
} PixfitFit;

typedef struct {
  int64_t optimiser;
  double beta1, beta2, eps, weight_decay;
  double clip_norm;      // 0: none
  double average_decay;  // of PixfitFit.average
  // Plateau: see pixfit.schedules.Plateau
  double plateau_decay, plateau_threshold, plateau_min_lr, plateau_eps;
  int64_t plateau_patience, steps_per_epoch, epoch_step;  // epoch_step: steps already made in this epoch
} PixfitUpdate;

// A convolution of a map (height, width, inputs), padded by (kernel - 1) / 2 with zeros or by reflection, a norm by the
// statistics of what comes out, and a leaky ReLU. The bias of the convolution is left out: the norm takes it away.
typedef struct {
  int64_t height, width, inputs, outputs;
  int64_t kernel, stride;  // the kernel's side, odd
  int64_t reflect, threads, products;
  double eps, slope;       // of the norm; of the leaky ReLU below 0
} PixfitBlock;

// Features of the maps of one level of an hourglass.
typedef struct {
  int64_t down, up, skip;
} PixfitLevelOfMaps;

// See pixfit.models.Hourglass. Numbers do not depend on the threads.
typedef struct {
  int64_t height, width, inputs, outputs;
  int64_t down_kernel, up_kernel, skip_kernel;
  int64_t mix, nearest, reflect, sigmoid, threads;
  int64_t products;  // PixfitProducts of all convolutions but that of the colours
  double eps, slope;
  const PixfitLevelOfMaps *levels;
  int64_t level_count;
} PixfitHourglass;

#ifdef __cplusplus
extern "C" {
#endif

int64_t pixfit_abi(void);
const char *pixfit_source_hash(void);
const char *pixfit_isa(void);       // what this library was compiled for: avx512bf16, avx512, avx2, baseline, neon
int64_t pixfit_supported(void);     // whether this processor runs it
const char *pixfit_compiler(void);
int64_t pixfit_products(void);      // the fastest PixfitProducts with bfloat16 here; 0: there are none

// Bytes of scratch memory that the two functions below need for such a call; -1: the plan is wrong. Its contents do not
// matter, but it must not be shared by calls at one time; kept from call to call, it saves the system clearing it.
int64_t pixfit_scratch(const PixfitPlan *plan, int64_t fit_count, int64_t samples, int64_t threads);

// `steps` steps of `fit_count` fits, each on `samples` rows (of the index, or of the tables). `stop` is looked at
// between tiles: once it is not 0 the call returns PIXFIT_STOPPED, each fit with the weights of its last whole step. So
// give it to calls of one fit alone; several would end at different steps.
// `done` (F): steps made.
int64_t pixfit_steps(const PixfitPlan *plan, const PixfitUpdate *update, int64_t loss, double loss_delta,
                     PixfitFit *fits, int64_t fit_count, int64_t samples, int64_t steps, int64_t threads,
                     void *scratch, int64_t scratch_bytes, const volatile int32_t *stop, int64_t *done);

// Outputs (samples, C), without the loss, of one fit's parameters at its coordinates.
int64_t pixfit_forward(const PixfitPlan *plan, const PixfitFit *fit, int64_t samples, float *outputs, int64_t threads,
                       void *scratch, int64_t scratch_bytes, const volatile int32_t *stop);

// Floats of memory that an hourglass needs, kept from the way forward to the way back; -1: it is wrong. `parameters`:
// how many tensors it has.
int64_t pixfit_hourglass_memory(const PixfitHourglass *net, int64_t *parameters);

// The picture y (height, width, outputs) of a code (height, width, inputs). `parameters`: a tensor each, in the order
// of the module.
int64_t pixfit_hourglass(const PixfitHourglass *net, const float *code, const float *const *parameters, float *y,
                         float *memory, int64_t floats);

// From the gradient dy of y, and what the way forward left in memory, those of the code (or null) and the parameters.
int64_t pixfit_hourglass_back(const PixfitHourglass *net, const float *dy, const float *const *parameters,
                              float *dcode, float *const *gradients, float *memory, int64_t floats);

// What the processor can do, for benchmarks: register-only fused multiply-adds (GFLOP/s) and sine with cosine
// (ns an element, in cache), on the calling thread for about `seconds`.
double pixfit_peak(double seconds, int64_t bfloat16);
double pixfit_sincos_time(double seconds);

#ifdef __cplusplus
}
#endif
#endif

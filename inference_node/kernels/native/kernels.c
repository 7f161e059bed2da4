/* CPU kernels that read adapter pages and key-value blocks where they lie.
 *
 * Plain C with OpenMP; build.py compiles it for the processor it runs on. Elements are bfloat16 or
 * float32, sums are float32. `typed.h` holds the bodies and is included once for each element type.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
static inline int64_t thread_index(void) { return omp_get_thread_num(); }
static inline int64_t threads(void) { return omp_get_num_threads(); }
static inline int64_t most_threads(void) { return omp_get_max_threads(); }
static inline double seconds(void) { return omp_get_wtime(); }
#else
static inline int64_t thread_index(void) { return 0; }
static inline int64_t threads(void) { return 1; }
static inline int64_t most_threads(void) { return 1; }
static inline double seconds(void) { return 0; }
#endif

#define RANKS 8 /* ranks of one page: PAGE_RANKS of kernels/lora */
#define MAX_DIM 256
#define MAX_GROUP_DIM 8192

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(64)));
typedef uint32_t bits16 __attribute__((vector_size(64)));
typedef int32_t ints16 __attribute__((vector_size(64)));
typedef uint16_t raw16_bf16 __attribute__((vector_size(32)));
typedef vec raw16_f32;

static inline float bf16_load(bf16 v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline bf16 bf16_store(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (bf16)((bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded);
}

static inline vec bf16_widen(raw16_bf16 raw) {
#ifdef __AVX512BF16__ /* Compilers make five instructions of the other line. */
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)raw), 16);
#else
    return (vec)(__builtin_convertvector(raw, bits16) << 16);
#endif
}

static inline raw16_bf16 bf16_narrow(vec v) {
#ifdef __AVX512BF16__
    return (raw16_bf16)_mm512_cvtneps_pbh((__m512)v);
#endif
    bits16 bits = (bits16)v, nan = (bits16)(v != v);
    bits16 rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector((rounded & ~nan) | (((bits >> 16) | 0x40u) & nan), raw16_bf16);
}

/* sum += a * b, element by element, or two by two where the processor multiplies bfloat16. */
#ifdef __AVX512BF16__
enum { DOT_bf16 = 32 };
typedef __m512bh dot_vec_bf16;
static inline vec dot_bf16(vec sum, __m512bh a, __m512bh b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, a, b);
}
#else
enum { DOT_bf16 = 16 };
typedef raw16_bf16 dot_vec_bf16;
static inline vec dot_bf16(vec sum, raw16_bf16 a, raw16_bf16 b) {
    return sum + bf16_widen(a) * bf16_widen(b);
}
#endif
enum { DOT_f32 = 16 };
typedef vec dot_vec_f32;
static inline vec dot_f32(vec sum, vec a, vec b) { return sum + a * b; }

static inline vec f32_widen(vec v) { return v; }
static inline vec f32_narrow(vec v) { return v; }
static inline float f32_load(float v) { return v; }
static inline float f32_store(float v) { return v; }

/* e^x for x <= 0: 2^n * p(r), Cephes' polynomial, within 2 ulp of expf; what would be under e^-87 is
 * e^-87. NaN stays NaN. No branches: loops over it are vectors.
 */
static inline float exp_nonpositive(float x) {
    float bounded = x < -87.0f ? -87.0f : x;
    float n = (float)(int32_t)(bounded * 1.44269504f - 0.5f);
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* exp_nonpositive of sixteen. */
static inline vec exp_nonpositive16(vec x) {
    vec floor = (vec){0} - 87.0f;
    ints16 below = x < floor;
    vec bounded = (vec)(((ints16)x & ~below) | ((ints16)floor & below));
    ints16 whole = __builtin_convertvector(bounded * 1.44269504f - 0.5f, ints16);
    vec n = __builtin_convertvector(whole, vec);
    vec r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((whole + 127) << 23);
}

/* Which rows read which pages in one module group. Pair i is a row and one of its pages; pairs of one
 * row are neighbours: run i is pairs first[i] to first[i + 1]. Tile t is runs tile[t] to tile[t + 1]:
 * rows one under the other that read the same pages. No tiles: nobody reads any.
 */
typedef struct {
    int64_t tiles;
    const int32_t *tile, *first, *row, *page;
    const float *scale;
} Routing;

/* Where the tiles of part `part` of `parts` begin: of pages that rows read, each part has about as many. */
static inline int64_t first_tile(const Routing *routing, int64_t part, int64_t parts) {
    int64_t low = 0, high = routing->tiles;
    int64_t before = (int64_t)routing->first[routing->tile[high]] * part / parts;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (routing->first[routing->tile[middle]] < before)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The pair whose page is read after that of `pair`, for `rows` runs from `run` on that read the same
 * pages side by side. After the last one comes itself.
 */
static inline int32_t pair_after(const Routing *routing, int32_t run, int32_t rows, int32_t pair) {
    const int32_t *first = routing->first;
    int32_t after = pair + 1 < first[run + 1] ? pair + 1 : first[run + rows];
    return after < first[routing->tile[routing->tiles]] ? after : pair;
}

/* The tasks of this thread: tiles, or where there are few, each of them in `parts`. */
typedef struct {
    int64_t parts, from, to;
} Share;

static inline Share share_of(const Routing *routing, int64_t parts) {
    int64_t me = thread_index(), all = threads(), tasks = routing->tiles * parts;
    if (routing->tiles < 2 * all) return (Share){parts, tasks * me / all, tasks * (me + 1) / all};
    return (Share){1, first_tile(routing, me, all), first_tile(routing, me + 1, all)};
}

/* Whether threads share so many rows one by one: fewer are shared in parts. */
static inline int rows_whole(int64_t rows, int64_t threads) { return rows >= 2 * threads; }

#define T float
#define LOAD f32_load
#define STORE f32_store
#define WIDEN f32_widen
#define NARROW f32_narrow
#define NAME(f) f##_f32
#include "typed.h"
#include "rows.h"
#include "greedy.h"
#undef T
#undef LOAD
#undef STORE
#undef WIDEN
#undef NARROW
#undef NAME

#define T bf16
#define LOAD bf16_load
#define STORE bf16_store
#define WIDEN bf16_widen
#define NARROW bf16_narrow
#define NAME(f) f##_bf16
#include "typed.h"
#include "ahead.h"
#include "nf4.h"
#include "dense.h"
#include "attention.h"
#include "rows.h"
#include "greedy.h"
#include "layer.h"
#include "model.h"

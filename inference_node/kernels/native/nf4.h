/* y = x * W^T for 4-bit weights, decoded in registers by AVX-512: one permutation looks up the codes
 * of 16 outputs and two inputs, one dot product multiplies them with a row.
 *
 * A row's sums are taken in the same order however many rows there are, so a row's result does not
 * depend on the rows beside it. The scale of a block is multiplied with the block's sum, in float32:
 * a weight is rounded once, where the codebook is.
 */
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define NF4_PRODUCTS

enum { OUTPUTS = 16, NF4_BLOCK = 64, BLOCK_BYTES = OUTPUTS * NF4_BLOCK / 2, MOST_ROWS = 16, AHEAD = 4096 };

/* weight [out / 16, in / 64, 8] of 64 bytes, each 16 lanes of 32 bits: lane o, half h and nibble j of
 * the half are the code of output o and input 2 * j + h of eight. scale [out / 16, in / 64, 16].
 */
typedef struct {
    const uint8_t *weight;
    const float *scale;
    const bf16 *bias; /* may be absent */
    int64_t in, out;
} Product;

/* The NF4 codebook (QLoRA, arXiv 2305.14314) in bfloat16, twice: the fifth bit of an index is free. */
static const uint16_t NF4[32] __attribute__((aligned(64))) = {
    0xBF80, 0xBF32, 0xBF06, 0xBECA, 0xBE92, 0xBE3D, 0xBDBA, 0x0000, 0x3DA3, 0x3E25, 0x3E7C,
    0x3EAD, 0x3EE2, 0x3F10, 0x3F39, 0x3F80, 0xBF80, 0xBF32, 0xBF06, 0xBECA, 0xBE92, 0xBE3D,
    0xBDBA, 0x0000, 0x3DA3, 0x3E25, 0x3E7C, 0x3EAD, 0x3EE2, 0x3F10, 0x3F39, 0x3F80};

static inline __m512bh both_inputs(const bf16 *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

/* `rows` rows, a constant where it is inlined, by the 16 outputs of one panel. */
static inline __attribute__((always_inline)) void nf4_panel(const Product *product,
                                                            const uint8_t *weight,
                                                            const float *scale, const bf16 *x,
                                                            bf16 *y, int64_t y_stride,
                                                            const bf16 *bias, const int rows) {
    const __m512i codebook = _mm512_load_si512(NF4);
    __m512 sums[MOST_ROWS];
    for (int row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
    for (int64_t from = 0; from < product->in; from += NF4_BLOCK) {
        __m512 block[MOST_ROWS];
        for (int row = 0; row < rows; row++) block[row] = _mm512_setzero_ps();
        for (int eight = 0; eight < NF4_BLOCK; eight += 8, weight += 64) {
            __m512i codes = _mm512_loadu_si512(weight);
            _mm_prefetch((const char *)weight + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
            for (int pair = 0; pair < 4; pair++) {
                __m512bh values = (__m512bh)_mm512_permutexvar_epi16(codes, codebook);
                codes = _mm512_srli_epi16(codes, 4);
#pragma GCC unroll 16
                for (int row = 0; row < rows; row++)
                    block[row] = _mm512_dpbf16_ps(
                        block[row], values,
                        both_inputs(x + row * product->in + from + eight + 2 * pair));
            }
        }
        __m512 scales = _mm512_loadu_ps(scale);
        scale += OUTPUTS;
        for (int row = 0; row < rows; row++)
            sums[row] = _mm512_fmadd_ps(block[row], scales, sums[row]);
    }
    for (int row = 0; row < rows; row++) {
        vec sum = (vec)sums[row];
        store16_bf16(y + row * y_stride, sum);
        if (bias)
            store16_bf16(y + row * y_stride,
                         load16_bf16(y + row * y_stride) + load16_bf16(bias));
    }
}

/* y [count, 16], rows `y_stride` apart: `count` rows of x by one panel of outputs. */
static void nf4_rows(const Product *product, int64_t panel, const bf16 *x, int64_t count, bf16 *y,
                     int64_t y_stride) {
    int64_t blocks = product->in / NF4_BLOCK;
    const uint8_t *weight = product->weight + panel * blocks * BLOCK_BYTES;
    const float *scale = product->scale + panel * blocks * OUTPUTS;
    const bf16 *bias = product->bias ? product->bias + panel * OUTPUTS : 0;
#define ROWS(n)                                                                                  \
    case n:                                                                                      \
        nf4_panel(product, weight, scale, x, y, y_stride, bias, n);                              \
        break;
    switch (count) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
        ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14) ROWS(15) ROWS(16)
    }
#undef ROWS
}

/* Up to twelve rows leave registers for their sums; sixteen are still cheaper than twice eight. */
static inline int64_t nf4_tiles(int64_t rows) { return rows <= MOST_ROWS ? 1 : (rows + 11) / 12; }

/* y [rows, out] of x [rows, in]; the threads of the region it is called in share the panels, and ask
 * for what lies `ahead` meanwhile.
 */
static void nf4_product(const Product *product, int64_t rows, const bf16 *x, bf16 *y,
                        Ahead *ahead) {
    int64_t tiles = nf4_tiles(rows), panels = product->out / OUTPUTS;
    int64_t share = ahead->bytes * threads() / panels + 64;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; panel++) {
        ahead_ask(ahead, share);
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = tile * rows / tiles, count = (tile + 1) * rows / tiles - row;
            nf4_rows(product, panel, x + row * product->in, count,
                     y + row * product->out + panel * OUTPUTS, product->out);
        }
    }
}

/* x * sigmoid(x), rounded. */
static inline raw16_bf16 silu16(vec x) {
    ints16 negative = x < 0;
    vec e = exp_nonpositive16(-(vec)((ints16)x & 0x7FFFFFFF)), one = 1.0f - (vec){0};
    vec above = (vec)(((ints16)e & negative) | ((ints16)one & ~negative));
    return bf16_narrow(x * (above / (1.0f + e)));
}

/* silu(gate) * up of sixteen, from bfloat16, unrounded. */
static inline vec gated16(const bf16 *gate, const bf16 *up) {
    return bf16_widen(silu16(load16_bf16(gate))) * load16_bf16(up);
}

/* y [rows, out / 2] = silu(the first half of the outputs) * the second half; as nf4_product else. */
static void nf4_gated(const Product *product, int64_t rows, const bf16 *x, bf16 *y) {
    int64_t tiles = nf4_tiles(rows), inner = product->out / 2, panels = inner / OUTPUTS;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = tile * rows / tiles, count = (tile + 1) * rows / tiles - row;
            bf16 gate[MOST_ROWS * OUTPUTS], up[MOST_ROWS * OUTPUTS];
            nf4_rows(product, panel, x + row * product->in, count, gate, OUTPUTS);
            nf4_rows(product, panels + panel, x + row * product->in, count, up, OUTPUTS);
            for (int64_t i = 0; i < count; i++)
                store16_bf16(y + (row + i) * inner + panel * OUTPUTS,
                             gated16(gate + i * OUTPUTS, up + i * OUTPUTS));
        }
}

void nf4_linear(const Product *product, int64_t rows, const bf16 *x, bf16 *y) {
#pragma omp parallel
    {
        Ahead nothing;
        ahead_clear(&nothing);
        nf4_product(product, rows, x, y, &nothing);
    }
}
#endif

/* y = x * W^T for bfloat16 weights as transformers keeps them, row after row: the output embedding.
 *
 * Sixteen sums are taken side by side, of four rows by four outputs, two by eight or one by sixteen,
 * always in the same order: a row's result does not depend on the rows beside it.
 */
#ifdef NF4_PRODUCTS

enum { DENSE_STEP = 32 };

/* Lane i of the result is the sum over all lanes of v[i]. */
static inline __m512 sums_of_lanes(const __m512 *v) {
    __m512 half[8], quarter[4], pairs[2];
    for (int i = 0; i < 8; i++)
        half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44),
                                _mm512_shuffle_f32x4(v[i], v[i + 8], 0xEE));
    for (int i = 0; i < 4; i++)
        quarter[i] = _mm512_add_ps(_mm512_shuffle_f32x4(half[i], half[i + 4], 0x88),
                                   _mm512_shuffle_f32x4(half[i], half[i + 4], 0xDD));
    for (int i = 0; i < 2; i++)
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(quarter[i], quarter[i + 2]),
                                 _mm512_unpackhi_ps(quarter[i], quarter[i + 2]));
    __m512 sums = _mm512_add_ps(_mm512_unpacklo_ps(pairs[0], pairs[1]),
                                _mm512_unpackhi_ps(pairs[0], pairs[1]));
    return _mm512_shuffle_f32x4(sums, sums, 0xD8);
}

/* `rows` rows by 16 / rows outputs, constants where it is inlined. `ahead`: what is multiplied next. */
static inline __attribute__((always_inline)) void dense_tile(bf16 *y, int64_t y_stride,
                                                             const bf16 *x, const bf16 *weight,
                                                             int64_t in, const bf16 *ahead,
                                                             const int rows) {
    const int outputs = OUTPUTS / rows;
    __m512 sums[OUTPUTS];
    for (int i = 0; i < OUTPUTS; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t from = 0; from < in; from += DENSE_STEP) {
        __m512bh columns[OUTPUTS];
        if (ahead)
#pragma GCC unroll 16
            for (int o = 0; o < outputs; o++)
                _mm_prefetch((const char *)(ahead + o * in + from), _MM_HINT_T1);
#pragma GCC unroll 16
        for (int o = 0; o < outputs; o++)
            columns[o] = (__m512bh)_mm512_loadu_si512(weight + o * in + from);
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++) {
            __m512bh part = (__m512bh)_mm512_loadu_si512(x + row * in + from);
#pragma GCC unroll 16
            for (int o = 0; o < outputs; o++)
                sums[row * outputs + o] =
                    _mm512_dpbf16_ps(sums[row * outputs + o], part, columns[o]);
        }
    }
    bf16 rounded[OUTPUTS];
    store16_bf16(rounded, (vec)sums_of_lanes(sums));
    for (int row = 0; row < rows; row++)
        memcpy(y + row * y_stride, rounded + row * outputs, sizeof(bf16) * (size_t)outputs);
}

/* The products of all rows with the 16 outputs of one panel. `next`: the weights of the next one. Few
 * rows stay in the first-level cache while four outputs at a time pass through it; many pass
 * through it while the panel stays.
 */
static inline void dense_panel(bf16 *y, int64_t y_stride, const bf16 *x, const bf16 *weight,
                               int64_t in, int64_t rows, const bf16 *next) {
    int64_t row = 0;
    if (rows >= 4 && rows <= MOST_ROWS)
        for (int64_t o = 0; o < OUTPUTS; o += 4) {
            const bf16 *ahead = o + 4 < OUTPUTS ? weight + (o + 4) * in : next;
            for (row = 0; row + 4 <= rows; row += 4, ahead = 0)
                dense_tile(y + row * y_stride + o, y_stride, x + row * in, weight + o * in, in,
                           ahead, 4);
        }
#define TILES(n)                                                                                 \
    for (; row + n <= rows; row += n)                                                            \
        for (int64_t o = 0; o < OUTPUTS; o += OUTPUTS / n)                                       \
            dense_tile(y + row * y_stride + o, y_stride, x + row * in, weight + o * in, in,      \
                       next && !row ? next + o * in : 0, n);
    TILES(4) TILES(2) TILES(1)
#undef TILES
}

/* y [rows, out] of x [rows, in] and weight [out, in]; out % 16 == 0, in % 32 == 0. The threads of the
 * region it is called in share the panels.
 */
static void dense_product(bf16 *y, const bf16 *x, const bf16 *weight, int64_t rows, int64_t out,
                          int64_t in) {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < out; panel += OUTPUTS)
        dense_panel(y + panel, out, x, weight + panel * in, in, rows,
                    panel + OUTPUTS < out ? weight + (panel + OUTPUTS) * in : 0);
}

void dense_linear(bf16 *y, const bf16 *x, const bf16 *weight, int64_t rows, int64_t out,
                  int64_t in) {
#pragma omp parallel
    dense_product(y, x, weight, rows, out, in);
}
#endif

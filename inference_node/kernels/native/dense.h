/* y = x * W^T for bfloat16 weights in panels of 16 outputs: the output embedding.
 *
 * weight [out / 16, in / 2, 16, 2]: two inputs of sixteen outputs side by side. A row's sums are taken in
 * the order of the inputs however many rows there are: its result does not depend on the rows beside it.
 */
#ifdef NF4_PRODUCTS

/* `rows` rows, a constant where it is inlined, by the 16 outputs of one panel. `next`: the panel that is
 * multiplied next, asked for meanwhile.
 */
static inline __attribute__((always_inline)) void dense_panel(bf16 *y, int64_t y_stride,
                                                              const bf16 *x, const bf16 *weight,
                                                              const bf16 *next, int64_t in,
                                                              const int rows) {
    __m512 sums[MOST_ROWS];
    for (int row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
    for (int64_t from = 0; from < in; from += 2) {
        _mm_prefetch((const char *)(next + from * OUTPUTS), _MM_HINT_T1);
        __m512bh values = (__m512bh)_mm512_loadu_si512(weight + from * OUTPUTS);
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++)
            sums[row] = _mm512_dpbf16_ps(sums[row], values, both_inputs(x + row * in + from));
    }
    for (int row = 0; row < rows; row++) store16_bf16(y + row * y_stride, (vec)sums[row]);
}

/* y [rows, out] of x [rows, in]; out % 16 == 0, in % 2 == 0. The threads of the region it is called in share
 * the panels.
 */
static void dense_product(bf16 *y, const bf16 *x, const bf16 *weight, int64_t rows, int64_t out,
                          int64_t in) {
    int64_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < out; panel += OUTPUTS)
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = tile * rows / tiles, count = (tile + 1) * rows / tiles - row;
            const bf16 *own = weight + panel * in;
            const bf16 *next = tile || panel + OUTPUTS == out ? own : own + OUTPUTS * in;
#define ROWS(n)                                                                                  \
    case n:                                                                                      \
        dense_panel(y + row * out + panel, out, x + row * in, own, next, in, n);                 \
        break;
            switch (count) {
                ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
                ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14) ROWS(15) ROWS(16)
            }
#undef ROWS
        }
}

void dense_linear(bf16 *y, const bf16 *x, const bf16 *weight, int64_t rows, int64_t out,
                  int64_t in) {
#pragma omp parallel
    dense_product(y, x, weight, rows, out, in);
}

/* to[i]: row index[i] of a weight in panels, `in` elements. The threads share the rows. */
static void dense_rows(bf16 *restrict to, const bf16 *restrict weight,
                       const int64_t *restrict index, int64_t count, int64_t in) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        const bf16 *from = weight + index[i] / OUTPUTS * OUTPUTS * in + index[i] % OUTPUTS * 2;
        for (int64_t k = 0; k < in; k += 2)
            memcpy(to + i * in + k, from + k * OUTPUTS, 2 * sizeof(bf16));
    }
}
#endif

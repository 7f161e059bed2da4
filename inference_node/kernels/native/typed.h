/* Sixteen elements as float32, and back. */
static inline vec NAME(load16)(const T *from) {
    NAME(raw16) raw;
    memcpy(&raw, from, sizeof raw);
    return WIDEN(raw);
}

static inline void NAME(store16)(T *to, vec v) {
    NAME(raw16) raw = NARROW(v);
    memcpy(to, &raw, sizeof raw);
}

static inline NAME(dot_vec) NAME(load_dot)(const T *from) {
    NAME(dot_vec) raw;
    memcpy(&raw, from, sizeof raw);
    return raw;
}

/* For `rows` rows, a constant where it is inlined, and all ranks of one page:
 * h[row, r] = scale * dot(x[row], a[r])
 *
 * next: what is read after a, as much of it; asked for meanwhile.
 */
static inline __attribute__((always_inline)) void NAME(shrink_rows)(
    float *restrict h, int64_t h_stride, const T *restrict x, int64_t x_stride,
    const T *restrict a, const T *next, int64_t in, const int rows, float scale) {
    enum { AT_ONCE = 4 };
    for (int r = 0; r < RANKS; r += AT_ONCE) {
        const T *as = a + r * in, *later = next + r * in;
        vec sums[AT_ONCE][4] = {0};
        float total[AT_ONCE][4];
        int64_t i = 0;
        for (; i + NAME(DOT) <= in; i += NAME(DOT)) {
            NAME(dot_vec) columns[AT_ONCE];
            for (int k = 0; k < AT_ONCE; k++) {
                __builtin_prefetch(later + k * in + i, 0, 2);
                columns[k] = NAME(load_dot)(as + k * in + i);
            }
            for (int row = 0; row < rows; row++) {
                NAME(dot_vec) v = NAME(load_dot)(x + row * x_stride + i);
                for (int k = 0; k < AT_ONCE; k++) sums[k][row] = NAME(dot)(sums[k][row], v, columns[k]);
            }
        }
        for (int k = 0; k < AT_ONCE; k++)
            for (int row = 0; row < rows; row++) {
                float lanes[16], sum = 0;
                memcpy(lanes, &sums[k][row], sizeof lanes);
                for (int lane = 0; lane < 16; lane++) sum += lanes[lane];
                for (int64_t j = i; j < in; j++)
                    sum += LOAD(x[row * x_stride + j]) * LOAD(as[k * in + j]);
                total[k][row] = sum;
            }
        for (int row = 0; row < rows; row++)
            for (int k = 0; k < AT_ONCE; k++) h[row * h_stride + r + k] = total[k][row] * scale;
    }
}

/* h[pair, slice, r] = scale[pair] * dot(x[row[pair]], a[page[pair], slice, r])
 *
 * x [rows, in] with x_stride elements between rows; a: RANKS * in elements a slice, slices side by
 * side, a_stride elements between pages; h [pairs, slices, RANKS] float32. Threads do not wait for
 * each other at its end.
 */
static void NAME(shrink)(float *restrict h, const T *restrict x, int64_t x_stride,
                         const T *restrict a, int64_t a_stride, int64_t slices, int64_t in,
                         const Routing *routing) {
    const int32_t *tile = routing->tile, *first = routing->first;
    const int32_t *row = routing->row, *page = routing->page;
    const float *scale = routing->scale;
    Share own = share_of(routing, slices);
    int64_t at_once = slices / own.parts;
    for (int64_t task = own.from; task < own.to; task++) {
        int64_t t = task / own.parts, from = task % own.parts * at_once;
        int32_t run = tile[t], end = tile[t + 1];
        int64_t pages = first[run + 1] - first[run], h_stride = pages * slices * RANKS;
        for (int32_t rows; run < end; run += rows) {
            rows = end - run >= 4 ? 4 : 1;
            for (int32_t pair = first[run]; pair < first[run + 1]; pair++) {
                const T *xs = x + row[pair] * x_stride;
                const T *later = a + page[pair_after(routing, run, rows, pair)] * a_stride;
                for (int64_t slice = from; slice < from + at_once; slice++) {
                    const T *as = a + page[pair] * a_stride + slice * RANKS * in;
                    const T *next = later + slice * RANKS * in;
                    float *hs = h + (pair * slices + slice) * RANKS;
                    if (rows == 4)
                        NAME(shrink_rows)(hs, h_stride, xs, x_stride, as, next, in, 4, scale[pair]);
                    else
                        NAME(shrink_rows)(hs, h_stride, xs, x_stride, as, next, in, 1, scale[pair]);
                }
            }
        }
    }
}

void NAME(lora_shrink)(float *h, const T *x, int64_t x_stride, const T *a, int64_t a_stride,
                       int64_t slices, int64_t in, const Routing *routing) {
#pragma omp parallel
    NAME(shrink)(h, x, x_stride, a, a_stride, slices, in, routing);
}

enum { NAME(TILE) = 8192 }; /* Sums that are taken side by side: of four rows, or of one. */

/* For `rows` rows, a constant where it is inlined: sum[row, i] += sum over r of h[row, r] * b[r, i]
 *
 * sum_stride elements between rows of sum; next: what is read after b, as much of it; asked for meanwhile.
 */
static inline __attribute__((always_inline)) void NAME(expand_rows)(
    float *restrict sum, int64_t sum_stride, const float *restrict h, int64_t h_stride,
    const T *restrict b, const T *next, int64_t width, int64_t count, const int rows) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        vec ups[RANKS];
        for (int r = 0; r < RANKS; r++) {
            if (i % 32 == 0) __builtin_prefetch(next + r * width + i, 0, 2);
            ups[r] = NAME(load16)(b + r * width + i);
        }
        for (int row = 0; row < rows; row++) {
            vec v;
            memcpy(&v, sum + row * sum_stride + i, sizeof v);
            for (int r = 0; r < RANKS; r++) v += h[row * h_stride + r] * ups[r];
            memcpy(sum + row * sum_stride + i, &v, sizeof v);
        }
    }
    for (; i < count; i++)
        for (int row = 0; row < rows; row++)
            for (int r = 0; r < RANKS; r++)
                sum[row * sum_stride + i] += h[row * h_stride + r] * LOAD(b[r * width + i]);
}

/* y[row, o] += sum over the row's pairs and ranks of h[pair, slice of o, r] * b[page[pair], r, o]
 *
 * y [rows, outs of all slices] with y_stride elements between rows; b [pages, RANKS, outs] with
 * b_stride elements between pages; outs [slices]; the rest as in shrink. The sum is rounded
 * once, into y.
 */
static void NAME(expand_add)(T *restrict y, int64_t y_stride, const float *restrict h,
                             const T *restrict b, int64_t b_stride, int64_t slices,
                             const int64_t *restrict outs, const Routing *routing) {
    const int32_t *tile = routing->tile, *first = routing->first;
    const int32_t *row = routing->row, *page = routing->page;
    int64_t strips = 0, width = 0, wide = NAME(TILE) / 4;
    for (int64_t slice = 0; slice < slices; slice++) {
        strips += (outs[slice] + wide - 1) / wide;
        width += outs[slice];
    }
    Share own = share_of(routing, strips);
    int64_t at_once = strips / own.parts;
    for (int64_t task = own.from * at_once; task < own.to * at_once; task++) {
        int64_t t = task / strips, strip = task % strips, slice = 0, column = 0;
        while (strip >= (outs[slice] + wide - 1) / wide) {
            strip -= (outs[slice] + wide - 1) / wide;
            column += outs[slice++];
        }
        int64_t left = outs[slice] - strip * wide, count = left < wide ? left : wide;
        column += strip * wide;
        int32_t run = tile[t], end = tile[t + 1];
        int64_t h_stride = (first[run + 1] - first[run]) * slices * RANKS;
        while (run < end) {
            int rows = end - run >= 4 ? 4 : 1;
            float sum[NAME(TILE)];
            T *ys = y + row[first[run]] * y_stride + column;
            for (int k = 0; k < rows; k++)
                for (int64_t i = 0; i < count; i++)
                    sum[k * wide + i] = LOAD(ys[k * y_stride + i]);
            for (int32_t pair = first[run]; pair < first[run + 1]; pair++) {
                int32_t after = pair_after(routing, run, rows, pair);
                const T *bs = b + page[pair] * b_stride + column;
                const T *next = b + page[after] * b_stride + column;
                const float *hs = h + (pair * slices + slice) * RANKS;
                if (rows == 4)
                    NAME(expand_rows)(sum, wide, hs, h_stride, bs, next, width, count, 4);
                else
                    NAME(expand_rows)(sum, wide, hs, h_stride, bs, next, width, count, 1);
            }
            for (int k = 0; k < rows; k++)
                for (int64_t i = 0; i < count; i++)
                    ys[k * y_stride + i] = STORE(sum[k * wide + i]);
            run += rows;
        }
    }
#pragma omp barrier
}

void NAME(lora_expand_add)(T *y, int64_t y_stride, const float *h, const T *b, int64_t b_stride,
                           int64_t slices, const int64_t *outs, const Routing *routing) {
#pragma omp parallel
    NAME(expand_add)(y, y_stride, h, b, b_stride, slices, outs, routing);
}

/* One row and one key head: out[g] = softmax(scale * q[g] . k) . v for the query heads g that share
 * the key head. `dim` is a constant wherever the caller can make it one.
 */
static inline __attribute__((always_inline)) void NAME(attend)(
    T *restrict out, const T *restrict q, const T *restrict k, const T *restrict v, int64_t group,
    int64_t dim, int64_t token_stride, int64_t block_tokens, const int64_t *restrict blocks,
    int64_t tokens, float scale, float *restrict weights, int64_t scratch_tokens) {
    float heads[MAX_GROUP_DIM], sum[MAX_DIM];
    for (int64_t i = 0; i < group * dim; i++) heads[i] = LOAD(q[i]) * scale;
    for (int64_t from = 0; from < tokens; from += block_tokens) {
        const T *ks = k + blocks[from / block_tokens] * block_tokens * token_stride;
        int64_t count = tokens - from < block_tokens ? tokens - from : block_tokens;
        for (int64_t t = 0; t < count; t++, ks += token_stride)
            for (int64_t g = 0; g < group; g++) {
                float s = 0;
#pragma omp simd reduction(+ : s)
                for (int64_t i = 0; i < dim; i++) s += heads[g * dim + i] * LOAD(ks[i]);
                weights[g * scratch_tokens + from + t] = s;
            }
    }
    for (int64_t g = 0; g < group; g++) {
        float *ws = weights + g * scratch_tokens, top = ws[0], total = 0;
        for (int64_t t = 1; t < tokens; t++) top = ws[t] > top ? ws[t] : top;
#pragma omp simd reduction(+ : total)
        for (int64_t t = 0; t < tokens; t++) total += ws[t] = exp_nonpositive(ws[t] - top);
        for (int64_t i = 0; i < dim; i++) sum[i] = 0;
        for (int64_t from = 0; from < tokens; from += block_tokens) {
            const T *vs = v + blocks[from / block_tokens] * block_tokens * token_stride;
            int64_t count = tokens - from < block_tokens ? tokens - from : block_tokens;
            for (int64_t t = 0; t < count; t++, vs += token_stride) {
                float w = ws[from + t];
#pragma omp simd
                for (int64_t i = 0; i < dim; i++) sum[i] += w * LOAD(vs[i]);
            }
        }
        for (int64_t i = 0; i < dim; i++) out[g * dim + i] = STORE(sum[i] / total);
    }
}

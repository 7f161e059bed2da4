/* h[pair, slice, r] = scale[pair] * dot(x[row[pair]], a[page[pair], slice, r])
 *
 * x [rows, in] with x_stride elements between rows; a: RANKS * in elements a slice, slices side by
 * side, a_stride elements between pages; h [pairs, slices, RANKS] float32.
 */
void NAME(lora_shrink)(float *restrict h, const T *restrict x, int64_t x_stride,
                       const T *restrict a, int64_t a_stride, int64_t slices, int64_t in,
                       int64_t pairs, const int32_t *restrict row, const int32_t *restrict page,
                       const float *restrict scale) {
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < pairs * slices; task++) {
        int64_t pair = task / slices, slice = task % slices;
        const T *xs = x + row[pair] * x_stride;
        const T *as = a + page[pair] * a_stride + slice * RANKS * in;
        for (int r = 0; r < RANKS; r += 4) {
            const T *a0 = as + r * in, *a1 = a0 + in, *a2 = a1 + in, *a3 = a2 + in;
            float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
            for (int64_t i = 0; i < in; i++) {
                float v = LOAD(xs[i]);
                s0 += v * LOAD(a0[i]);
                s1 += v * LOAD(a1[i]);
                s2 += v * LOAD(a2[i]);
                s3 += v * LOAD(a3[i]);
            }
            float *out = h + (pair * slices + slice) * RANKS + r;
            out[0] = s0 * scale[pair];
            out[1] = s1 * scale[pair];
            out[2] = s2 * scale[pair];
            out[3] = s3 * scale[pair];
        }
    }
}

/* y[row, o] += sum over the row's pairs and ranks of h[pair, slice of o, r] * b[page[pair], r, o]
 *
 * y [rows, outs of all slices] with y_stride elements between rows; b [pages, RANKS, outs] with
 * b_stride elements between pages; outs [slices]; h as above. Pairs of one row are neighbours: run i
 * is pairs first[i] to first[i + 1]. The sum is rounded once, into y.
 */
void NAME(lora_expand_add)(T *restrict y, int64_t y_stride, const float *restrict h,
                           const T *restrict b, int64_t b_stride, int64_t slices,
                           const int64_t *restrict outs, int64_t runs,
                           const int32_t *restrict first, const int32_t *restrict row,
                           const int32_t *restrict page) {
    enum { TILE = 512 };
    int64_t tiles = 0, width = 0;
    for (int64_t slice = 0; slice < slices; slice++) {
        tiles += (outs[slice] + TILE - 1) / TILE;
        width += outs[slice];
    }
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < runs * tiles; task++) {
        int64_t run = task / tiles, tile = task % tiles, slice = 0, column = 0;
        while (tile >= (outs[slice] + TILE - 1) / TILE) {
            tile -= (outs[slice] + TILE - 1) / TILE;
            column += outs[slice++];
        }
        int64_t count = outs[slice] - tile * TILE < TILE ? outs[slice] - tile * TILE : TILE;
        column += tile * TILE;
        float sum[TILE];
        T *ys = y + row[first[run]] * y_stride + column;
        for (int64_t i = 0; i < count; i++) sum[i] = LOAD(ys[i]);
        for (int32_t pair = first[run]; pair < first[run + 1]; pair++) {
            const T *bs = b + page[pair] * b_stride + column;
            const float *hs = h + (pair * slices + slice) * RANKS;
            for (int r = 0; r < RANKS; r += 4) {
                const T *b0 = bs + r * width, *b1 = b0 + width, *b2 = b1 + width, *b3 = b2 + width;
                float h0 = hs[r], h1 = hs[r + 1], h2 = hs[r + 2], h3 = hs[r + 3];
#pragma omp simd
                for (int64_t i = 0; i < count; i++)
                    sum[i] += h0 * LOAD(b0[i]) + h1 * LOAD(b1[i]) + h2 * LOAD(b2[i]) +
                              h3 * LOAD(b3[i]);
            }
        }
        for (int64_t i = 0; i < count; i++) ys[i] = STORE(sum[i]);
    }
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

/* out[row, head] = softmax(scale * q[row, head] . k[0..context[row])) . v
 *
 * q, out [rows, kv_heads * group, dim]; k, v [blocks, block_tokens, kv_heads, dim]; token t of a
 * row lies in block table[row, t / block_tokens]; scratch [threads, group, scratch_tokens] float32
 * with scratch_tokens >= the longest context; dim <= MAX_DIM, group * dim <= MAX_GROUP_DIM.
 */
void NAME(decode_attention)(T *restrict out, const T *restrict q, const T *restrict k,
                            const T *restrict v, int64_t rows, int64_t kv_heads, int64_t group,
                            int64_t dim, int64_t block_tokens, const int64_t *restrict table,
                            int64_t table_width, const int64_t *restrict context, float scale,
                            float *restrict scratch, int64_t scratch_tokens) {
    int64_t stride = kv_heads * dim;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < rows * kv_heads; task++) {
        int64_t line = task / kv_heads, kv = task % kv_heads, first = task * group * dim;
        const int64_t *blocks = table + line * table_width;
        float *weights = scratch + thread_index() * group * scratch_tokens;
        const T *ks = k + kv * dim, *vs = v + kv * dim;
#define ATTEND(DIM)                                                                              \
    NAME(attend)(out + first, q + first, ks, vs, group, DIM, stride, block_tokens, blocks,       \
                 context[line], scale, weights, scratch_tokens)
        if (dim == 64)
            ATTEND(64);
        else if (dim == 128)
            ATTEND(128);
        else
            ATTEND(dim);
#undef ATTEND
    }
}

/* out[row, head] = softmax(scale * q[row, head] . k[0..context[row])) . v
 *
 * q, out [rows, kv_heads * group, dim]; k, v [blocks, block_tokens, kv_heads, dim]; token t of a
 * row lies in block table[row, t / block_tokens]; scratch [threads, heads, scratch_tokens] float32
 * with scratch_tokens >= the longest context, a multiple of 16; dim <= MAX_DIM, group * dim <=
 * MAX_GROUP_DIM. The threads of the region it is called in share the rows.
 */
static void NAME(attend_rows)(T *restrict out, const T *restrict q, const T *restrict k,
                              const T *restrict v, int64_t rows, int64_t kv_heads, int64_t group,
                              int64_t dim, int64_t block_tokens, const int64_t *restrict table,
                              int64_t table_width, const int64_t *restrict context, float scale,
                              float *restrict scratch, int64_t scratch_tokens) {
    int64_t stride = kv_heads * dim;
    /* A task is a row, or one key head of it where there are few rows. */
    int64_t at_once = rows_whole(rows, threads()) ? kv_heads : 1, parts = kv_heads / at_once;
#pragma omp for schedule(static, 1)
    for (int64_t task = 0; task < rows * parts; task++) {
        int64_t line = task / parts, kv = task % parts * at_once;
        int64_t first = (line * kv_heads + kv) * group * dim;
        const int64_t *blocks = table + line * table_width;
        float *weights = scratch + thread_index() * kv_heads * group * scratch_tokens;
        const T *ks = k + kv * dim, *vs = v + kv * dim;
#ifdef BY_BLOCKS
#define ATTEND(DIM)                                                                              \
    BY_BLOCKS(out + first, q + first, ks, vs, at_once, group, DIM, stride, block_tokens, blocks, \
              context[line], scale, weights, scratch_tokens, next)
        int64_t later = (task + threads()) / parts;
        const T *next = later < rows ? ks + table[later * table_width] * block_tokens * stride : 0;
        if (block_tokens % TOKENS == 0 && kv_heads * group <= MOST_HEADS && dim % 32 == 0 &&
            dim <= MOST_DIM) {
            if (dim == 64)
                ATTEND(64);
            else if (dim == 128)
                ATTEND(128);
            else
                ATTEND(dim);
            continue;
        }
#undef ATTEND
#endif
        for (int64_t head = 0; head < at_once; head++)
            NAME(attend)(out + first + head * group * dim, q + first + head * group * dim,
                         ks + head * dim, vs + head * dim, group, dim, stride, block_tokens, blocks,
                         context[line], scale, weights, scratch_tokens);
    }
}

void NAME(decode_attention)(T *out, const T *q, const T *k, const T *v, int64_t rows,
                            int64_t kv_heads, int64_t group, int64_t dim, int64_t block_tokens,
                            const int64_t *table, int64_t table_width, const int64_t *context,
                            float scale, float *scratch, int64_t scratch_tokens) {
#pragma omp parallel
    NAME(attend_rows)(out, q, k, v, rows, kv_heads, group, dim, block_tokens, table, table_width,
                      context, scale, scratch, scratch_tokens);
}

/* Ask for what a context holds of one key head, before it is read. */
static inline void NAME(foresee)(const T *from, const int64_t *blocks, int64_t tokens,
                                 int64_t block_tokens, int64_t stride, int64_t dim) {
    enum { LINE = 64 / sizeof(T) };
    for (int64_t token = 0, block = 0; token < tokens; token += block_tokens, block++) {
        const T *at = from + blocks[block] * block_tokens * stride;
        int64_t count = tokens - token < block_tokens ? tokens - token : block_tokens;
        for (int64_t t = 0; t < count; t++, at += stride)
            for (int64_t i = 0; i < dim; i += LINE) __builtin_prefetch(at + i);
    }
}

/* out[row, head] = softmax(scale * q[row, head] . k[0..context[row])) . v
 *
 * q, out [rows, kv_heads * group, dim]; k, v [blocks, block_tokens, kv_heads, dim]; token t of a
 * row lies in block table[row, t / block_tokens]; scratch [threads, group, scratch_tokens] float32
 * with scratch_tokens >= the longest context, a multiple of 16; dim <= MAX_DIM, group * dim <=
 * MAX_GROUP_DIM.
 */
void NAME(decode_attention)(T *restrict out, const T *restrict q, const T *restrict k,
                            const T *restrict v, int64_t rows, int64_t kv_heads, int64_t group,
                            int64_t dim, int64_t block_tokens, const int64_t *restrict table,
                            int64_t table_width, const int64_t *restrict context, float scale,
                            float *restrict scratch, int64_t scratch_tokens) {
    int64_t stride = kv_heads * dim;
#pragma omp parallel for schedule(static, 1)
    for (int64_t task = 0; task < rows * kv_heads; task++) {
        int64_t line = task / kv_heads, kv = task % kv_heads, first = task * group * dim;
        const int64_t *blocks = table + line * table_width;
        float *weights = scratch + thread_index() * group * scratch_tokens;
        const T *ks = k + kv * dim, *vs = v + kv * dim;
        /* Tokens lie apart, so no processor foresees the next: the values while the keys are read,
         * and the keys of this thread's next task while all of it is. */
        NAME(foresee)(vs, blocks, context[line], block_tokens, stride, dim);
        int64_t next = task + threads();
        if (next < rows * kv_heads)
            NAME(foresee)(k + next % kv_heads * dim, table + next / kv_heads * table_width,
                          context[next / kv_heads], block_tokens, stride, dim);
#define ATTEND(how, DIM)                                                                         \
    how(out + first, q + first, ks, vs, group, DIM, stride, block_tokens, blocks, context[line], \
        scale, weights, scratch_tokens)
#ifdef BY_SIXTEEN
        if (dim == 64)
            ATTEND(BY_SIXTEEN, 64);
        else if (dim == 128)
            ATTEND(BY_SIXTEEN, 128);
        else if (dim % 32 == 0 && dim < MOST_DIM)
            ATTEND(BY_SIXTEEN, dim);
        else
#endif
            ATTEND(NAME(attend), dim);
#undef ATTEND
    }
}

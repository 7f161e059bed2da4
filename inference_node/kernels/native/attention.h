/* One row and one key head over bfloat16 keys and values, sixteen tokens at a time. */
#ifdef NF4_PRODUCTS

enum { TOKENS = 16, MOST_DIM = 128 };

/* weights[t] = scale * q . k of sixteen tokens. */
static inline __attribute__((always_inline)) __m512 scores16(const bf16 *q, const bf16 *const *keys,
                                                             const int64_t dim, float scale) {
    __m512 sums[TOKENS];
    for (int t = 0; t < TOKENS; t++) sums[t] = _mm512_setzero_ps();
    for (int64_t i = 0; i < dim; i += 32) {
        __m512bh part = (__m512bh)_mm512_loadu_si512(q + i);
        for (int t = 0; t < TOKENS; t++)
            sums[t] =
                _mm512_dpbf16_ps(sums[t], part, (__m512bh)_mm512_loadu_si512(keys[t] + i));
    }
    return _mm512_mul_ps(sums_of_lanes(sums), _mm512_set1_ps(scale));
}

/* weights[0 .. tokens] become e^(w - max); the rest of the last sixteen become 0. Their sum. */
static inline float exponentials(float *weights, int64_t tokens) {
    int64_t whole = (tokens + TOKENS - 1) / TOKENS * TOKENS;
    float top = weights[0];
    for (int64_t t = 1; t < tokens; t++) top = weights[t] > top ? weights[t] : top;
    vec total = {0};
    for (int64_t from = 0; from < whole; from += TOKENS) {
        vec w;
        memcpy(&w, weights + from, sizeof w);
        w = exp_nonpositive16(w - top);
        if (from + TOKENS > tokens)
            w = (vec)_mm512_maskz_mov_ps((__mmask16)((1u << (tokens - from)) - 1), (__m512)w);
        memcpy(weights + from, &w, sizeof w);
        total += w;
    }
    return _mm512_reduce_add_ps((__m512)total);
}

/* As attend in typed.h. dim: a multiple of 32, up to MOST_DIM; scratch_tokens: a multiple of 16. */
static inline __attribute__((always_inline)) void attend_by_sixteen(
    bf16 *restrict out, const bf16 *restrict q, const bf16 *restrict k, const bf16 *restrict v,
    int64_t group, const int64_t dim, int64_t token_stride, int64_t block_tokens,
    const int64_t *restrict blocks, int64_t tokens, float scale, float *restrict weights,
    int64_t scratch_tokens) {
    int64_t block = 0, place = 0;
    for (int64_t from = 0; from < tokens; from += TOKENS) {
        const bf16 *keys[TOKENS];
        for (int64_t t = 0; t < TOKENS; t++) {
            keys[t] = k + (blocks[block] * block_tokens + place) * token_stride;
            /* Past the context the last token stands in: what lies there is never read. */
            if (from + t + 1 < tokens && ++place == block_tokens) block++, place = 0;
        }
        for (int64_t g = 0; g < group; g++)
            _mm512_storeu_ps(weights + g * scratch_tokens + from,
                             scores16(q + g * dim, keys, dim, scale));
    }
    for (int64_t g = 0; g < group; g++) {
        float *ws = weights + g * scratch_tokens;
        vec sums[MOST_DIM / 16] = {0};
        float total = exponentials(ws, tokens);
        for (int64_t token = 0, b = 0; token < tokens; token += block_tokens, b++) {
            const bf16 *vs = v + blocks[b] * block_tokens * token_stride;
            int64_t count = tokens - token < block_tokens ? tokens - token : block_tokens;
            for (int64_t t = 0; t < count; t++, vs += token_stride)
                for (int64_t i = 0; i < dim; i += 16)
                    sums[i / 16] += ws[token + t] * load16_bf16(vs + i);
        }
        for (int64_t i = 0; i < dim; i += 16)
            store16_bf16(out + g * dim + i, sums[i / 16] / total);
    }
}
#define BY_SIXTEEN attend_by_sixteen
#endif

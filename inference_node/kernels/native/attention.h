/* One row over bfloat16 keys and values, block by block: memory is read in the order it lies in. */
#ifdef NF4_PRODUCTS

enum { TOKENS = 16, MOST_DIM = 128, MOST_HEADS = 64 };

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

/* Ask for a block of the cache before it is read. */
static inline void foresee(const bf16 *block, int64_t tokens, int64_t stride) {
    const char *at = (const char *)block, *end = (const char *)(block + tokens * stride);
    for (; at < end; at += 64) _mm_prefetch(at, _MM_HINT_T0);
}

/* weights[0 .. tokens] become e^(w - max), rounded to bfloat16 and side by side from where they begin; the
 * rest of the last sixteen become 0. Their sum.
 */
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
        raw16_bf16 rounded = bf16_narrow(w);
        memcpy((bf16 *)weights + from, &rounded, sizeof rounded);
        total += bf16_widen(rounded);
    }
    return _mm512_reduce_add_ps((__m512)total);
}

/* weights[head, t] = scale * q[head] . k[t] for up to sixteen tokens of one block. */
static inline __attribute__((always_inline)) void scores(float *weights, int64_t scratch_tokens,
                                                         const bf16 *q, const bf16 *k,
                                                         int64_t kv_heads, int64_t group,
                                                         const int64_t dim, int64_t stride,
                                                         int64_t tokens, float scale) {
    __m512 sums[MOST_HEADS][TOKENS];
    for (int64_t t = 0; t < TOKENS; t++) {
        /* Past the context the last token stands in: what lies there is never read. */
        const bf16 *key = k + (t < tokens ? t : tokens - 1) * stride, *query = q;
        for (int64_t head = 0; head < kv_heads * group; key += dim)
            for (int64_t end = head + group; head < end; head++, query += dim) {
                __m512 sum = _mm512_setzero_ps();
                for (int64_t i = 0; i < dim; i += 32)
                    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(query + i),
                                           (__m512bh)_mm512_loadu_si512(key + i));
                sums[head][t] = sum;
            }
    }
    for (int64_t head = 0; head < kv_heads * group; head++)
        _mm512_storeu_ps(weights + head * scratch_tokens,
                         _mm512_mul_ps(sums_of_lanes(sums[head]), _mm512_set1_ps(scale)));
}

/* Where two vectors of 32 lie element by element side by side: the first 16 of both, and the others. */
static const uint16_t PAIRED[2][32] __attribute__((aligned(64))) = {
    {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
    {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
     24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};

/* sums[head] += weights[head, t] * v[t] over the tokens of one block, for `heads` heads of one key head:
 * two tokens at a time, which are laid side by side once for all of them. Weights are what
 * `exponentials` leaves. `heads` is a constant where it is inlined.
 */
static inline __attribute__((always_inline)) void weighted_sums(
    vec (*restrict sums)[MOST_DIM / 16], const float *restrict weights, int64_t scratch_tokens,
    int64_t from, const bf16 *restrict v, const int64_t dim, int64_t stride, int64_t tokens,
    const int heads) {
    const __m512i first = _mm512_load_si512(PAIRED[0]), second = _mm512_load_si512(PAIRED[1]);
    __m512 sum[4][MOST_DIM / 16];
    for (int head = 0; head < heads; head++)
        for (int64_t i = 0; i < dim / 16; i++) sum[head][i] = (__m512)sums[head][i];
    for (int64_t t = 0; t < tokens; t += 2, v += 2 * stride) {
        /* The last of an odd number stands in for its neighbour, whose weight is 0. */
        const bf16 *later = t + 1 < tokens ? v + stride : v;
        __m512bh pairs[4];
        for (int head = 0; head < heads; head++)
            pairs[head] = both_inputs((const bf16 *)(weights + head * scratch_tokens) + from + t);
        for (int64_t i = 0; i < dim; i += 32) {
            __m512i a = _mm512_loadu_si512(v + i), b = _mm512_loadu_si512(later + i);
            __m512bh low = (__m512bh)_mm512_permutex2var_epi16(a, first, b);
            __m512bh high = (__m512bh)_mm512_permutex2var_epi16(a, second, b);
            for (int head = 0; head < heads; head++) {
                sum[head][i / 16] = _mm512_dpbf16_ps(sum[head][i / 16], low, pairs[head]);
                sum[head][i / 16 + 1] = _mm512_dpbf16_ps(sum[head][i / 16 + 1], high, pairs[head]);
            }
        }
    }
    for (int head = 0; head < heads; head++)
        for (int64_t i = 0; i < dim / 16; i++) sums[head][i] = (vec)sum[head][i];
}

/* As attend in typed.h, for `kv_heads` key heads side by side. dim: a multiple of 32, up to MOST_DIM;
 * block_tokens and scratch_tokens: multiples of 16; kv_heads * group <= MOST_HEADS; next: keys that
 * this thread reads after these, if any.
 */
static inline __attribute__((always_inline)) void attend_blocks(
    bf16 *restrict out, const bf16 *restrict q, const bf16 *restrict k, const bf16 *restrict v,
    int64_t kv_heads, int64_t group, const int64_t dim, int64_t stride, int64_t block_tokens,
    const int64_t *restrict blocks, int64_t tokens, float scale, float *restrict weights,
    int64_t scratch_tokens, const bf16 *next) {
    vec sums[MOST_HEADS][MOST_DIM / 16];
    float total[MOST_HEADS];
    int64_t heads = kv_heads * group, size = block_tokens * stride;
    const int64_t at_once = dim <= 64 ? 4 : 2;
    for (int64_t from = 0, b = 0; from < tokens; from += block_tokens, b++) {
        const bf16 *ks = k + blocks[b] * size;
        int64_t count = tokens - from < block_tokens ? tokens - from : block_tokens;
        if (from + block_tokens < tokens) foresee(k + blocks[b + 1] * size, block_tokens, stride);
        foresee(v + blocks[b] * size, count, stride);
        for (int64_t t = 0; t < count; t += TOKENS)
            scores(weights + from + t, scratch_tokens, q, ks + t * stride, kv_heads, group, dim,
                   stride, count - t, scale);
    }
    if (next) foresee(next, block_tokens, stride);
    for (int64_t head = 0; head < heads; head++) {
        total[head] = exponentials(weights + head * scratch_tokens, tokens);
        for (int64_t i = 0; i < dim / 16; i++) sums[head][i] = (vec){0};
    }
    for (int64_t from = 0, b = 0; from < tokens; from += block_tokens, b++) {
        const bf16 *vs = v + blocks[b] * size;
        int64_t count = tokens - from < block_tokens ? tokens - from : block_tokens;
        for (int64_t kv = 0; kv < kv_heads; kv++)
            for (int64_t head = kv * group, end = head + group; head < end;) {
                int64_t left = end - head, some = left < at_once ? left : at_once;
#define SUMS(n)                                                                                  \
    case n:                                                                                      \
        weighted_sums(sums + head, weights + head * scratch_tokens, scratch_tokens, from,        \
                      vs + kv * dim, dim, stride, count, n);                                     \
        break;
                switch (some) { SUMS(1) SUMS(2) SUMS(3) SUMS(4) }
#undef SUMS
                head += some;
            }
    }
    for (int64_t head = 0; head < heads; head++)
        for (int64_t i = 0; i < dim / 16; i++)
            store16_bf16(out + head * dim + i * 16, sums[head][i] / total[head]);
}
#define BY_BLOCKS attend_blocks
#endif

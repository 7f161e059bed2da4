/* best[row]: the first index of the row's largest value; -1 where a value is not finite.
 *
 * logits [rows, width], best [rows]. The threads of the region it is called in share the rows.
 */
static void NAME(likeliest_rows)(int64_t *restrict best, const T *restrict logits, int64_t rows,
                                 int64_t width) {
    const int32_t exponent = 0x7F800000;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const T *values = logits + row * width;
        vec top = (vec){0} - INFINITY;
        ints16 at = {0}, odd = {0};
        int64_t i = 0;
        for (; i + 16 <= width; i += 16) {
            vec v = NAME(load16)(values + i);
            ints16 above = v > top;
            top = (vec)(((ints16)v & above) | ((ints16)top & ~above));
            at = (((int32_t)i + (ints16){0}) & above) | (at & ~above);
            odd |= ((ints16)v & exponent) == exponent;
        }
        float most = -INFINITY;
        int64_t found = width, strange = 0;
        for (int64_t lane = 0; lane < 16 && i; lane++) {
            int64_t index = at[lane] + lane;
            strange |= odd[lane];
            if (top[lane] > most || (top[lane] == most && index < found))
                most = top[lane], found = index;
        }
        for (; i < width; i++) {
            float value = LOAD(values[i]);
            int32_t bits;
            memcpy(&bits, &value, sizeof bits);
            strange |= (bits & exponent) == exponent;
            if (value > most) most = value, found = i;
        }
        best[row] = strange ? -1 : found;
    }
}

void NAME(likeliest)(int64_t *best, const T *logits, int64_t rows, int64_t width) {
#pragma omp parallel
    NAME(likeliest_rows)(best, logits, rows, width);
}

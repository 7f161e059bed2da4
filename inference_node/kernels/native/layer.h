/* Llama-shaped decoder layers: what comes before attention and what comes after. Each is a call of its
 * own where attention is computed elsewhere; model.h makes one call of a whole step.
 *
 * Each product is followed by what the adapters of the step add. Every intermediate is rounded to
 * bfloat16 where transformers' own code rounds it. One team of threads runs a whole call: a loop
 * marked `omp for` is shared among them, and all wait at its end.
 */
#ifdef NF4_PRODUCTS

/* Linears that read one input, and the adapter pages of this layer beside them. */
typedef struct {
    Product product;
    const bf16 *a, *b;
    int64_t a_stride, b_stride, slices;
    const int64_t *outs;
} Group;

typedef struct {
    Group qkv, o, gate_up, down;
    const bf16 *norm_before, *norm_after; /* [hidden] */
    bf16 *k, *v;                          /* [slots, kv_heads, dim] */
    int64_t hidden, heads, kv_heads, dim, inner; /* inner: a multiple of 16 */
    float eps, scale; /* scale: of attention's scores */
} Layer;

typedef struct {
    int64_t rows;
    Routing qkv, o, gate_up, down;
    const bf16 *cos, *sin;   /* [places, dim] */
    const int64_t *position; /* [rows]: of each row among the places; absent: one place a row */
    int64_t places;
    const int64_t *slots;  /* [rows] */
    const int64_t *table, *context; /* [attended, table_width], [attended]: rows attended after */
    int64_t attended, table_width, block_tokens;
    bf16 *wide, *narrow;   /* scratch: [rows, max(qkv, gate_up)], [rows, max(hidden, inner)] */
    bf16 *q, *attention;   /* scratch of model.h: [rows, heads, dim] */
    bf16 *first, *second;  /* scratch of model.h: [rows, hidden] */
    bf16 *third;           /* the same */
    float *weights;        /* scratch of model.h: [threads, heads, weight_tokens] */
    int64_t weight_tokens; /* at least the longest context, a multiple of 16 */
    float *h;              /* scratch: [pairs, slices, RANKS] of the largest group */
    double *spent;         /* [PARTS] seconds, added to by the first thread; may be absent */
} Step;

/* What the time of a step is told apart by: PARTS of structures.py. */
enum { BASE_LINEARS, ADAPTERS, ATTENTION, HEAD };

/* A part that began at `since` has ended: when the next one begins. */
static inline double spend(const Step *step, int part, double since) {
    if (!step->spent || thread_index()) return 0;
    double now = seconds();
    step->spent[part] += now - since;
    return now;
}

static inline double begin_part(const Step *step) {
    return step->spent && !thread_index() ? seconds() : 0;
}

/* The pages of the tiles that this thread multiplies. */
static void pages_ahead(Ahead *ahead, const Group *group, const Routing *routing) {
    if (!routing->tiles) return;
    Share own = share_of(routing, 1);
    for (int64_t t = own.from; t < own.to; t++) {
        int32_t run = routing->tile[t];
        for (int32_t pair = routing->first[run]; pair < routing->first[run + 1]; pair++) {
            int64_t page = routing->page[pair], ranks = RANKS * (int64_t)sizeof(bf16);
            ahead_add(ahead, group->a + page * group->a_stride,
                      group->slices * group->product.in * ranks);
            ahead_add(ahead, group->b + page * group->b_stride, group->product.out * ranks);
        }
    }
}

/* Keys and values of the rows that this thread attends. */
static void cache_ahead(Ahead *ahead, const Layer *layer, const Step *step) {
    int64_t stride = layer->kv_heads * layer->dim, size = step->block_tokens * stride;
    for (int64_t row = thread_index(); row < step->attended; row += threads())
        for (int64_t from = 0, b = 0; from < step->context[row]; from += step->block_tokens, b++) {
            int64_t block = step->table[row * step->table_width + b];
            int64_t left = step->context[row] - from;
            if (left > step->block_tokens) left = step->block_tokens;
            ahead_add(ahead, layer->k + block * size, left * stride * (int64_t)sizeof(bf16));
            ahead_add(ahead, layer->v + block * size, left * stride * (int64_t)sizeof(bf16));
        }
}

/* `attended`: the layer whose attention comes next, if it does. */
static void multiply(const Step *step, const Group *group, const Routing *routing, const bf16 *x,
                     bf16 *y, const Layer *attended) {
    int64_t in = group->product.in, out = group->product.out;
    Ahead ahead;
    ahead_clear(&ahead);
    pages_ahead(&ahead, group, routing);
    if (attended) cache_ahead(&ahead, attended, step);
    double began = begin_part(step);
    nf4_product(&group->product, step->rows, x, y, &ahead);
    began = spend(step, BASE_LINEARS, began);
    if (!routing->tiles) return;
    shrink_bf16(step->h, x, in, group->a, group->a_stride, group->slices, in, routing);
#pragma omp barrier
    expand_add_bf16(y, out, step->h, group->b, group->b_stride, group->slices, group->outs,
                    routing);
    spend(step, ADAPTERS, began);
}

/* y = weight * x / rms(x), one row; width: a multiple of 16. */
static void rms_norm(bf16 *restrict y, const bf16 *restrict x, const bf16 *restrict weight,
                     int64_t width, float eps) {
    vec squares = {0};
    for (int64_t i = 0; i < width; i += 16) {
        vec v = load16_bf16(x + i);
        squares += v * v;
    }
    float inverse = 1.0f / sqrtf(_mm512_reduce_add_ps((__m512)squares) / (float)width + eps);
    for (int64_t i = 0; i < width; i += 16) {
        vec scaled = bf16_widen(bf16_narrow(load16_bf16(x + i) * inverse));
        store16_bf16(y + i, load16_bf16(weight + i) * scaled);
    }
}

/* y = a + b, one row. */
static inline void add_row(bf16 *y, const bf16 *a, const bf16 *b, int64_t width) {
    for (int64_t i = 0; i < width; i += 16)
        store16_bf16(y + i, load16_bf16(a + i) + load16_bf16(b + i));
}

/* Turn one head by its position's angle; the halves are the two parts of each pair. */
static void rotate(bf16 *restrict y, const bf16 *restrict x, const bf16 *restrict cos,
                   const bf16 *restrict sin, int64_t dim) {
    int64_t half = dim / 2, i = 0;
    for (; i + 16 <= half; i += 16) {
        vec first = load16_bf16(x + i), second = load16_bf16(x + i + half);
        vec a = bf16_widen(bf16_narrow(first * load16_bf16(cos + i)));
        vec b = bf16_widen(bf16_narrow(second * load16_bf16(sin + i)));
        vec c = bf16_widen(bf16_narrow(second * load16_bf16(cos + i + half)));
        vec d = bf16_widen(bf16_narrow(first * load16_bf16(sin + i + half)));
        store16_bf16(y + i, a - b);
        store16_bf16(y + i + half, c + d);
    }
    for (; i < half; i++) {
        float first = bf16_load(x[i]), second = bf16_load(x[i + half]);
        bf16 a = bf16_store(first * bf16_load(cos[i]));
        bf16 b = bf16_store(-second * bf16_load(sin[i]));
        bf16 c = bf16_store(second * bf16_load(cos[i + half]));
        bf16 d = bf16_store(first * bf16_load(sin[i + half]));
        y[i] = bf16_store(bf16_load(a) + bf16_load(b));
        y[i + half] = bf16_store(bf16_load(c) + bf16_load(d));
    }
}

/* `attended`: the layer itself, unless its keys and values were asked for already. Where rows are `apart`,
 * each thread goes on when it has made its own, every so many as there are threads.
 */
static void before_attention(const Layer *layer, const Step *step, const bf16 *x, bf16 *q,
                             const Layer *attended, int apart) {
    int64_t hidden = layer->hidden, dim = layer->dim, width = layer->qkv.product.out;
    int64_t heads = layer->heads, kv_heads = layer->kv_heads;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < step->rows; row++)
        rms_norm(step->narrow + row * hidden, x + row * hidden, layer->norm_before, hidden,
                 layer->eps);
    multiply(step, &layer->qkv, &step->qkv, step->narrow, step->wide, attended);
#pragma omp for schedule(static, 1) nowait
    for (int64_t row = 0; row < step->rows; row++) {
        const bf16 *made = step->wide + row * width;
        int64_t place = (step->position ? step->position[row] : row) * dim;
        const bf16 *cos = step->cos + place, *sin = step->sin + place;
        int64_t slot = step->slots[row] * kv_heads * dim;
        for (int64_t head = 0; head < heads; head++)
            rotate(q + (row * heads + head) * dim, made + head * dim, cos, sin, dim);
        made += heads * dim;
        for (int64_t head = 0; head < kv_heads; head++)
            rotate(layer->k + slot + head * dim, made + head * dim, cos, sin, dim);
        memcpy(layer->v + slot, made + kv_heads * dim, sizeof(bf16) * (size_t)(kv_heads * dim));
    }
    if (apart) return;
#pragma omp barrier
}

/* `attended`: the layer that comes next, if it is attended in the same call. Each thread goes on when
 * it has written its own rows of y.
 */
static void after_attention(const Layer *layer, const Step *step, const bf16 *restrict x,
                            const bf16 *restrict attention, bf16 *restrict y,
                            const Layer *attended) {
    int64_t hidden = layer->hidden, inner = layer->inner;
    multiply(step, &layer->o, &step->o, attention, y, 0);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < step->rows; row++) {
        bf16 *ys = y + row * hidden;
        add_row(ys, x + row * hidden, ys, hidden);
        rms_norm(step->narrow + row * hidden, ys, layer->norm_after, hidden, layer->eps);
    }
    bf16 *product = step->wide, *made = step->narrow;
    if (step->gate_up.tiles) {
        multiply(step, &layer->gate_up, &step->gate_up, step->narrow, step->wide, 0);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < step->rows; row++) {
            const bf16 *gate = step->wide + row * 2 * inner, *up = gate + inner;
            for (int64_t i = 0; i < inner; i += 16)
                store16_bf16(step->narrow + row * inner + i, gated16(gate + i, up + i));
        }
        product = step->narrow, made = step->wide;
    } else {
        double began = begin_part(step);
        nf4_gated(&layer->gate_up.product, step->rows, step->narrow, step->wide);
        spend(step, BASE_LINEARS, began);
    }
    multiply(step, &layer->down, &step->down, product, made, attended);
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < step->rows; row++) {
        bf16 *ys = y + row * hidden;
        add_row(ys, ys, made + row * hidden, hidden);
    }
}

/* q [rows, heads, dim] of x [rows, hidden]; keys and values go to their slots in the cache. */
void layer_before_attention(const Layer *layer, const Step *step, const bf16 *x, bf16 *q) {
#pragma omp parallel
    before_attention(layer, step, x, q, layer, 0);
}

/* y [rows, hidden]: the layer's output, from its input x and attention's output [rows, heads, dim]. */
void layer_after_attention(const Layer *layer, const Step *step, const bf16 *x,
                           const bf16 *attention, bf16 *y) {
#pragma omp parallel
    after_attention(layer, step, x, attention, y, 0);
}
#endif

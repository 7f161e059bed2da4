/* A step of a whole Llama-shaped model in one call, from tokens to the likeliest next ones. */
#ifdef NF4_PRODUCTS

enum { MOST_APART = 64 };

typedef struct {
    const Layer *layers;
    int64_t count, vocabulary;
    const bf16 *embedding; /* [vocabulary, hidden]; absent: the head's weight is the embedding too */
    const bf16 *head;      /* the same in panels, as in dense.h */
    const bf16 *norm;      /* [hidden] */
    float eps;
} Model;

typedef struct {
    const int64_t *tokens; /* [rows] */
    const int64_t *wanted; /* [sampled]: rows whose logits are wanted */
    int64_t sampled;
    bf16 *logits;  /* [sampled, vocabulary] */
    int64_t *best; /* [sampled]: the likeliest tokens, as in greedy.h */
} Ends;

/* Whether all of `count` indices are below `end`. */
static int within(const int64_t *index, int64_t count, int64_t end) {
    int64_t outside = 0;
    for (int64_t i = 0; i < count; i++) outside |= index[i] < 0 || index[i] >= end;
    return !outside;
}

/* Whether no row attends what another row of the step writes, and each thread attends every so many rows as
 * there are threads: it need not wait for others between making a row's keys and attending them.
 */
int rows_are_apart(const Step *step, int64_t threads) {
    int64_t rows = step->rows, width = step->table_width, size = step->block_tokens;
    if (!rows_whole(rows, threads) || rows > MOST_APART) return 0;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t *table = step->table + row * width;
        int64_t blocks = (step->context[row] + size - 1) / size;
        for (int64_t other = 0; other < rows; other++) {
            int64_t written = step->slots[other] / size, found = 0;
            for (int64_t b = 0; b < blocks; b++) found |= table[b] == written;
            if (found && other != row) return 0;
        }
    }
    return 1;
}

/* to[i] = from[index[i]], `width` elements each. */
static void take_rows(bf16 *restrict to, const bf16 *restrict from, const int64_t *restrict index,
                      int64_t count, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++)
        memcpy(to + i * width, from + index[i] * width, sizeof(bf16) * (size_t)width);
}

/* The last layer after attention for wanted rows alone, in step->first: nobody reads the others.
 * Only where no adapter is routed to any row of it.
 */
static void finish_wanted(const Layer *layer, const Step *step, const Ends *ends, const bf16 *in) {
    Step few = *step;
    few.rows = ends->sampled;
    take_rows(step->q, step->attention, ends->wanted, few.rows, layer->heads * layer->dim);
    take_rows(step->third, in, ends->wanted, few.rows, layer->hidden);
    after_attention(layer, &few, step->third, step->q, step->first, 0);
}

/* Logits and likeliest tokens of the wanted rows. All rows are attended, each with its own context:
 * step->attended == step->rows; sampled <= rows. 0 when a token, a position or a wanted row is outside
 * of its table.
 *
 * The keys and values of a layer are asked for during the product that ends the one before it, which
 * is long enough, unless adapter pages are asked for there.
 */
int model_forward(const Model *model, const Step *step, const Ends *ends) {
    int64_t last = model->count - 1, hidden = model->layers->hidden, sampled = ends->sampled;
    if (!within(ends->tokens, step->rows, model->vocabulary) ||
        !within(step->position, step->rows, step->places) ||
        !within(ends->wanted, sampled, step->rows))
        return 0;
    int early = !step->down.tiles;
    int few = sampled < step->rows && !step->o.tiles && !step->gate_up.tiles && early;
#pragma omp parallel
    {
        bf16 *in = step->first, *out = step->second;
        int apart = rows_are_apart(step, threads());
        if (model->embedding)
            take_rows(in, model->embedding, ends->tokens, step->rows, hidden);
        else
            dense_rows(in, model->head, ends->tokens, step->rows, hidden);
        for (int64_t i = 0; i <= last; i++) {
            const Layer *layer = model->layers + i;
            before_attention(layer, step, in, step->q, early && i ? 0 : layer, apart);
            double began = begin_part(step);
            attend_rows_bf16(step->attention, step->q, layer->k, layer->v, step->rows,
                             layer->kv_heads, layer->heads / layer->kv_heads, layer->dim,
                             step->block_tokens, step->table, step->table_width, step->context,
                             layer->scale, step->weights, step->weight_tokens);
            spend(step, ATTENTION, began);
            if (i == last && few) break;
            after_attention(layer, step, in, step->attention, out,
                            early && i < last ? layer + 1 : 0);
            bf16 *read = in;
            in = out, out = read;
        }
        if (few) {
            finish_wanted(model->layers + last, step, ends, in);
            in = step->first;
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t i = 0; i < sampled; i++)
            rms_norm(step->narrow + i * hidden, in + (few ? i : ends->wanted[i]) * hidden,
                     model->norm, hidden, model->eps);
        double began = begin_part(step);
        dense_product(ends->logits, step->narrow, model->head, sampled, model->vocabulary, hidden);
        spend(step, HEAD, began);
        likeliest_rows_bf16(ends->best, ends->logits, sampled, model->vocabulary);
    }
    return 1;
}
#endif

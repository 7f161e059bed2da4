/* Memory that is asked for while a product of many rows keeps the cores busy and the memory idle: the
 * adapter pages that are added to it, the keys and values that are attended after it. Each thread
 * asks for what it will itself read, into its own second-level cache.
 */
enum { MOST_RANGES = 128, MOST_AHEAD = 512 << 10 };

typedef struct {
    struct {
        const char *from;
        int64_t bytes;
    } ranges[MOST_RANGES];
    int64_t count, bytes; /* of all ranges */
    int64_t range, at;    /* what is asked for next */
} Ahead;

static inline void ahead_clear(Ahead *ahead) {
    ahead->count = ahead->bytes = ahead->range = ahead->at = 0;
}

static inline void ahead_add(Ahead *ahead, const void *from, int64_t bytes) {
    if (ahead->count == MOST_RANGES || ahead->bytes + bytes > MOST_AHEAD) return;
    ahead->ranges[ahead->count].from = from;
    ahead->ranges[ahead->count++].bytes = bytes;
    ahead->bytes += bytes;
}

/* Ask for about `bytes` more. */
static inline void ahead_ask(Ahead *ahead, int64_t bytes) {
    while (bytes > 0 && ahead->range < ahead->count) {
        const char *from = ahead->ranges[ahead->range].from;
        int64_t end = ahead->at + bytes, whole = ahead->ranges[ahead->range].bytes;
        if (end > whole) end = whole;
        for (int64_t i = ahead->at; i < end; i += 64) __builtin_prefetch(from + i, 0, 2);
        bytes -= end - ahead->at;
        ahead->at = end;
        if (end == whole) ahead->range++, ahead->at = 0;
    }
}

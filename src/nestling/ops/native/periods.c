/* Memories that are read at their commits, one after another, each through all its periods: its weights stay in a cache.

   ``ops.periods`` says the same in torch, a period of all memories after the other; names are the same there. Who compiles it says what a
   REAL number is, how many weights a chain has at most (DEEPEST), and how many tokens a period (LONGEST). */

#include "products.h"

#include "chain.h"

/* One weight of all memories: (N, out, in). Rows of n periods: scalars (n, N), vectors (n, N, C). */
typedef struct {
    const REAL *weight, *trace;
    REAL *after, *moved, *anchor; /* after all periods; before the last one */
    REAL *kept, *kept_trace;      /* at the starts of groups of periods but the first: (groups − 1, N, out, in) */
    /* W' = βW + fS + Σ gⱼ δⱼxⱼᵀ,  S' = μS + Σ nⱼ δⱼxⱼᵀ: β, g, f, μ, n; no g where W' = βW + S' */
    const REAL *start, *writes, *blend, *carry, *carried;
    REAL *by, *by_trace; /* the derivatives by what is left, then by what there was */
    const REAL *by_anchor;
    REAL *by_start, *by_writes, *by_blend, *by_carry, *by_carried;
} Weight;

typedef struct {
    Chain chain;
    long memories, periods, stride; /* periods between stored states */
    const REAL *inputs, *values;    /* (n, N, Q + C, keys), (n, N, C, values) */
    REAL *y;                        /* (n, N, Q, values) */
    REAL *records;                  /* (n, N, ·), or none: then periods are evaluated again */
    const REAL *by_y;
    REAL *by_inputs, *by_values;
    Weight weights[DEEPEST];
} Job;

static long area(const Chain *chain, long l) { return chain->widths[l] * chain->widths[l + 1]; }
static long widest(const Chain *chain) {
    long found = 0;
    for (long l = 0; l <= chain->depth; l++) found = chain->widths[l] > found ? chain->widths[l] : found;
    return found;
}
static long size_of_state(const Chain *chain) {
    long found = 0;
    for (long l = 0; l < chain->depth; l++) found += 2 * ROUND(area(chain, l));
    return found;
}

long lanes(void) { return V; }
long job_size(void) { return sizeof(Job); }

static long size_of_seen(const Chain *chain) {
    Seen seen;
    return lay(chain, 0, 0, &seen);
}

long record_size(const Job *job) {
    Record record;
    return lay_record(&job->chain, 0, &record);
}

/* Numbers that one memory needs for its way there, and ``back``. */
long scratch_size(const Job *job, long back) {
    const Chain *chain = &job->chain;
    long rows = chain->queries + chain->keys, seen = size_of_seen(chain);
    long buffers = widest(chain) * (6 * rows + 4 * chain->depth * chain->keys) + 64 * (DEEPEST + 8);
    return buffers + (back ? (job->stride - 1) * size_of_state(chain) + job->stride * seen : seen);
}

typedef struct {
    REAL *weight[DEEPEST], *trace[DEEPEST];
} State;

/* The state before period c of memory m: where the caller stored it, or in ``room``. */
static State state_at(const Job *job, long m, long c, REAL *room) {
    const Chain *chain = &job->chain;
    long within = c % job->stride, group = c / job->stride;
    REAL *at = within ? room + (within - 1) * size_of_state(chain) : 0;
    State found;
    for (long l = 0; l < chain->depth; l++) {
        const Weight *w = &job->weights[l];
        long size = area(chain, l), one = m * size, stored = (group - 1) * job->memories * size + one;
        REAL *weight = within ? take(&at, size) : group ? w->kept + stored : (REAL *)w->weight + one;
        REAL *trace = within ? take(&at, size) : group ? w->kept_trace + stored : (REAL *)w->trace + one;
        found.weight[l] = weight, found.trace[l] = w->trace ? trace : 0;
    }
    return found;
}

/* Room for what a period of memory m computes. */
static Seen seen_at(const Job *job, long m, long c, REAL *room) {
    const Chain *chain = &job->chain;
    Seen seen;
    lay(chain, job->inputs + (c * job->memories + m) * (chain->queries + chain->keys) * chain->widths[0], room, &seen);
    return seen;
}

static Record record_at(const Job *job, long m, long c) {
    Record record;
    lay_record(&job->chain, job->records ? job->records + (c * job->memories + m) * record_size(job) : 0, &record);
    return record;
}

/* Scalars of one period of one weight */
typedef struct {
    REAL start, blend, carry; /* β, f, μ */
} Ends;

typedef struct {
    REAL *weight, *trace;
} Pair;

/* A weight and its momentum, before and after a period */
typedef struct {
    Pair from, to;
    Ends ends;
    long in;
} Written;

#define HERE (at + i * w.in + j * V)

/* The same columns of the rows below, which come next but for the panels between */
#define FETCH(from) ALL(i, j) if (j != 1) __builtin_prefetch((from) + HERE + mr * w.in)

INLINE VISIT(written_tile) {
    const Written w = *(const Written *)what;
    const Pairs g = pairs[0], n = pairs[1];
    long at = row * w.in + column;
    Tile sum, moved = {{{0}}};
    FETCH(w.from.weight);
    FETCH(w.from.trace);
    if (n.count) {
        /* S' = μS + Σⱼ nⱼ δⱼxⱼᵀ */
        ALL(i, j) moved[i][j] = w.ends.carry * load(w.from.trace + HERE);
        tile(moved, rows + g.count * mr, 1, mr, side + g.count * nr * V, n.count, mr, nr);
    }
    /* W' = βW + fS + Σⱼ gⱼ δⱼxⱼᵀ,  or βW + S' */
    ALL(i, j) sum[i][j] = w.ends.start * load(w.from.weight + HERE);
    if (n.count) {
        if (g.count) ALL(i, j) sum[i][j] += w.ends.blend * load(w.from.trace + HERE);
        else ALL(i, j) sum[i][j] += moved[i][j];
        ALL(i, j) store(w.to.trace + HERE, moved[i][j]);
    }
    if (g.count) tile(sum, rows, 1, mr, side, g.count, mr, nr);
    ALL(i, j) store(w.to.weight + HERE, sum[i][j]);
}

static Ends ends(const Weight *w, long one) {
    return (Ends){w->start[one], w->blend ? w->blend[one] : 0, w->carry ? w->carry[one] : 0};
}

/* All weights after a period, which may be in the place of those before. */
static void advance(const Job *job, long m, long c, const Seen *seen, State from, State to) {
    const Chain *chain = &job->chain;
    long one = c * job->memories + m, keys = chain->keys;
    for (long l = 0; l < chain->depth; l++) {
        const Weight *w = &job->weights[l];
        long in = chain->widths[l], out = chain->widths[l + 1];
        const REAL *x = seen->x[l] + chain->queries * in;
        Pairs pairs[2] = {
            {seen->pairs[l], x, w->writes ? w->writes + one * keys : 0, w->writes ? keys : 0},
            {seen->pairs[l], x, w->carried ? w->carried + one * keys : 0, w->carried ? keys : 0},
        };
        Written what = {{from.weight[l], from.trace[l]}, {to.weight[l], to.trace[l]}, ends(w, one), in};
        over(out, in, pairs, written_tile, &what);
    }
}

static State left(const Job *job, long m) {
    State found;
    for (long l = 0; l < job->chain.depth; l++) {
        long one = m * area(&job->chain, l);
        found.weight[l] = job->weights[l].after + one;
        found.trace[l] = job->weights[l].moved ? job->weights[l].moved + one : 0;
    }
    return found;
}

/* What was read, and the weights and momenta after all periods, of memories from ``first`` on before ``last``. */
void forward(const Job *job, long first, long last, REAL *scratch) {
    const Chain *chain = &job->chain;
    long reads = chain->queries * chain->widths[chain->depth], values = chain->keys * chain->widths[chain->depth];
    REAL *seen_room = take(&scratch, size_of_seen(chain));
    for (long m = first; m < last; m++) {
        State now = state_at(job, m, 0, 0), between = left(job, m);
        for (long c = 0; c < job->periods; c++) {
            long one = c * job->memories + m, end = c + 1 == job->periods;
            Seen seen = seen_at(job, m, c, seen_room);
            Record record = record_at(job, m, c);
            evaluate(chain, now.weight, job->values + one * values, job->y + one * reads, &seen, job->records ? &record : 0);
            for (long l = 0; end && l < chain->depth; l++)
                memcpy(job->weights[l].anchor + m * area(chain, l), now.weight[l], area(chain, l) * sizeof(REAL));
            /* What nobody needs any more is written over. */
            State next = !end && (c + 1) % job->stride == 0 ? state_at(job, m, c + 1, 0) : between;
            advance(job, m, c, &seen, now, next);
            now = next;
        }
    }
}

/* What meets a weight and its momentum after a period, and what they were before it */
typedef struct {
    Pair by, was;
    const REAL *more; /* meets the weight before this period too */
    Ends ends;
    long in;
    int first;
    double *found;
    const Weight *weight;
} Retreated;

INLINE VISIT(retreated_tile) {
    const Retreated w = *(const Retreated *)what;
    int moves = w.weight->carried != 0, blends = w.weight->blend != 0, once = moves && !w.weight->writes;
    long at = row * w.in + column;
    vec start = {0}, blend = {0}, carry = {0};
    Tile sum;
    FETCH(w.by.weight);
    FETCH(w.by.trace);
    FETCH(w.was.weight);
    FETCH(w.was.trace);
    /* β̄ = ⟨W̄', W⟩,  f̄ = ⟨W̄', S⟩,  μ̄ = ⟨S̄', S⟩ */
    ALL(i, j) {
        vec back = load(w.by.weight + HERE);
        start += back * load(w.was.weight + HERE);
        sum[i][j] = w.ends.start * back;
        if (!moves) continue;
        vec trace = load(w.was.trace + HERE), moved = load(w.by.trace + HERE);
        carry += moved * trace;
        /* S̄ = μS̄' + fW̄' */
        if (blends) blend += back * trace, store(w.by.trace + HERE, w.ends.carry * moved + w.ends.blend * back);
    }
    w.found[0] += total(start), w.found[1] += total(blend), w.found[2] += total(carry);
    /* W̄ = βW̄' + rowsᵀ inputs */
    tile(sum, rows, 1, mr, side, pairs[0].count + pairs[1].count, mr, nr);
    if (w.more) ALL(i, j) sum[i][j] += load(w.more + HERE);
    ALL(i, j) store(w.by.weight + HERE, sum[i][j]);
    /* Where W' = βW + S': what meets S' in all. */
    if (once) ALL(i, j) {
        vec moved = w.ends.carry * load(w.by.trace + HERE);
        if (!w.first) moved += sum[i][j];
        store(w.by.trace + HERE, moved);
    }
}

static void retreat(const Job *job, long m, long c, long l, State state, const Pairs pairs[2]) {
    const Weight *w = &job->weights[l];
    long in = job->chain.widths[l], out = job->chain.widths[l + 1], size = m * in * out, one = c * job->memories + m;
    double found[3] = {0};
    Retreated what = {
        .by = {w->by + size, w->by_trace ? w->by_trace + size : 0},
        .was = {state.weight[l], state.trace[l]},
        .more = c + 1 == job->periods ? w->by_anchor + size : 0,
        .ends = ends(w, one),
        .in = in,
        .first = c == 0,
        .found = found,
        .weight = w,
    };
    over(out, in, pairs, retreated_tile, &what);
    w->by_start[one] = found[0];
    if (w->blend) w->by_blend[one] = found[1];
    if (w->carry) w->by_carry[one] = found[2];
}

/* Sums Σⱼ gⱼ δⱼxⱼᵀ of a period, what meets them, and where the derivatives go */
typedef struct {
    const REAL *share, *pairs, *x, *by;
    REAL *by_share, *cotangents, *inputs;
    long keys, in, out;
    int add; /* to what is there */
} Sums;

/* p̄ = x W̄'ᵀ;  δ̄ = g ⊙ p̄,  x̄ = (g ⊙ δ) W̄',  ḡ = ⟨δ, p̄⟩ */
static void pull(Sums s, REAL *scratch) {
    REAL *back = scratch, *rows = scratch + s.keys * s.out;
    across(back, s.x, s.by, s.keys, s.in, s.out, 0);
    for (long j = 0; j < s.keys; j++) {
        REAL sum = 0;
        for (long at = j * s.out; at < (j + 1) * s.out; at++) {
            sum += back[at] * s.pairs[at];
            rows[at] = s.share[j] * s.pairs[at];
            s.cotangents[at] = s.share[j] * back[at] + (s.add ? s.cotangents[at] : 0);
        }
        s.by_share[j] = sum;
    }
    along(s.inputs, rows, s.by, s.keys, s.out, s.in, s.add);
}

/* Through δ = a (r − mean r − n mean(r ⊙ n)): r̄ in the place of δ̄, n̄, and a² ā / d of each row. */
static void pull_unnormed(
    REAL *back, const REAL *slope, const REAL *normed, const REAL *scale, REAL *by_normed, REAL *by_scale, long rows, long width) {
    for (long i = 0; i < rows; i++) {
        const REAL *r = slope + i * width, *n = normed + i * width;
        REAL *b = back + i * width, *by = by_normed + i * width, along = 0, across = 0, mean = 0;
        for (long d = 0; d < width; d++) along += r[d] * n[d], across += b[d] * n[d], mean += b[d];
        along /= width, across /= width, mean /= width;
        REAL dot = 0;
        for (long d = 0; d < width; d++) {
            by[d] = -scale[i] * (b[d] * along + r[d] * across);
            b[d] = scale[i] * (b[d] - mean - n[d] * across);
            dot += b[d] * r[d];
        }
        by_scale[i] = dot / width * scale[i];
    }
}

/* The derivative of one period of one memory. */
static void derive(const Job *job, long m, long c, State state, const Seen *seen, REAL *scratch) {
    const Chain *chain = &job->chain;
    long one = c * job->memories + m, keys = chain->keys, reads = chain->queries, rows = reads + keys, top = chain->depth - 1;
    long width = chain->widths[top + 1], wide = widest(chain);
    REAL *cotangents[DEEPEST], *inputs[DEEPEST], *below[DEEPEST], *curved[DEEPEST];
    REAL *predicted = take(&scratch, rows * wide), *back = take(&scratch, rows * wide), *next = take(&scratch, rows * wide);
    REAL *by_normed = take(&scratch, keys * wide), *by_scale = take(&scratch, keys);
    for (long l = 0; l <= top; l++) {
        cotangents[l] = take(&scratch, keys * wide), inputs[l] = take(&scratch, keys * wide);
        below[l] = take(&scratch, keys * wide), curved[l] = take(&scratch, keys * wide);
    }
    for (long l = 0; l <= top; l++) {
        const Weight *w = &job->weights[l];
        long in = chain->widths[l], out = chain->widths[l + 1], at = m * in * out;
        const REAL *x = seen->x[l] + reads * in;
        Sums sums = {.pairs = seen->pairs[l], .x = x, .cotangents = cotangents[l], .inputs = inputs[l], .keys = keys, .in = in, .out = out};
        if (w->writes) {
            sums.share = w->writes + one * keys, sums.by = w->by + at, sums.by_share = w->by_writes + one * keys;
            pull(sums, scratch);
            sums.add = 1;
        }
        if (w->carried) {
            sums.share = w->carried + one * keys, sums.by = w->by_trace + at, sums.by_share = w->by_carried + one * keys;
            pull(sums, scratch);
        }
    }
    for (long l = 0; l < top; l++) {
        /* B̄ₗ = σ'(Zₗ) ⊙ δ̄ₗ,  Z̄ₗ = σ''(Zₗ) ⊙ Bₗ ⊙ δ̄ₗ,  δ̄ₗ₊₁ += Wₗ₊₁ B̄ₗ */
        long hidden = chain->widths[l + 1], count = keys * hidden;
        const REAL *bend = seen->bend[l] + reads * hidden, *curve = seen->curve[l], *met = cotangents[l];
        for (long i = 0; i < count; i++) below[l][i] = bend[i] * met[i], curved[l][i] = curve[i] * met[i];
        across(cotangents[l + 1], below[l], state.weight[l + 1], keys, hidden, chain->widths[l + 2], 1);
    }
    REAL *slope = cotangents[top];
    const REAL *normed = seen->normed + reads * width;
    if (chain->normed) pull_unnormed(slope, seen->slope, normed, seen->scale + reads, by_normed, by_scale, keys, width);
    long read = reads * width, written_to = keys * width;
    memcpy(predicted, job->by_y + one * read, read * sizeof(REAL));
    memcpy(predicted + read, slope, written_to * sizeof(REAL));
    memcpy(back, predicted, (read + written_to) * sizeof(REAL));
    for (long i = 0; i < written_to; i++) job->by_values[one * written_to + i] = -slope[i];
    if (chain->normed) {
        for (long i = 0; i < written_to; i++) back[read + i] += by_normed[i];
        through(back, back, seen->normed, seen->scale, rows, width);
        /* a stands in δ too:  ō −= a² ā n / d */
        for (long j = 0; j < keys; j++)
            for (long at = j * width; at < (j + 1) * width; at++) back[read + at] -= by_scale[j] * normed[at];
    }
    for (long l = top; l >= 0; l--) {
        long in = chain->widths[l], out = chain->widths[l + 1];
        along(next, back, state.weight[l], rows, out, in, 0);
        for (long i = 0; i < keys * in; i++) next[reads * in + i] += inputs[l][i];
        /* Wₗ stands in Wₗ xₗ and in Wₗᵀ δₗ. */
        Pairs pairs[2] = {{back, seen->x[l], 0, rows}, {seen->pairs[l], l ? below[l - 1] : back, 0, l ? keys : 0}};
        retreat(job, m, c, l, state, pairs);
        if (l) {
            for (long i = 0; i < rows * in; i++) next[i] *= seen->bend[l - 1][i];
            for (long i = 0; i < keys * in; i++) next[reads * in + i] += curved[l - 1][i];
        }
        REAL *used = back;
        back = next, next = used;
    }
    long count = rows * chain->widths[0];
    for (long i = 0; i < count; i++) job->by_inputs[one * count + i] = chain->residual ? back[i] + predicted[i] : back[i];
}

/* All derivatives, of memories from ``first`` on before ``last``: group by group from the end, each again from the state at its start. */
void backward(const Job *job, long first, long last, REAL *scratch) {
    const Chain *chain = &job->chain;
    long values = chain->keys * chain->widths[chain->depth], size = size_of_seen(chain);
    REAL *room = take(&scratch, (job->stride - 1) * size_of_state(chain)), *seen_room = take(&scratch, job->stride * size);
    for (long m = first; m < last; m++) {
        for (long end = job->periods; end > 0;) {
            long begin = (end - 1) / job->stride * job->stride;
            for (long c = begin; c < end; c++) {
                State state = state_at(job, m, c, room);
                Seen seen = seen_at(job, m, c, seen_room + (c - begin) * size);
                if (job->records) {
                    Record record = record_at(job, m, c);
                    recall(chain, &record, &seen);
                } else evaluate(chain, state.weight, job->values + (c * job->memories + m) * values, 0, &seen, 0);
                if (c + 1 < end) advance(job, m, c, &seen, state, state_at(job, m, c + 1, room));
            }
            for (long c = end - 1; c >= begin; c--) {
                Seen seen = seen_at(job, m, c, seen_room + (c - begin) * size);
                derive(job, m, c, state_at(job, m, c, room), &seen, scratch);
            }
            end = begin;
        }
    }
}

/* A chain of layers, y = [x +] [LN](W_L σ(… σ(W₁ x))) under ½‖y − v‖², for one memory and one period; as ``ops.layers``. */

#include <math.h>

enum activation { GELU, SILU };

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GLIBC__ > 2 || __GLIBC_MINOR__ >= 35
/* This C library has them for vectors. */
__attribute__((simd("notinbranch"))) double exp(double);
__attribute__((simd("notinbranch"))) float expf(float);
__attribute__((simd("notinbranch"))) double erf(double);
__attribute__((simd("notinbranch"))) float erff(float);
#endif
#endif

typedef struct {
    long queries, keys; /* rows of a period: queries first */
    long depth, widths[DEEPEST + 1];
    long activation, residual, normed;
    double eps;
} Chain;

/* What a period computed. Rows of queries and keys: x, bend, normed, scale; of keys: the others. */
typedef struct {
    const REAL *x[DEEPEST]; /* Xₗ, what each weight meets */
    REAL *bend[DEEPEST];    /* σ'(Zₗ) */
    REAL *curve[DEEPEST];   /* σ''(Zₗ) ⊙ Bₗ,  Bₗ = Wₗ₊₁ᵀ δₗ₊₁ */
    REAL *pairs[DEEPEST];   /* δₗ = ∂ℓ/∂(Wₗ xₗ) */
    REAL *normed, *scale;   /* n = a (o − mean o), and a */
    REAL *slope;            /* r = ∂ℓ/∂v̂ */
} Seen;

/* Numbers in whole lines of the cache */
#define ROUND(count) (((count) + 15) / 16 * 16)

static REAL *take(REAL **from, long count) {
    REAL *at = *from;
    *from += ROUND(count);
    return at;
}

/* Lays out what is seen from ``at`` on; returns how many numbers that are. */
static long lay(const Chain *chain, const REAL *inputs, REAL *at, Seen *seen) {
    long rows = chain->queries + chain->keys, last = chain->widths[chain->depth];
    REAL *from = at;
    seen->x[0] = inputs;
    for (long l = 0; l < chain->depth; l++) {
        long width = chain->widths[l + 1];
        seen->pairs[l] = take(&from, chain->keys * width);
        if (l + 1 == chain->depth) break; /* δ_L stands beside n, a and r */
        seen->x[l + 1] = take(&from, rows * width);
        seen->bend[l] = take(&from, rows * width);
        seen->curve[l] = take(&from, chain->keys * width);
    }
    seen->normed = take(&from, rows * last);
    seen->scale = take(&from, rows);
    seen->slope = take(&from, chain->keys * last);
    return from - at;
}

/* The part of it that products have made, and that all else is had from again. */
typedef struct {
    REAL *met[DEEPEST];  /* Zₗ, of queries and keys */
    REAL *back[DEEPEST]; /* Bₗ, of keys */
    REAL *top;           /* δ_L, n, a and r, as they are */
} Record;

static long size_of_top(const Chain *chain) {
    long rows = chain->queries + chain->keys, width = chain->widths[chain->depth];
    return ROUND(rows * width) + ROUND(rows) + 2 * ROUND(chain->keys * width);
}

/* Lays out a record from ``at`` on; returns how many numbers that are. */
static long lay_record(const Chain *chain, REAL *at, Record *record) {
    REAL *from = at;
    for (long l = 0; l + 1 < chain->depth; l++) {
        long width = chain->widths[l + 1];
        record->met[l] = take(&from, (chain->queries + chain->keys) * width);
        record->back[l] = take(&from, chain->keys * width);
    }
    record->top = take(&from, size_of_top(chain));
    return from - at;
}

/* σ(z) into x, σ'(z) in place of z, and σ''(z) into ``curve`` where there is one. */
static void activate(long activation, REAL *restrict z, REAL *restrict x, REAL *restrict curve, long count) {
    const REAL half = 0.70710678118654752440, density = 0.39894228040143267794;
    if (activation == GELU) {
        for (long i = 0; i < count; i++) {
            REAL at = z[i], below, here;
            if (sizeof(REAL) == 4) below = erff(at * half), here = expf(at * at * (REAL)-0.5);
            else below = erf(at * half), here = exp(at * at * (REAL)-0.5);
            /* Φ = (1 + erf(z / √2)) / 2,  φ = exp(−z² / 2) / √2π:  zΦ,  Φ + zφ,  φ(2 − z²) */
            below = (REAL)0.5 + (REAL)0.5 * below, here *= density;
            x[i] = at * below;
            z[i] = below + at * here;
            if (curve) curve[i] = here * (2 - at * at);
        }
    } else {
        for (long i = 0; i < count; i++) {
            REAL at = z[i], s;
            if (sizeof(REAL) == 4) s = 1 / (1 + expf(-at));
            else s = 1 / (1 + exp(-at));
            x[i] = at * s;
            z[i] = s * (1 + at * (1 - s));
            if (curve) curve[i] = s * (1 - s) * (2 + at * (1 - 2 * s));
        }
    }
}

/* Through n = a (x − mean x): out = a (y − mean y − n mean(y ⊙ n)), row by row. */
static void through(REAL *out, const REAL *y, const REAL *normed, const REAL *scale, long rows, long width) {
    for (long i = 0; i < rows; i++, out += width, y += width, normed += width) {
        REAL mean = 0, along = 0;
        for (long d = 0; d < width; d++) mean += y[d], along += y[d] * normed[d];
        mean /= width, along /= width;
        for (long d = 0; d < width; d++) out[d] = scale[i] * (y[d] - mean - normed[d] * along);
    }
}

static void normalise(REAL *x, REAL *scale, double eps, long rows, long width) {
    for (long i = 0; i < rows; i++, x += width) {
        REAL mean = 0, square = 0;
        for (long d = 0; d < width; d++) mean += x[d];
        mean /= width;
        for (long d = 0; d < width; d++) square += (x[d] - mean) * (x[d] - mean);
        scale[i] = 1 / sqrt(square / width + eps);
        for (long d = 0; d < width; d++) x[d] = scale[i] * (x[d] - mean);
    }
}

/* From Zₗ, which is in the place of σ'(Zₗ) */
static void bent(const Chain *chain, const Seen *seen, long l) {
    long width = chain->widths[l + 1], before = chain->queries * width;
    REAL *x = (REAL *)seen->x[l + 1];
    activate(chain->activation, seen->bend[l], x, 0, before);
    activate(chain->activation, seen->bend[l] + before, x + before, seen->curve[l], chain->keys * width);
}

/* δₗ = σ'(Zₗ) ⊙ Bₗ, from Bₗ, which is in its place */
static void met(const Chain *chain, const Seen *seen, long l) {
    long width = chain->widths[l + 1];
    REAL *pairs = seen->pairs[l], *curve = seen->curve[l], *bend = seen->bend[l] + chain->queries * width;
    for (long i = 0; i < chain->keys * width; i++) curve[i] *= pairs[i], pairs[i] *= bend[i];
}

/* What the queries read (into ``y``, where it is asked for), the keys' gradients, and all that was seen; a ``record`` where one is kept. */
static void evaluate(const Chain *chain, REAL *const *weights, const REAL *values, REAL *y, const Seen *seen, const Record *record) {
    long rows = chain->queries + chain->keys, top = chain->depth - 1, width = chain->widths[top + 1];
    for (long l = 0; l < top; l++) {
        long next = chain->widths[l + 1];
        across(seen->bend[l], seen->x[l], weights[l], rows, chain->widths[l], next, 0);
        if (record) memcpy(record->met[l], seen->bend[l], rows * next * sizeof(REAL));
        bent(chain, seen, l);
    }
    REAL *out = seen->normed, *slope = seen->slope, *keys = out + chain->queries * width;
    across(out, seen->x[top], weights[top], rows, chain->widths[top], width, 0);
    if (chain->normed) normalise(out, seen->scale, chain->eps, rows, width);
    const REAL *x = seen->x[0];
    long read = chain->queries * width, count = chain->keys * width;
    if (y) for (long i = 0; i < read; i++) y[i] = chain->residual ? out[i] + x[i] : out[i];
    /* ∂ℓ/∂v̂ = v̂ − v */
    for (long i = 0; i < count; i++) slope[i] = (chain->residual ? keys[i] + x[read + i] : keys[i]) - values[i];
    if (chain->normed) through(seen->pairs[top], slope, keys, seen->scale + chain->queries, chain->keys, width);
    else memcpy(seen->pairs[top], slope, count * sizeof(REAL));
    for (long l = top; l > 0; l--) {
        /* Bₗ = Wₗ₊₁ᵀ δₗ₊₁ */
        long below = chain->widths[l];
        along(seen->pairs[l - 1], seen->pairs[l], weights[l], chain->keys, chain->widths[l + 1], below, 0);
        if (record) memcpy(record->back[l - 1], seen->pairs[l - 1], chain->keys * below * sizeof(REAL));
        met(chain, seen, l - 1);
    }
    if (record) memcpy(record->top, seen->pairs[top], size_of_top(chain) * sizeof(REAL));
}

/* All that was seen, from a record of it. */
static void recall(const Chain *chain, const Record *record, const Seen *seen) {
    for (long l = 0; l + 1 < chain->depth; l++) {
        long width = chain->widths[l + 1];
        memcpy(seen->bend[l], record->met[l], (chain->queries + chain->keys) * width * sizeof(REAL));
        memcpy(seen->pairs[l], record->back[l], chain->keys * width * sizeof(REAL));
        bent(chain, seen, l);
        met(chain, seen, l);
    }
    memcpy(seen->pairs[chain->depth - 1], record->top, size_of_top(chain) * sizeof(REAL));
}

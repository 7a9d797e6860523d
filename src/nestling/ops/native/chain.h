/* A chain of layers, y = [x +] [LN](W_L σ(… σ(W₁ x))) under ½‖y − v‖², for one memory and one period; as ``ops.layers``. */

#include <math.h>

enum { DEEPEST = 8 };
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
#define OF_TYPE(name) (sizeof(REAL) == 4 ? (REAL)name##f : (REAL)name)

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
        if (l + 1 == chain->depth) break;
        seen->x[l + 1] = take(&from, rows * width);
        seen->bend[l] = take(&from, rows * width);
        seen->curve[l] = take(&from, chain->keys * width);
    }
    seen->normed = take(&from, rows * last);
    seen->scale = take(&from, rows);
    seen->slope = take(&from, chain->keys * last);
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

/* What the queries read (into ``y``, where it is asked for), the keys' gradients, and all that was seen. */
static void evaluate(const Chain *chain, REAL *const *weights, const REAL *values, REAL *y, Seen *seen) {
    long rows = chain->queries + chain->keys, top = chain->depth - 1, width = chain->widths[top + 1];
    for (long l = 0; l < top; l++) {
        long next = chain->widths[l + 1], before = chain->queries * next;
        across(seen->bend[l], seen->x[l], weights[l], rows, chain->widths[l], next, 0);
        activate(chain->activation, seen->bend[l], (REAL *)seen->x[l + 1], 0, before);
        activate(chain->activation, seen->bend[l] + before, (REAL *)seen->x[l + 1] + before, seen->curve[l], chain->keys * next);
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
        /* Bₗ = Wₗ₊₁ᵀ δₗ₊₁,  δₗ = σ'(Zₗ) ⊙ Bₗ */
        long below = chain->widths[l], size = chain->keys * below;
        REAL *pairs = seen->pairs[l - 1], *curve = seen->curve[l - 1], *bend = seen->bend[l - 1] + chain->queries * below;
        along(pairs, seen->pairs[l], weights[l], chain->keys, chain->widths[l + 1], below, 0);
        for (long i = 0; i < size; i++) curve[i] *= pairs[i], pairs[i] *= bend[i];
    }
}

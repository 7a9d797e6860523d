/* Products of few rows with matrices that a cache holds, and sums of outer products into them.

   All three are one tile of sums in registers, Σₖ rowᵢₖ sideₖⱼ: numbers of a few rows, each for a whole vector, times vectors of a
   panel that was laid side by side before, so that it is read from one end to the other. A vector is V numbers, as wide as a register;
   widths are multiples of it. */

#include <stddef.h>
#include <string.h>

#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
enum { MR = 6, NR = 3, V = BYTES / sizeof(REAL) };

/* Numbers of the widest panels: what a second cache holds beside all else, and a thread's stack */
enum { PANEL = 192 * 1024 / sizeof(REAL) };

typedef REAL vec __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

/* sum += c ⊙ b; and x stays in a register. Compilers that may choose move operands about, and read them again for each use. */
#if defined(__FMA__)
#define ADD(sum, c, b)                                                                             \
    do {                                                                                           \
        if (sizeof(REAL) == 4) __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(c), "v"(b));     \
        else __asm__("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(c), "v"(b));                       \
    } while (0)
#define KEEP(x) __asm__("" : "+v"(x))
#else
#define ADD(sum, c, b) ((sum) += (c) * (b))
#define KEEP(x)
#endif
#define INLINE static inline __attribute__((always_inline))
#define EACH _Pragma("GCC unroll 8") for

INLINE vec load(const REAL *at) { return *(const vec *)at; }
INLINE void store(REAL *at, vec x) { *(vec *)at = x; }
INLINE vec all(REAL x) { return x - (vec){0}; }

INLINE REAL total(vec x) {
    REAL lanes[V];
    store(lanes, x);
    for (int n = V / 2; n; n /= 2) for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
    return lanes[0];
}

typedef vec Tile[MR][NR];

#define ALL(i, j) EACH(int i = 0; i < mr; i++) EACH(int j = 0; j < nr; j++)

/* Adds Σₖ rows[i · down + k · right] side[k, j] to mr × nr sums; four by three or six by two of them fill sixteen registers. */
INLINE void tile(Tile sum, const REAL *rows, long down, long right, const REAL *side, long deep, int mr, int nr) {
    for (long k = 0; k < deep; k++, rows += right, side += nr * V) {
        vec b[NR], c;
        EACH(int j = 0; j < nr; j++) {
            b[j] = load(side + j * V);
            KEEP(b[j]);
        }
        EACH(int i = 0; i < mr; i++) {
            c = all(rows[i * down]);
            EACH(int j = 0; j < nr; j++) ADD(sum[i][j], c, b[j]);
        }
    }
}

/* Columns of w (deep, N), ``wide`` vectors of them, beside one another. */
INLINE void beside(REAL *side, const REAL *w, long deep, long N, int wide) {
    for (long k = 0; k < deep; k++, w += N, side += wide * V) {
        __builtin_prefetch(w + NR * V);
        EACH(int j = 0; j < wide; j++) store(side + j * V, load(w + j * V));
    }
}

/* out (M, N) = x (M, K) w,  w (K, N); or added to it. */
INLINE void along_tile(REAL *out, const REAL *x, const REAL *side, long K, long N, long deep, int add, int mr, int nr) {
    Tile sum;
    ALL(i, j) sum[i][j] = add ? load(out + i * N + j * V) : (vec){0};
    tile(sum, x, K, 1, side, deep, mr, nr);
    ALL(i, j) store(out + i * N + j * V, sum[i][j]);
}

INLINE void along_panel(REAL *out, const REAL *x, const REAL *w, long M, long K, long N, long deep, int add, int nr) {
    REAL side[PANEL / 8]; /* in the first cache */
    beside(side, w, deep, N, nr);
    long m = 0;
    for (; m + 4 <= M; m += 4) along_tile(out + m * N, x + m * K, side, K, N, deep, add, 4, nr);
    for (; m < M; m++) along_tile(out + m * N, x + m * K, side, K, N, deep, add, 1, nr);
}

static void along(REAL *restrict out, const REAL *restrict x, const REAL *restrict w, long M, long K, long N, int add) {
    enum { DEEP = PANEL / 8 / (NR * V) };
    for (long k = 0; k < K; k += DEEP) {
        long deep = K - k < DEEP ? K - k : DEEP, n = 0;
        int more = add || k;
        for (; n + 3 * V <= N; n += 3 * V) along_panel(out + n, x + k, w + k * N + n, M, K, N, deep, more, 3);
        for (; n + 2 * V <= N; n += 2 * V) along_panel(out + n, x + k, w + k * N + n, M, K, N, deep, more, 2);
        for (; n < N; n += V) along_panel(out + n, x + k, w + k * N + n, M, K, N, deep, more, 1);
    }
}

/* out (M, O) = x (M, K) wᵀ,  w (O, K); or added to it. The rows are those of w; x is laid on its side, two vectors of its rows wide. */
INLINE void across_tile(REAL *out, const REAL *w, const REAL *side, long K, long O, long deep, long many, int add, int mr) {
    Tile sum = {{{0}}};
    REAL found[MR][2 * V];
    tile(sum, w, K, 1, side, deep, mr, 2);
    EACH(int i = 0; i < mr; i++) EACH(int j = 0; j < 2; j++) store(found[i] + j * V, sum[i][j]);
    if (add) for (long m = 0; m < many; m++) EACH(int i = 0; i < mr; i++) out[m * O + i] += found[i][m];
    else for (long m = 0; m < many; m++) EACH(int i = 0; i < mr; i++) out[m * O + i] = found[i][m];
}

static void across(REAL *restrict out, const REAL *restrict x, const REAL *restrict w, long M, long K, long O, int add) {
    enum { MOST = 128 };
    REAL side[PANEL];
    for (; M > MOST; M -= MOST, x += MOST * K, out += MOST * O) across(out, x, w, MOST, K, O, add);
    long wide = (M + 2 * V - 1) / (2 * V) * 2 * V, most = PANEL / wide;
    for (long from = 0; from < K; from += most) {
        long deep = K - from < most ? K - from : most;
        int more = add || from;
        for (long m = 0; m < wide; m++) {
            REAL *at = side + m / (2 * V) * (2 * V) * deep + m % (2 * V);
            for (long k = 0; k < deep; k++) at[k * 2 * V] = m < M ? x[m * K + from + k] : 0;
        }
#define ACROSS(mr)                                                                                 \
    for (long m = 0; m < M; m += 2 * V)                                                            \
        across_tile(out + m * O + o, w + o * K + from, side + m * deep, K, O, deep, M - m < 2 * V ? M - m : 2 * V, more, mr)
        long o = 0;
        for (; o + 6 <= O; o += 6) ACROSS(6);
        for (; o + 2 <= O; o += 2) ACROSS(2);
        for (; o < O; o++) ACROSS(1);
#undef ACROSS
    }
}

/* Σⱼ shareⱼ rowsⱼ inputsⱼᵀ over ``count`` pairs of rows (·, out) and inputs (·, in); no share: of all the same, 1 */
typedef struct {
    const REAL *rows, *inputs, *share;
    long count;
} Pairs;

/* What is done with a tile of weights, given the rows and the panel of the first pairs, and then of the second. */
#define VISIT(name)                                                                                \
    void name(const void *what, const Pairs *pairs, long row, long column, const REAL *rows, const REAL *side, int mr, int nr)
typedef VISIT(Visit);

/* Numbers m … m + mr of each row, beside one another. */
INLINE REAL *upright(REAL *restrict side, Pairs p, long out, long m, int mr) {
    const REAL *rows = p.rows + m;
    for (long k = 0; k < p.count; k++, rows += out, side += mr) {
        REAL share = p.share ? p.share[k] : 1;
        EACH(int i = 0; i < mr; i++) side[i] = share * rows[i];
    }
    return side;
}

INLINE void visited(Visit visit, const void *what, const Pairs *pairs, long m, long n, const REAL *rows, const REAL *side, int mr, int nr) {
    if (nr == 3) visit(what, pairs, m, n, rows, side, mr, 3);
    else if (nr == 2) visit(what, pairs, m, n, rows, side, mr, 2);
    else visit(what, pairs, m, n, rows, side, mr, 1);
}

/* Visits weights (out, in) tile by tile. */
INLINE void over(long out, long in, const Pairs pairs[2], Visit visit, const void *what) {
    REAL sides[PANEL], rows[8 * 2 * LONGEST];
    long deep = pairs[0].count + pairs[1].count, most = PANEL / deep / V, block = V * (most > 3 ? most / 3 * 3 : most);
    for (long from = 0; from < in; from += block) {
        long to = from + block < in ? from + block : in;
        REAL *at = sides;
        for (long n = from; n < to; n += NR * V) {
            int nr = to - n < NR * V ? (to - n) / V : NR;
            for (int p = 0; p < 2; at += pairs[p++].count * nr * V) beside(at, pairs[p].inputs + n, pairs[p].count, in, nr);
        }
        for (long m = 0; m < out; m += out - m < 4 ? 1 : 4) {
            int mr = out - m < 4 ? 1 : 4;
            if (mr == 4) upright(upright(rows, pairs[0], out, m, 4), pairs[1], out, m, 4);
            else upright(upright(rows, pairs[0], out, m, 1), pairs[1], out, m, 1);
            at = sides;
            for (long n = from; n < to; n += NR * V) {
                int nr = to - n < NR * V ? (to - n) / V : NR;
                if (mr == 4) visited(visit, what, pairs, m, n, rows, at, 4, nr);
                else visited(visit, what, pairs, m, n, rows, at, 1, nr);
                at += deep * nr * V;
            }
        }
    }
}

/* How fast a GPT can decode at most: the matrix-vector products of one token, and nothing else.
 *
 *     ceiling PRECISION LAYERS WIDTH VOCABULARY THREADS SECONDS [OPTION=VALUE ...]
 *
 *     layer     query, key and value [3W, W] ─ out [W, W] ─ up [4W, W] ─ down [W, 4W]
 *     head      [V, W]                               a spinning barrier after every matrix
 *
 * Each thread has a share of every matrix's rows. Weights are float32, bfloat16 or int8, row after
 * row as in nn.Linear; all lie in one piece, in the order in which they are read. Vectors are those
 * of GCC and Clang, so AVX-512, AVX2 and NEON come from one source; int8 and bfloat16 have
 * instructions of their own where the processor has them. There is no attention, no norm, no
 * activation function: an engine cannot be faster than this unless it reads less.
 *
 * One line of output a variant: KERNEL ROWS AHEAD, nanoseconds a token: the median, and the mean. The
 * first tells variants apart; whoever is timed over whole calls is compared with the second. Options:
 *     rows=R      rows that one thread reads side by side: 1, 2, 4, 8 or 16; packed: 16, 32 or 64
 *     ahead=B     bytes ahead of each row that are prefetched; 0: none
 *     kernel=K    rows; apart (rows far from each other); packed (int8: sixteen rows interleaved,
 *                 one to four such blocks far from each other); read (adds up every 64 bytes,
 *                 without rows); wait (the barriers alone; only where it is asked for)
 * What is not given is tried: all other kernels and numbers of rows, three distances.
 *     pinned=1    thread i stays on the i-th processor that this process may use
 *     huge=1      asks for pages of 2 MB
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { VECTOR = 64, LANES = 16, MAX_THREADS = 256, ROW_UNIT = 256, MAX_TOKENS = 100000 };
typedef enum { F32, BF16, INT8 } Precision;

typedef float Floats __attribute__((vector_size(VECTOR)));
typedef int32_t Ints __attribute__((vector_size(VECTOR)));
typedef uint32_t Words __attribute__((vector_size(VECTOR)));
typedef int8_t Bytes __attribute__((vector_size(VECTOR)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR / 2)));

#define INLINE static inline __attribute__((always_inline))

/* One vector of weights times one of activations, added to a sum. ------------------------------ */

INLINE Floats times_f32(Floats sum, const void *weights, const void *x) {
    return sum + *(const Floats *)weights * *(const Floats *)x;
}

INLINE Floats times_bf16(Floats sum, const void *weights, const void *x) {
#ifdef __AVX512BF16__
    const __m512bh w = (__m512bh)_mm512_load_si512(weights);
    return _mm512_dpbf16_ps(sum, w, (__m512bh)_mm512_load_si512(x));
#else
    /* A bfloat16 is the upper half of a float32. The order of the columns is of no interest. */
    const Words both = *(const Words *)weights;
    const Floats even = (Floats)(both << 16), odd = (Floats)(both & 0xffff0000u);
    const Floats *floats = x;
    return sum + even * floats[0] + odd * floats[1];
#endif
}

INLINE Ints times_int8(Ints sum, const void *weights, const void *x) {
#ifdef __AVX512VNNI__
    const __m512i w = _mm512_load_si512(weights);
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(x), w);
#elif defined(__AVXVNNI__)
    const __m256i *w = weights, *bytes = x;
    __m256i *half = (__m256i *)&sum;
    half[0] = _mm256_dpbusd_avx_epi32(half[0], bytes[0], w[0]);
    half[1] = _mm256_dpbusd_avx_epi32(half[1], bytes[1], w[1]);
    return sum;
#elif defined(__AVX2__)
    const __m256i *w = weights, *bytes = x, ones = _mm256_set1_epi16(1);
    __m256i *half = (__m256i *)&sum;
    for (int i = 0; i < 2; i++) {
        const __m256i pairs = _mm256_maddubs_epi16(bytes[i], w[i]);
        half[i] = _mm256_add_epi32(half[i], _mm256_madd_epi16(pairs, ones));
    }
    return sum;
#else
    const int8_t *w = weights, *bytes = x;
    for (int i = 0; i < VECTOR; i++) sum[i / 4] += w[i] * bytes[i];
    return sum;
#endif
}

/* Sums over lanes: a tree that adds neighbours, so that R vectors end as R numbers in order. -- */

#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define SUM_PAIRS(A, B) \
    (__builtin_shufflevector(A, B, EVEN) + __builtin_shufflevector(A, B, ODD))
#define DEFINE_LANES(NAME, VECTORS)                                          \
    INLINE VECTORS NAME(VECTORS *sums, int rows) {                           \
        for (int level = 0; level < 4; level++) {                            \
            const int two = rows > 1;                                        \
            rows = two ? rows / 2 : 1;                                       \
            for (int i = 0; i < rows; i++) {                                 \
                const VECTORS a = sums[i << two], b = sums[(i << two) + two]; \
                sums[i] = SUM_PAIRS(a, b);                                   \
            }                                                                \
        }                                                                    \
        return sums[0];                                                      \
    }
DEFINE_LANES(float_lanes, Floats)
DEFINE_LANES(int_lanes, Ints)

/* R rows side by side, `stride` bytes from each other; U vectors of each in flight. ---------- */

typedef void Product(const char *weights, size_t row_bytes, size_t stride, size_t ahead,
                     const char *x, float *out);

#define PARAMETERS \
    const char *weights, size_t row_bytes, size_t stride, size_t ahead, const char *x, float *out
#define DEFINE_ROWS(NAME, SUMS, TIMES, LANES_OF, X_BYTES, R, U)                              \
    static void NAME##_##R(PARAMETERS) {                                                     \
        SUMS sums[R * U] = {0};                                                              \
        for (size_t at = 0; at < row_bytes; at += U * VECTOR) {                              \
            _Pragma("GCC unroll 16") for (int r = 0; r < R; r++) {                           \
                _Pragma("GCC unroll 4") for (int u = 0; u < U; u++) {                        \
                    const size_t here = at + u * VECTOR;                                     \
                    const char *row = weights + r * stride + here;                           \
                    if (ahead) __builtin_prefetch(row + ahead);                              \
                    sums[r * U + u] = TIMES(sums[r * U + u], row, x + here * X_BYTES);       \
                }                                                                            \
            }                                                                                \
        }                                                                                    \
        SUMS rows[R];                                                                        \
        for (int r = 0; r < R; r++) {                                                        \
            rows[r] = sums[r * U];                                                           \
            for (int u = 1; u < U; u++) rows[r] += sums[r * U + u];                          \
        }                                                                                    \
        const SUMS lanes = LANES_OF(rows, R);                                                \
        for (int r = 0; r < R; r++) out[r] = (float)lanes[r];                                \
    }
#define DEFINE_PRECISION(NAME, SUMS, TIMES, LANES_OF, X_BYTES)  \
    DEFINE_ROWS(NAME, SUMS, TIMES, LANES_OF, X_BYTES, 1, 4)     \
    DEFINE_ROWS(NAME, SUMS, TIMES, LANES_OF, X_BYTES, 2, 4)     \
    DEFINE_ROWS(NAME, SUMS, TIMES, LANES_OF, X_BYTES, 4, 2)     \
    DEFINE_ROWS(NAME, SUMS, TIMES, LANES_OF, X_BYTES, 8, 1)     \
    DEFINE_ROWS(NAME, SUMS, TIMES, LANES_OF, X_BYTES, 16, 1)    \
    static Product *const NAME##_products[] = {NAME##_1, NAME##_2, NAME##_4, NAME##_8, NAME##_16};
#ifdef __AVX512BF16__
enum { BF16_X = 1 };
#else
enum { BF16_X = 2 }; /* Activations stay float32. */
#endif
DEFINE_PRECISION(f32, Floats, times_f32, float_lanes, 1)
DEFINE_PRECISION(bf16, Floats, times_bf16, float_lanes, BF16_X)
DEFINE_PRECISION(int8, Ints, times_int8, int_lanes, 1)

static Product *const *const PRODUCTS[] = {f32_products, bf16_products, int8_products};
static const char *const PRECISIONS[] = {"float32", "bfloat16", "int8"};
static const size_t NUMBER_BYTES[] = {4, 2, 1};

/* Sixteen int8 rows as [columns / 4][16 rows][4 columns]: lanes are rows, so nothing is added up
 * across lanes. B such blocks side by side; U steps of each in flight. */
#define DEFINE_PACKED(B, U)                                                                  \
    static void packed_##B(PARAMETERS) {                                                     \
        Ints sums[B * U] = {0};                                                              \
        for (size_t column = 0; column < row_bytes; column += 4 * U) {                       \
            _Pragma("GCC unroll 4") for (int u = 0; u < U; u++) {                            \
                int32_t four;                                                                \
                memcpy(&four, x + column + 4 * u, sizeof four);                              \
                const Ints activations = (Ints){0} + four;                                   \
                _Pragma("GCC unroll 4") for (int b = 0; b < B; b++) {                        \
                    const char *here = weights + b * stride + (column + 4 * u) * LANES;      \
                    if (ahead) __builtin_prefetch(here + ahead);                             \
                    sums[b * U + u] = times_int8(sums[b * U + u], here, &activations);       \
                }                                                                            \
            }                                                                                \
        }                                                                                    \
        for (int b = 0; b < B; b++) {                                                        \
            for (int u = 1; u < U; u++) sums[b * U] += sums[b * U + u];                      \
            const Floats floats = __builtin_convertvector(sums[b * U], Floats);              \
            memcpy(out + b * LANES, &floats, sizeof floats);                                 \
        }                                                                                    \
    }
DEFINE_PACKED(1, 4)
DEFINE_PACKED(2, 4)
DEFINE_PACKED(4, 2)
static Product *const packed_products[] = {packed_1, packed_2, packed_4};

/* The run: what all threads share. ----------------------------------------------------------- */

typedef enum { ROWS, APART, PACKED, READ, WAIT } Kernel;
static const char *const KERNELS[] = {"rows", "apart", "packed", "read", "wait"};

typedef struct {
    size_t rows, columns, offset;
} Matrix;

typedef struct {
    Precision precision;
    Kernel kernel;
    int rows;
    size_t ahead;
} Variant;

static struct {
    Matrix *matrices;
    size_t num_matrices, num_bytes;
    char *weights, *x;
    float *out;
    int num_threads, tokens;
    double seconds[MAX_TOKENS];
    Variant variant;
    atomic_int waiting, phase;
    atomic_bool stop;
} run;

static void relax(void) {
#ifdef __x86_64__
    _mm_pause();
#endif
}

static void barrier(void) {
    const int phase = atomic_load_explicit(&run.phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&run.waiting, 1, memory_order_acq_rel) == run.num_threads - 1) {
        atomic_store_explicit(&run.waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&run.phase, phase + 1, memory_order_release);
        return;
    }
    while (atomic_load_explicit(&run.phase, memory_order_acquire) == phase) relax();
}

/* The first of a thread's rows or bytes; in whole units, so that no two threads share a line. */
static size_t share(size_t total, size_t unit, int thread) {
    if (thread == run.num_threads) return total;
    return total / unit * (size_t)thread / (size_t)run.num_threads * unit;
}

/* The share is cut into as many pieces as there are rows, or packed blocks, side by side: those of
 * `apart` and `packed` advance through the pieces, those of `rows` are neighbours. */
static void multiply(const Matrix *matrix, int thread) {
    const Variant v = run.variant;
    const size_t row_bytes = matrix->columns * NUMBER_BYTES[v.precision];
    const size_t unit = v.kernel == PACKED ? LANES : 1, side_by_side = (size_t)v.rows / unit;
    const size_t start = share(matrix->rows, LANES, thread);
    const size_t end = share(matrix->rows, LANES, thread + 1);
    const size_t steps = (end - start) / (size_t)v.rows;
    const bool is_far = v.kernel != ROWS;
    const size_t distance = is_far ? steps * unit : unit, step = is_far ? unit : (size_t)v.rows;
    const char *weights = run.weights + matrix->offset;
    Product *const *products = v.kernel == PACKED ? packed_products : PRODUCTS[v.precision];
    Product *const product = products[__builtin_ctzl(side_by_side)];
    for (size_t i = 0; i < steps; i++)
        product(weights + (start + i * step) * row_bytes, row_bytes, distance * row_bytes, v.ahead,
                run.x, run.out + start + i * (size_t)v.rows);
    for (size_t row = start + steps * (size_t)v.rows; row < end; row++)
        PRODUCTS[v.precision][0](weights + row * row_bytes, row_bytes, row_bytes, v.ahead, run.x,
                                 run.out + row);
}

static void read_all(int thread) {
    const size_t start = share(run.num_bytes, VECTOR * 16, thread), ahead = run.variant.ahead;
    const size_t end = share(run.num_bytes, VECTOR * 16, thread + 1) / VECTOR / 16 * VECTOR * 16;
    Floats sums[16] = {0};
    for (size_t at = start; at < end; at += VECTOR * 16) {
        _Pragma("GCC unroll 16") for (int u = 0; u < 16; u++) {
            const char *here = run.weights + at + u * VECTOR;
            if (ahead) __builtin_prefetch(here + ahead);
            sums[u] += *(const Floats *)here;
        }
    }
    for (int u = 1; u < 16; u++) sums[0] += sums[u];
    run.out[thread * 16] = sums[0][0];
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void tokens(int thread) {
    for (int token = 0; token < run.tokens; token++) {
        const double start = thread == 0 ? now() : 0;
        if (run.variant.kernel == READ) {
            read_all(thread);
            barrier();
        } else {
            for (size_t i = 0; i < run.num_matrices; i++) {
                if (run.variant.kernel != WAIT) multiply(&run.matrices[i], thread);
                barrier();
            }
        }
        if (thread == 0) run.seconds[token] = now() - start;
    }
}

static void *worker(void *number) {
    for (;;) {
        barrier();
        if (atomic_load(&run.stop)) return NULL;
        tokens((int)(intptr_t)number);
        barrier();
    }
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct {
    double median, mean;
} Seconds;

/* What else runs on this machine costs a few single tokens, which the median does not see. */
static Seconds seconds_of(int count) {
    run.tokens = count;
    barrier();
    tokens(0);
    barrier();
    double sum = 0;
    for (int token = 0; token < count; token++) sum += run.seconds[token];
    qsort(run.seconds, (size_t)count, sizeof *run.seconds, by_size);
    return (Seconds){run.seconds[count / 2], sum / count};
}

static void measure(double seconds) {
    const int count = (int)(seconds / seconds_of(3).median);
    const Seconds a_token = seconds_of(count < 3 ? 3 : count > MAX_TOKENS ? MAX_TOKENS : count);
    const Variant v = run.variant;
    printf("%s %d %zu %.0f %.0f\n", KERNELS[v.kernel], v.rows, v.ahead, a_token.median * 1e9,
           a_token.mean * 1e9);
    fflush(stdout);
}

/* The model, the threads, the arguments. ------------------------------------------------------ */

static void fail(const char *what) {
    fprintf(stderr, "ceiling: %s\n", what);
    exit(2);
}

static void add_matrix(size_t rows, size_t columns) {
    run.matrices[run.num_matrices++] = (Matrix){rows, columns, run.num_bytes};
    run.num_bytes += rows * columns * NUMBER_BYTES[run.variant.precision];
}

static void make_model(size_t layers, size_t width, size_t vocabulary, bool is_huge) {
    run.matrices = calloc(layers * 4 + 1, sizeof *run.matrices);
    if (!run.matrices) fail("no memory");
    for (size_t layer = 0; layer < layers; layer++) {
        add_matrix(3 * width, width);
        add_matrix(width, width);
        add_matrix(4 * width, width);
        add_matrix(width, 4 * width);
    }
    add_matrix(vocabulary, width);
    const size_t page = (size_t)1 << 21, padded = (run.num_bytes / page + 1) * page;
    const size_t most_rows = vocabulary > 4 * width ? vocabulary : 4 * width;
    const size_t num_out = (most_rows / LANES + 1 + MAX_THREADS) * LANES;
    run.weights = aligned_alloc(page, padded);
    run.x = aligned_alloc(page, page);
    run.out = aligned_alloc(VECTOR, num_out * sizeof *run.out);
    if (!run.weights || !run.x || !run.out || 16 * width > page) fail("no memory");
#ifdef MADV_HUGEPAGE
    madvise(run.weights, padded, is_huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
    (void)is_huge;
#endif
    /* Numbers that are none of zero, huge or tiny in any precision: 0x3c and 0x3d repeat. */
    for (size_t i = 0; i < run.num_bytes; i++) run.weights[i] = (char)(0x3c + i % 2);
    memset(run.x, 0x3c, page);
}

static void pin(pthread_t thread, int number) {
#ifdef __linux__
    cpu_set_t allowed, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && number-- == 0) CPU_SET(cpu, &one);
    if (CPU_COUNT(&one)) pthread_setaffinity_np(thread, sizeof one, &one);
#else
    (void)thread, (void)number;
#endif
}

static void try_variants(Variant wanted, int kernel, double seconds) {
    /* The numbers of rows that each kernel has, from one power of two to another. */
    static const int first[] = {1, 2, LANES, LANES, 1}, last[] = {16, 16, 4 * LANES, LANES, 1};
    static const size_t some[] = {0, 1024, 2048};
    const bool is_asked = wanted.ahead != SIZE_MAX;
    for (int k = ROWS; k <= (kernel == WAIT ? WAIT : READ); k++) {
        if ((kernel >= 0 && k != kernel) || (k == PACKED && wanted.precision != INT8)) continue;
        for (int rows = first[k]; rows <= last[k]; rows *= 2) {
            if (wanted.rows && wanted.rows != rows) continue;
            for (int i = 0; i < (is_asked ? 1 : 3); i++) {
                const size_t ahead = is_asked ? wanted.ahead : some[i];
                run.variant = (Variant){wanted.precision, k, rows, ahead};
                measure(seconds);
            }
        }
    }
}

static int index_of(const char *name, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(name, names[i])) return i;
    fprintf(stderr, "ceiling: what is %s?\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    if (argc < 7) fail("PRECISION LAYERS WIDTH VOCABULARY THREADS SECONDS [OPTION=VALUE ...]");
    Variant wanted = {index_of(argv[1], PRECISIONS, 3), ROWS, 0, SIZE_MAX};
    int kernel = -1;
    bool is_pinned = false, is_huge = false;
    for (int i = 7; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) fail("an option is NAME=VALUE");
        *value++ = 0;
        static const char *const names[] = {"rows", "ahead", "kernel", "pinned", "huge"};
        switch (index_of(argv[i], names, 5)) {
        case 0: wanted.rows = atoi(value); break;
        case 1: wanted.ahead = (size_t)atol(value); break;
        case 2: kernel = index_of(value, KERNELS, 5); break;
        case 3: is_pinned = atoi(value); break;
        default: is_huge = atoi(value);
        }
    }
    run.num_threads = atoi(argv[5]);
    run.variant = wanted;
    if (run.num_threads < 1 || run.num_threads > MAX_THREADS) fail("1 to 256 threads");
    if (atol(argv[3]) < 1 || atol(argv[3]) % ROW_UNIT) fail("WIDTH is a multiple of 256");
    make_model((size_t)atol(argv[2]), (size_t)atol(argv[3]), (size_t)atol(argv[4]), is_huge);
    pthread_t threads[MAX_THREADS];
    for (int i = 1; i < run.num_threads; i++) {
        if (pthread_create(&threads[i], NULL, worker, (void *)(intptr_t)i)) fail("no thread");
        if (is_pinned) pin(threads[i], i);
    }
    if (is_pinned) pin(pthread_self(), 0);
    try_variants(wanted, kernel, atof(argv[6]));
    atomic_store(&run.stop, true);
    barrier();
    for (int i = 1; i < run.num_threads; i++) pthread_join(threads[i], NULL);
    return 0;
}

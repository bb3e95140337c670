/* The two passes of a step over tensors in memory; momo/passes/compiled.py calls them. Built when the package is built.

   A pass gets tables of addresses and of numbers. It cuts every tensor into chunks of a fixed size, lets threads take runs of
   chunks, and adds each tensor's chunks' sums up in their order: no result depends on how many threads there were. All sums
   are in double.

   The threads are torch's own, by the function that GNU OpenMP starts a parallel region with, if the caller knows where it
   is: after an operation of torch they wait for the next one at full speed, and would take the processor from any others.
   Else threads are started for each pass, which a process made by a fork can do too.

   The formulas mirror momo/directions/. The file includes itself once for each type of real numbers. */

#ifndef REAL

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>

#define CHUNK 16384      /* elements; their streams stay in the cache between the loops over them */
#define RUN 65536        /* elements that a thread takes at once, so that many small tensors don't make it queue */
#define ALONE 262144     /* elements up to which starting a thread costs more than it brings */
#define ALONE_IN_TEAM 65536 /* the same, for threads that are waiting for work */
#define MOST_THREADS 256

/* The loops are compiled for several kinds of processors, and the loader takes what this one has: a wheel runs on all. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef FOR_EVERY_PROCESSOR
#define FOR_EVERY_PROCESSOR
#endif

/* Of each tensor, or of all at once; the last four as in momo/directions/adam.py, a momentum has only the first of them. */
struct numbers {
    double step, keep;
    double weight, square_weight, eps, root;
};

struct chunk {
    int64_t tensor, start, length;
    double gx, dx, du;
};

typedef void parallel(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */

struct pass {
    void *const *g, *const *x, *const *d, *const *v;
    const struct numbers *numbers;
    int64_t stride; /* in the table of numbers, from tensor to tensor: 0 or 1 */
    struct chunk *chunks;
    int64_t *runs; /* the first chunk of each run, and the number of chunks at the end */
    int64_t run_count, elements;
    int64_t taken;
    int backwards;
    void (*work)(const struct pass *, struct chunk *);
};

static void take_runs(void *argument)
{
    struct pass *pass = argument;
    for (;;) {
        int64_t run = __atomic_fetch_add(&pass->taken, 1, __ATOMIC_RELAXED);
        if (run >= pass->run_count)
            return;
        if (pass->backwards)
            run = pass->run_count - 1 - run;
        for (int64_t i = pass->runs[run]; i < pass->runs[run + 1]; i++)
            pass->work(pass, pass->chunks + i);
    }
}

static void *take_runs_in_a_thread(void *argument)
{
    take_runs(argument);
    return NULL;
}

static int cut(struct pass *pass, int64_t count, const int64_t *sizes)
{
    int64_t chunks = 0;
    for (int64_t i = 0; i < count; i++) {
        chunks += (sizes[i] + CHUNK - 1) / CHUNK;
        pass->elements += sizes[i];
    }
    pass->chunks = malloc((chunks + 1) * sizeof *pass->chunks);
    pass->runs = malloc((chunks + 1) * sizeof *pass->runs);
    if (!pass->chunks || !pass->runs)
        return -1;
    int64_t made = 0, in_run = RUN;
    for (int64_t i = 0; i < count; i++)
        for (int64_t start = 0; start < sizes[i]; start += CHUNK) {
            int64_t length = sizes[i] - start < CHUNK ? sizes[i] - start : CHUNK;
            if (in_run >= RUN) {
                pass->runs[pass->run_count++] = made;
                in_run = 0;
            }
            in_run += length;
            pass->chunks[made++] = (struct chunk){i, start, length, 0, 0, 0};
        }
    pass->runs[pass->run_count] = made;
    return 0;
}

static void go(struct pass *pass, int64_t threads, parallel *team)
{
    pthread_t helpers[MOST_THREADS];
    int64_t wanted = threads < pass->run_count ? threads : pass->run_count;
    int64_t started = 0;
    if (wanted > MOST_THREADS)
        wanted = MOST_THREADS;
    if (team && wanted > 1 && pass->elements > ALONE_IN_TEAM) {
        /* As many as torch has, because a team of another size is made anew. */
        team(take_runs, pass, (unsigned)threads, 0);
        return;
    }
    if (wanted > 1 && pass->elements > ALONE) {
        /* Signals are the business of the caller's thread. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (started < wanted - 1 && pthread_create(&helpers[started], NULL, take_runs_in_a_thread, pass) == 0)
            started++;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    take_runs(pass);
    while (started > 0)
        pthread_join(helpers[--started], NULL);
}

/* Both return 0, or -1 if there is no memory for the tables, and then nothing has been touched. A tensor of size 0 is left
   out. */

static int accumulate(
    struct pass *pass, int64_t count, const int64_t *sizes, double *dots, int64_t threads, parallel *team)
{
    int failed = cut(pass, count, sizes);
    if (!failed) {
        double *gx = dots, *dx = dots + count, *du = dots + 2 * count;
        go(pass, threads, team);
        for (int64_t i = 0; i < 3 * count; i++)
            dots[i] = 0;
        for (int64_t i = 0; i < pass->runs[pass->run_count]; i++) {
            const struct chunk *chunk = pass->chunks + i;
            gx[chunk->tensor] += chunk->gx;
            dx[chunk->tensor] += chunk->dx;
            du[chunk->tensor] += chunk->du;
        }
    }
    free(pass->chunks);
    free(pass->runs);
    return failed;
}

static int move(struct pass *pass, int64_t count, const int64_t *sizes, int64_t threads, parallel *team)
{
    int failed = cut(pass, count, sizes);
    /* What the first pass saw last is still in the cache. */
    pass->backwards = 1;
    if (!failed)
        go(pass, threads, team);
    free(pass->chunks);
    free(pass->runs);
    return failed;
}

#define JOINED(a, b) a##b
#define JOIN(a, b) JOINED(a, b)
#define NAME(name) JOIN(name, SUFFIX)

#define REAL float
#define SUFFIX _float32
#define SQRT sqrtf
#include "passes.c"
#undef REAL
#undef SUFFIX
#undef SQRT

#define REAL double
#define SUFFIX _float64
#define SQRT sqrt
#include "passes.c"

#else

/* torch.lerp, exact at both ends. */
#define LERP(old, new) (near ? (old) + weight * ((new) - (old)) : (new) - ((new) - (old)) * rest)
/* Adam's direction. */
#define U(d, v) ((d) / (SQRT(v) * scale + eps))
#define NUMBERS (pass->numbers + chunk->tensor * pass->stride)
#define PART(type, table) ((type *)pass->table[chunk->tensor] + chunk->start)

FOR_EVERY_PROCESSOR
static void NAME(momentum_chunk_accumulate)(const struct pass *pass, struct chunk *chunk)
{
    const struct numbers *numbers = NUMBERS;
    const REAL *restrict g = PART(const REAL, g), *restrict x = PART(const REAL, x);
    REAL *restrict d = PART(REAL, d);
    const REAL weight = (REAL)numbers->weight, rest = (REAL)(1 - numbers->weight);
    const int near = numbers->weight < 0.5;
    double gx = 0, dx = 0, du = 0;
#pragma omp simd reduction(+ : gx, dx, du)
    for (int64_t i = 0; i < chunk->length; i++) {
        REAL di = LERP(d[i], g[i]);
        d[i] = di;
        gx += (double)g[i] * (double)x[i];
        dx += (double)di * (double)x[i];
        du += (double)di * (double)di;
    }
    chunk->gx = gx, chunk->dx = dx, chunk->du = du;
}

FOR_EVERY_PROCESSOR
static void NAME(adam_chunk_accumulate)(const struct pass *pass, struct chunk *chunk)
{
    const struct numbers *numbers = NUMBERS;
    const REAL *restrict g = PART(const REAL, g), *restrict x = PART(const REAL, x);
    REAL *restrict d = PART(REAL, d), *restrict v = PART(REAL, v);
    const REAL weight = (REAL)numbers->weight, rest = (REAL)(1 - numbers->weight);
    const REAL new_square = (REAL)numbers->square_weight, old_square = (REAL)(1 - numbers->square_weight);
    const REAL eps = (REAL)numbers->eps, scale = (REAL)(1 / numbers->root);
    const int near = numbers->weight < 0.5;
    double gx = 0, dx = 0, du = 0;
#pragma omp simd reduction(+ : gx, dx, du)
    for (int64_t i = 0; i < chunk->length; i++) {
        REAL di = LERP(d[i], g[i]);
        REAL vi = old_square * v[i] + new_square * g[i] * g[i];
        REAL ui = U(di, vi);
        d[i] = di;
        v[i] = vi;
        gx += (double)g[i] * (double)x[i];
        dx += (double)di * (double)x[i];
        du += (double)di * (double)ui;
    }
    chunk->gx = gx, chunk->dx = dx, chunk->du = du;
}

FOR_EVERY_PROCESSOR
static void NAME(momentum_chunk_move)(const struct pass *pass, struct chunk *chunk)
{
    const struct numbers *numbers = NUMBERS;
    REAL *restrict x = PART(REAL, x);
    const REAL *restrict d = PART(const REAL, d);
    const REAL step = (REAL)numbers->step, keep = (REAL)numbers->keep;
#pragma omp simd
    for (int64_t i = 0; i < chunk->length; i++)
        x[i] = keep * x[i] - step * d[i];
}

FOR_EVERY_PROCESSOR
static void NAME(adam_chunk_move)(const struct pass *pass, struct chunk *chunk)
{
    const struct numbers *numbers = NUMBERS;
    REAL *restrict x = PART(REAL, x);
    const REAL *restrict d = PART(const REAL, d), *restrict v = PART(const REAL, v);
    const REAL step = (REAL)numbers->step, keep = (REAL)numbers->keep;
    const REAL eps = (REAL)numbers->eps, scale = (REAL)(1 / numbers->root);
#pragma omp simd
    for (int64_t i = 0; i < chunk->length; i++)
        x[i] = keep * x[i] - step * U(d[i], v[i]);
}

/* What Python calls, for each direction: `dots` are three rows of `count` numbers. */
#define PASSES(direction) \
    int NAME(momo_##direction##_accumulate)( \
        int64_t count, const int64_t *sizes, void *const *g, void *const *x, void *const *d, void *const *v, \
        const double *numbers, int64_t stride, double *dots, int64_t threads, parallel *team) \
    { \
        struct pass pass = {.g = g, .x = x, .d = d, .v = v, .numbers = (const void *)numbers, .stride = stride}; \
        pass.work = NAME(direction##_chunk_accumulate); \
        return accumulate(&pass, count, sizes, dots, threads, team); \
    } \
    int NAME(momo_##direction##_move)( \
        int64_t count, const int64_t *sizes, void *const *x, void *const *d, void *const *v, const double *numbers, \
        int64_t stride, int64_t threads, parallel *team) \
    { \
        struct pass pass = {.x = x, .d = d, .v = v, .numbers = (const void *)numbers, .stride = stride}; \
        pass.work = NAME(direction##_chunk_move); \
        return move(&pass, count, sizes, threads, team); \
    }

PASSES(momentum)
PASSES(adam)

#undef LERP
#undef U
#undef NUMBERS
#undef PART
#undef PASSES

#endif

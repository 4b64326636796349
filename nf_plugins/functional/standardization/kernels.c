/* Weight standardization on the CPU; formula.py has the formula.
 *
 * A row is a filter. It stays in the cache between the passes over it, so main memory
 * is read and written once. The values of a block are added in the type of the weight, and
 * the sums of the blocks in double. The mean of equal weights is that weight: a rounding error
 * would count as a variance. With v = 0 they become 0 and get no gradient.
 */
#include <math.h>
#include <stdint.h>

#define BLOCK 512

/* Load the same block of the next row while this one is added up: otherwise the memory waits. */
#ifdef __GNUC__
#define PREFETCH(row)                                                                          \
    for (int64_t i = start; i < stop; i += 64 / (int64_t)sizeof(*(row)))                       \
        __builtin_prefetch((row) + size + i);
#else
#define PREFETCH(row)
#endif

#define KERNELS(T, SUFFIX, LEAST, MOST, EPSILON, ZERO)                                         \
    void forward_##SUFFIX(const T *weight, const T *scale, T *out, T *stats, int64_t rows,     \
                          int64_t size, double var_factor, double eps, int clamp, double constant,\
                          int threads)                                                         \
    {                                                                                          \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                      \
        for (int64_t row = 0; row < rows; row++) {                                             \
            const T *w = weight + row * size;                                                  \
            T *o = out + row * size;                                                           \
            double sum = 0, square = 0;                                                        \
            for (int64_t start = 0; start < size; start += BLOCK) {                            \
                int64_t stop = start + BLOCK < size ? start + BLOCK : size;                    \
                T part = 0;                                                                    \
                _Pragma("omp simd reduction(+ : part)")                                        \
                for (int64_t i = start; i < stop; i++)                                         \
                    part += w[i];                                                              \
                sum += part;                                                                   \
            }                                                                                  \
            T mean = (T)(sum / size);                                                          \
            for (int64_t start = 0; start < size; start += BLOCK) {                            \
                int64_t stop = start + BLOCK < size ? start + BLOCK : size;                    \
                T part = 0;                                                                    \
                PREFETCH(w)                                                                    \
                _Pragma("omp simd reduction(+ : part)")                                        \
                for (int64_t i = start; i < stop; i++)                                         \
                    part += (w[i] - mean) * (w[i] - mean);                                     \
                square += part;                                                                \
            }                                                                                  \
            if (!(square > LEAST && square < MOST)) { /* out of the range of T */              \
                square = 0;                                                                    \
                for (int64_t i = 0; i < size; i++)                                             \
                    square += ((double)w[i] - mean) * ((double)w[i] - mean);                   \
            }                                                                                  \
            const double rounding = BLOCK * EPSILON * mean;                                    \
            if (!(square > size * rounding * rounding)) {                                      \
                int64_t same = 1;                                                              \
                while (same < size && w[same] == w[0])                                         \
                    same++;                                                                    \
                if (same == size) {                                                            \
                    mean = w[0];                                                               \
                    square = 0;                                                                \
                }                                                                              \
            }                                                                                  \
            double v = var_factor * (square / size);                                           \
            int fixed = clamp && v < eps;                                                      \
            v = clamp ? (fixed ? eps : v) : v + var_factor * eps;                              \
            const double factor = v < ZERO ? 0 : 1 / sqrt(v);                                  \
            const T all = (T)(constant * (T)factor * scale[row]);                              \
            _Pragma("omp simd")                                                                \
            for (int64_t i = 0; i < size; i++)                                                 \
                o[i] = (w[i] - mean) * all;                                                    \
            stats[row] = mean;                                                                 \
            stats[rows + row] = (T)factor;                                                     \
            stats[2 * rows + row] = fixed ? 0 : (T)(var_factor / size);                        \
        }                                                                                      \
    }                                                                                          \
                                                                                               \
    void recompute_##SUFFIX(const T *weight, const T *scale, T *out, const T *stats,           \
                        int64_t rows, int64_t size, double constant, int threads)              \
    {                                                                                          \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                      \
        for (int64_t row = 0; row < rows; row++) {                                             \
            const T *w = weight + row * size;                                                  \
            T *o = out + row * size;                                                           \
            const T mean = stats[row];                                                         \
            const T all = (T)(constant * stats[rows + row] * scale[row]);                      \
            _Pragma("omp simd")                                                                \
            for (int64_t i = 0; i < size; i++)                                                 \
                o[i] = (w[i] - mean) * all;                                                    \
        }                                                                                      \
    }                                                                                          \
                                                                                               \
    void backward_##SUFFIX(const T *grad, const T *weight, const T *scale, const T *stats,     \
                           T *grad_weight, T *grad_scale, int64_t rows, int64_t size,          \
                           double constant, int threads)                                       \
    {                                                                                          \
        _Pragma("omp parallel for schedule(static) num_threads(threads)")                      \
        for (int64_t row = 0; row < rows; row++) {                                             \
            const T *g = grad + row * size, *w = weight + row * size;                          \
            T *o = grad_weight + row * size;                                                   \
            const T mean = stats[row], factor = stats[rows + row];                             \
            double sum = 0, along = 0;                                                         \
            for (int64_t start = 0; start < size; start += BLOCK) {                            \
                int64_t stop = start + BLOCK < size ? start + BLOCK : size;                    \
                T part = 0, dot = 0;                                                           \
                PREFETCH(g)                                                                    \
                PREFETCH(w)                                                                    \
                _Pragma("omp simd reduction(+ : part, dot)")                                   \
                for (int64_t i = start; i < stop; i++) {                                       \
                    part += g[i];                                                              \
                    dot += g[i] * ((w[i] - mean) * factor);                                    \
                }                                                                              \
                sum += part;                                                                   \
                along += dot;                                                                  \
            }                                                                                  \
            const T shift = (T)(sum / size), slope = (T)(along * stats[2 * rows + row]);       \
            const T all = (T)(constant * scale[row] * factor);                                 \
            _Pragma("omp simd")                                                                \
            for (int64_t i = 0; i < size; i++)                                                 \
                o[i] = all * (g[i] - shift - (w[i] - mean) * factor * slope);                  \
            grad_scale[row] = (T)(constant * along);                                           \
        }                                                                                      \
    }

KERNELS(float, float32, 1e-30, 1e30, 6e-8, 1e-75)
KERNELS(double, float64, 1e-290, 1e290, 1.2e-16, 1e-305)

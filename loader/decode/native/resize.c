/* An antialiased resize in two passes, across and then down, with 8 bits between them.
 *
 * The arithmetic is torch's, whose uint8 kernels took it from Pillow: the weights of an output sample are normalised in
 * double precision and rounded to 16 bits, with as many fractional bits as the largest weight allows; sums are exact in
 * 32 bits, rounded to nearest and clamped. Integer sums do not depend on their order, so vector code gives the same
 * bytes.
 */
#include "resize.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP = 4, ROWS = 4, MOST_FRACTION_BITS = 22, ROOM = 64 };

/* Weights along one axis, of the outputs first .. first + n. */
typedef struct {
    int taps;      /* weights per output, a multiple of GROUP; unused ones are zero */
    int bits;      /* fractional bits */
    int *begin;    /* the first input of each output */
    int *count;    /* its number of inputs */
    int16_t *weight;
    void *memory;
} Axis;

static double bicubic_filter(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    return 0.0;
}

static double bilinear_filter(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Write the normalised weights of output i into weight[most] and its first input into begin. Returns their number. */
static int weigh(int i, int inputs, double scale, double support, int most, bool bicubic, int *begin, double *weight) {
    double centre = scale * (i + 0.5), inverse = scale >= 1.0 ? 1.0 / scale : 1.0, total = 0.0;
    int64_t from = (int64_t)(centre - support + 0.5), to = (int64_t)(centre + support + 0.5);
    if (from < 0) from = 0;
    if (to > inputs) to = inputs;
    int count = to - from > most ? most : to > from ? (int)(to - from) : 0;
    double offset = (double)from - centre;
    for (int j = 0; j < count; j++) {
        double x = (j + offset + 0.5) * inverse;
        total += weight[j] = bicubic ? bicubic_filter(x) : bilinear_filter(x);
    }
    if (total != 0.0)
        for (int j = 0; j < count; j++) weight[j] /= total;
    *begin = (int)from;
    return count;
}

/* Return the fractional bits of the weights: as many as let the largest one fit in 16 bits. */
static int fraction_bits(double largest) {
    int bits = 0;
    while (bits < MOST_FRACTION_BITS && (int)(0.5 + largest * (1 << (bits + 1))) < 1 << 15) bits++;
    return bits;
}

static int16_t rounded(double weight, int bits) {
    double scaled = weight * (1 << bits);
    return (int16_t)(scaled < 0 ? (int)(scaled - 0.5) : (int)(scaled + 0.5));
}

/* Compute the weights of outputs first .. first + n of an axis that goes from `inputs` to `outputs` samples. */
static bool make_axis(Axis *axis, int inputs, int outputs, int first, int n, bool bicubic) {
    double scale = (double)inputs / outputs, half = bicubic ? 2.0 : 1.0, support = scale >= 1.0 ? half * scale : half;
    int most = (int)ceil(support) * 2 + 1;
    axis->taps = (most + GROUP - 1) / GROUP * GROUP;
    size_t weights = (size_t)outputs * (size_t)most;
    double *exact = axis->memory = malloc(sizeof(double) * weights + sizeof(int) * 2 * (size_t)outputs +
                                          sizeof(int16_t) * (size_t)n * (size_t)axis->taps);
    if (!exact) return false;
    int *begin = (int *)(exact + weights), *count = begin + outputs;
    double largest = 0.0;
    for (int i = 0; i < outputs; i++) { /* all outputs: the largest weight of the axis sets the precision */
        double *weight = exact + (size_t)i * (size_t)most;
        count[i] = weigh(i, inputs, scale, support, most, bicubic, &begin[i], weight);
        for (int j = 0; j < count[i]; j++) largest = fmax(largest, weight[j]);
    }
    axis->bits = fraction_bits(largest);
    axis->begin = begin + first;
    axis->count = count + first;
    axis->weight = (int16_t *)(count + outputs);
    memset(axis->weight, 0, sizeof(int16_t) * (size_t)n * (size_t)axis->taps);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < axis->count[i]; j++)
            axis->weight[i * axis->taps + j] = rounded(exact[(size_t)(first + i) * (size_t)most + (size_t)j], axis->bits);
    return true;
}

/* ---- across ---- */

/* Order four pixels for multiply-and-add in pairs: r r g g b b - - of pixels 0 and 1, then of 2 and 3. */
static inline __m256i spread(const uint8_t *pixels) {
    const char _ = -1;
    const __m256i order = _mm256_setr_epi8(0, _, 3, _, 1, _, 4, _, 2, _, 5, _, _, _, _, _, /* pixels 0, 1 */
                                           6, _, 9, _, 7, _, 10, _, 8, _, 11, _, _, _, _, _); /* pixels 2, 3 */
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixels)), order);
}

/* Expand the weights of each group of four taps into one register, in the order of `spread`. */
static bool spread_weights(const Axis *axis, int n, __m256i **spread_out) {
    size_t groups = (size_t)n * (size_t)axis->taps / GROUP;
    __m256i *to = *spread_out = aligned_alloc(sizeof(__m256i), sizeof(__m256i) * groups);
    if (!to) return false;
    for (size_t group = 0; group < groups; group++) {
        int32_t low, high;
        memcpy(&low, axis->weight + GROUP * group, sizeof low);
        memcpy(&high, axis->weight + GROUP * group + 2, sizeof high);
        to[group] = _mm256_set_m128i(_mm_set1_epi32(high), _mm_set1_epi32(low));
    }
    return true;
}

/* Add the two halves of each row's sum, and scale the results of two rows. */
static inline __m256i joined(__m256i a, __m256i b, __m128i bits) {
    __m256i sums = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    return _mm256_sra_epi32(sums, bits);
}

/* Resize ROWS rows across: each weight is loaded once for all of them. Writes one byte behind each row's last pixel,
 * and reads 16 bytes from the last inputs on. */
static void pass_across(const uint8_t *const in[ROWS], const Axis *axis, const __m256i *weights, int n, bool flip,
                        uint8_t *const out[ROWS]) {
    const __m256i half = _mm256_set_m128i(_mm_setzero_si128(), _mm_set1_epi32(1 << (axis->bits - 1)));
    const __m128i bits = _mm_cvtsi32_si128(axis->bits);
    for (int x = 0; x < n; x++) {
        int i = flip ? n - 1 - x : x, groups = (axis->count[i] + GROUP - 1) / GROUP;
        const __m256i *weight = weights + (ptrdiff_t)i * (axis->taps / GROUP);
        ptrdiff_t at = 3 * (ptrdiff_t)axis->begin[i];
        __m256i sums[ROWS] = {half, half, half, half};
        for (int group = 0; group < groups; group++, at += 3 * GROUP)
            for (int row = 0; row < ROWS; row++)
                sums[row] = _mm256_add_epi32(sums[row], _mm256_madd_epi16(spread(in[row] + at), weight[group]));
        __m256i words = _mm256_packs_epi32(joined(sums[0], sums[1], bits), joined(sums[2], sums[3], bits));
        __m256i bytes = _mm256_packus_epi16(words, words); /* rows 0 and 2 in the low half, 1 and 3 in the high one */
        __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
        _mm_storeu_si32(out[0] + 3 * x, even);
        _mm_storeu_si32(out[1] + 3 * x, odd);
        _mm_storeu_si32(out[2] + 3 * x, _mm_srli_si128(even, 4));
        _mm_storeu_si32(out[3] + 3 * x, _mm_srli_si128(odd, 4));
    }
}

/* Copy the window of a row that keeps its width, mirrored or not. */
static void copy_across(const uint8_t *in, int n, bool flip, uint8_t *out) {
    if (!flip) {
        memcpy(out, in, 3 * (size_t)n);
        return;
    }
    for (int x = 0; x < n; x++) memcpy(out + 3 * x, in + 3 * (n - 1 - x), 3);
}

/* ---- down ---- */

static inline __m256i weighted(__m128i pairs, __m256i weights) {
    return _mm256_madd_epi16(_mm256_cvtepu8_epi16(pairs), weights);
}

/* Compute sixteen bytes of an output row; the input rows are multiplied in pairs. */
static inline __m128i sum_down(const uint8_t *in, ptrdiff_t stride, const int16_t *weight, int count, int bits) {
    __m256i low = _mm256_set1_epi32(1 << (bits - 1)), high = low;
    for (int tap = 0; tap < count; tap += 2, in += 2 * stride) {
        __m128i a = _mm_loadu_si128((const __m128i *)in);
        __m128i b = tap + 1 < count ? _mm_loadu_si128((const __m128i *)(in + stride)) : a;
        int32_t both;
        memcpy(&both, weight + tap, sizeof both);
        __m256i weights = _mm256_set1_epi32(both);
        low = _mm256_add_epi32(low, weighted(_mm_unpacklo_epi8(a, b), weights));
        high = _mm256_add_epi32(high, weighted(_mm_unpackhi_epi8(a, b), weights));
    }
    const __m128i shift = _mm_cvtsi32_si128(bits);
    __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
    words = _mm256_permute4x64_epi64(words, 0xD8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

static void pass_down(const uint8_t *rows, ptrdiff_t stride, const Axis *axis, int size, uint8_t *out) {
    int bytes = 3 * size;
    for (int y = 0; y < size; y++, out += bytes) {
        const uint8_t *in = rows + axis->begin[y] * stride;
        const int16_t *weight = axis->weight + y * axis->taps;
        int x = 0;
        for (; x + 16 <= bytes; x += 16)
            _mm_storeu_si128((__m128i *)(out + x), sum_down(in + x, stride, weight, axis->count[y], axis->bits));
        if (x == bytes) continue;
        uint8_t rest[16];
        _mm_storeu_si128((__m128i *)rest, sum_down(in + x, stride, weight, axis->count[y], axis->bits));
        memcpy(out + x, rest, (size_t)(bytes - x));
    }
}

/* ---- both ---- */

/* Return a row, or a copy of it where reading `spare` bytes behind it would leave the picture's memory. */
static const uint8_t *row_with_room(const Picture *picture, int y, size_t spare, uint8_t *copy) {
    const uint8_t *row = picture->pixels + y * picture->stride;
    size_t bytes = 3 * (size_t)picture->width;
    if ((size_t)(picture->end - row) >= bytes + spare) return row;
    memcpy(copy, row, bytes);
    return copy;
}

/* Resize rows first .. last of the picture across. Writes up to ROWS - 1 rows more, copies of the last one. */
static void make_rows(const Picture *picture, const Resize *to, const Axis *across, const __m256i *weights, int first,
                      int last, uint8_t *rows, ptrdiff_t stride, uint8_t *copies) {
    size_t spare = weights ? 3 * (size_t)across->taps + 16 : 0, room = 3 * (size_t)picture->width + spare;
    for (int y = first; y < last; y += ROWS, rows += ROWS * stride) {
        const uint8_t *in[ROWS];
        uint8_t *out[ROWS];
        for (int row = 0; row < ROWS; row++) {
            int there = y + row < last ? y + row : last - 1;
            in[row] = row_with_room(picture, there, spare, copies + (size_t)row * room);
            out[row] = rows + row * stride;
            if (!weights) copy_across(in[row] + 3 * to->left, to->size, to->flip, out[row]);
        }
        if (weights) pass_across(in, across, weights, to->size, to->flip, out);
    }
}

/* The parts of one resize: an axis unless its length stays, and memory for the rows between the passes. */
typedef struct {
    bool is_across, is_down;
    Axis across, down;
    __m256i *weights; /* of `across`, spread */
    uint8_t *rows, *copies;
    ptrdiff_t stride;
    int first, last; /* rows of the picture that are used */
} Plan;

static bool make_plan(Plan *plan, const Picture *picture, const Resize *to) {
    *plan = (Plan){.is_across = to->width != picture->width, .is_down = to->height != picture->height};
    plan->first = to->top;
    plan->last = to->top + to->size;
    if (plan->is_across && !(make_axis(&plan->across, picture->width, to->width, to->left, to->size, to->bicubic) &&
                             spread_weights(&plan->across, to->size, &plan->weights)))
        return false;
    if (plan->is_down) {
        if (!make_axis(&plan->down, picture->height, to->height, to->top, to->size, to->bicubic)) return false;
        plan->first = plan->down.begin[0];
        plan->last = plan->down.begin[to->size - 1] + plan->down.count[to->size - 1];
        for (int y = 0; y < to->size; y++) plan->down.begin[y] -= plan->first;
    }
    plan->stride = 3 * (ptrdiff_t)to->size + ROOM;
    size_t rows = (size_t)plan->stride * (size_t)(plan->last - plan->first + ROWS);
    size_t copies = ROWS * (3 * ((size_t)picture->width + (size_t)plan->across.taps) + 16);
    plan->rows = malloc(rows + copies);
    plan->copies = plan->rows + rows;
    return plan->rows != NULL;
}

bool resize_picture(const Picture *picture, const Resize *to, uint8_t *out) {
    Plan plan;
    bool made = make_plan(&plan, picture, to);
    if (made) {
        make_rows(picture, to, &plan.across, plan.weights, plan.first, plan.last, plan.rows, plan.stride, plan.copies);
        if (plan.is_down)
            pass_down(plan.rows, plan.stride, &plan.down, to->size, out);
        else
            for (int y = 0; y < to->size; y++) memcpy(out + 3 * y * to->size, plan.rows + y * plan.stride, 3 * (size_t)to->size);
    }
    free(plan.rows);
    free(plan.weights);
    free(plan.across.memory);
    free(plan.down.memory);
    return made;
}

/* Rows of samples to RGB: chroma interpolated like libjpeg's "fancy" upsampling, colours by JFIF's equations.
 *
 * The rounding is libjpeg's: it alternates between neighbouring outputs, so that it adds no bias. Rows need memory
 * beside them: one sample before and LANES after, because whole vectors are read.
 */
#include "jpeg.h"

#include <immintrin.h>
#include <string.h>

enum { LANES = 16 };

/* Factors of JFIF's conversion times 2^16. Whole multiples of the sample are subtracted, so that the rest fits in 16
 * bits; the callers add them again. */
enum { R_CR = 91881 - 65536, B_CB = 116130 - 131072, G_CB = -22554, G_CR = 65536 - 46802 };

/* Double the samples across: each output is 3/4 of the nearer input and 1/4 of the farther one. */
static inline void upsample_across(uint16_t *restrict in, int n, const int shift, int even, int odd,
                                   uint8_t *restrict out) {
    in[-1] = in[0]; /* at the image's edges the farther one is missing; elsewhere these two outputs are not used */
    in[n] = in[n - 1];
    for (int i = 0; i < n; i++) {
        unsigned nearer = 3u * in[i];
        out[2 * i] = (uint8_t)((nearer + in[i - 1] + (unsigned)even) >> shift);
        out[2 * i + 1] = (uint8_t)((nearer + in[i + 1] + (unsigned)odd) >> shift);
    }
}

void upsample_h2v1(const uint8_t *in, int n, uint16_t *scratch, uint8_t *out) {
    for (int i = 0; i < n; i++) scratch[i] = in[i];
    upsample_across(scratch, n, 2, 1, 2, out);
}

void upsample_h2v2(const uint8_t *near, const uint8_t *far, int n, uint16_t *scratch, uint8_t *out) {
    for (int i = 0; i < n; i++) scratch[i] = (uint16_t)(3 * near[i] + far[i]);
    upsample_across(scratch, n, 4, 8, 7, out);
}

void upsample_h1v2(const uint8_t *near, const uint8_t *far, int n, bool lower, uint8_t *out) {
    int rounding = lower ? 2 : 1;
    for (int i = 0; i < n; i++) out[i] = (uint8_t)((3 * near[i] + far[i] + rounding) >> 2);
}

/* Interleave sixteen pixels into 48 bytes: each output register takes some bytes of red, green and blue. */
static inline void store_pixels(uint8_t *rgb, __m128i r, __m128i g, __m128i b) {
    const int8_t _ = -1;
    __m128i red0 = _mm_setr_epi8(0, _, _, 1, _, _, 2, _, _, 3, _, _, 4, _, _, 5);
    __m128i red1 = _mm_setr_epi8(_, _, 6, _, _, 7, _, _, 8, _, _, 9, _, _, 10, _);
    __m128i red2 = _mm_setr_epi8(_, 11, _, _, 12, _, _, 13, _, _, 14, _, _, 15, _, _);
    __m128i green0 = _mm_setr_epi8(_, 0, _, _, 1, _, _, 2, _, _, 3, _, _, 4, _, _);
    __m128i green1 = _mm_setr_epi8(5, _, _, 6, _, _, 7, _, _, 8, _, _, 9, _, _, 10);
    __m128i green2 = _mm_setr_epi8(_, _, 11, _, _, 12, _, _, 13, _, _, 14, _, _, 15, _);
    __m128i blue0 = _mm_setr_epi8(_, _, 0, _, _, 1, _, _, 2, _, _, 3, _, _, 4, _);
    __m128i blue1 = _mm_setr_epi8(_, 5, _, _, 6, _, _, 7, _, _, 8, _, _, 9, _, _);
    __m128i blue2 = _mm_setr_epi8(10, _, _, 11, _, _, 12, _, _, 13, _, _, 14, _, _, 15);
#define MERGED(i) \
    _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(r, red##i), _mm_shuffle_epi8(g, green##i)), _mm_shuffle_epi8(b, blue##i))
    _mm_storeu_si128((__m128i *)rgb, MERGED(0));
    _mm_storeu_si128((__m128i *)(rgb + 16), MERGED(1));
    _mm_storeu_si128((__m128i *)(rgb + 32), MERGED(2));
#undef MERGED
}

/* Return (sample * factor + 2^15) >> 16. The multiplication keeps only the high half of a product: the sample is
 * doubled first, so that the extra bit can round the result. */
static inline __m256i scale(__m256i sample, int factor) {
    __m256i product = _mm256_mulhi_epi16(_mm256_add_epi16(sample, sample), _mm256_set1_epi16((short)factor));
    return _mm256_srai_epi16(_mm256_add_epi16(product, _mm256_set1_epi16(1)), 1);
}

static inline __m128i to_bytes(__m256i v) {
    __m256i packed = _mm256_packus_epi16(v, v);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

static inline __m256i load_samples(const uint8_t *at) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at));
}

/* Convert sixteen pixels: red = y + 1.402 cr, blue = y + 1.772 cb, green = y - 0.344 cb - 0.714 cr. */
static inline void convert_pixels(const uint8_t *y_at, const uint8_t *cb_at, const uint8_t *cr_at, uint8_t *rgb) {
    const __m256i centre = _mm256_set1_epi16(128), half = _mm256_set1_epi32(1 << 15);
    __m256i y = load_samples(y_at);
    __m256i cb = _mm256_sub_epi16(load_samples(cb_at), centre), cr = _mm256_sub_epi16(load_samples(cr_at), centre);
    __m256i red = _mm256_add_epi16(cr, scale(cr, R_CR));
    __m256i blue = _mm256_add_epi16(_mm256_add_epi16(cb, cb), scale(cb, B_CB));
    /* Green has two products: they are added and rounded in 32 bits, as in libjpeg. */
    __m256i factors = _mm256_set1_epi32((int)((uint32_t)G_CR << 16 | (G_CB & 0xFFFF)));
    __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(cb, cr), factors);
    __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(cb, cr), factors);
    low = _mm256_srai_epi32(_mm256_add_epi32(low, half), 16);
    high = _mm256_srai_epi32(_mm256_add_epi32(high, half), 16);
    __m256i green = _mm256_sub_epi16(_mm256_packs_epi32(low, high), cr);
    store_pixels(rgb, to_bytes(_mm256_add_epi16(y, red)), to_bytes(_mm256_add_epi16(y, green)),
                 to_bytes(_mm256_add_epi16(y, blue)));
}

/* The last pixels of a row are converted into `rest` and copied, so that nothing is written behind the row. */
void convert_row(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, uint8_t *rgb) {
    int x = 0;
    for (; x + LANES <= width; x += LANES) convert_pixels(y + x, cb + x, cr + x, rgb + 3 * x);
    if (x == width) return;
    uint8_t rest[3 * LANES];
    convert_pixels(y + x, cb + x, cr + x, rest);
    memcpy(rgb + 3 * x, rest, (size_t)(3 * (width - x)));
}

void repeat_gray(const uint8_t *y, int width, uint8_t *rgb) {
    for (int x = 0; x < width; x++) rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = y[x];
}

/* Coefficients to samples: the "islow" inverse transform of libjpeg, two blocks at a time.
 *
 * The algorithm is Loeffler, Ligtenberg and Moschytz's with 12 multiplications (ICASSP 1989), its constants have 13
 * fractional bits and the first pass keeps 2 more. Rounding, wrapping and saturation are those of libjpeg-turbo's SIMD
 * code, also for coefficients that no encoder writes: 16-bit products of coefficient and quantizer, 16-bit sums before
 * the multiplications, saturation after each pass, and a first pass without multiplications for blocks whose columns
 * are flat. The low half of every register holds one block, the high half the other.
 */
#include "jpeg.h"

#include <immintrin.h>
#include <string.h>

enum { CONST_BITS = 13, PASS1_BITS = 2, DESCALE_PASS1 = CONST_BITS - PASS1_BITS, DESCALE_PASS2 = CONST_BITS + PASS1_BITS + 3 };

/* Cosines times 2^13, named by their decimal values as in libjpeg. */
enum {
    F_0_298 = 2446, F_0_390 = 3196, F_0_541 = 4433, F_0_765 = 6270, F_0_899 = 7373, F_1_175 = 9633,
    F_1_501 = 12299, F_1_847 = 15137, F_1_961 = 16069, F_2_053 = 16819, F_2_562 = 20995, F_3_072 = 25172,
};

typedef __m256i Vector;

static inline Vector pair(int a, int b) { return _mm256_set1_epi32((int)((uint32_t)b << 16 | (a & 0xFFFF))); }

/* Sixteen 32-bit sums a * x + b * y, in two registers. */
typedef struct {
    Vector low, high;
} Wide;

static inline Wide rotate(Vector x, Vector y, Vector factors) {
    return (Wide){_mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), factors),
                  _mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), factors)};
}

static inline Wide add(Wide a, Wide b) {
    return (Wide){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

static inline Wide subtract(Wide a, Wide b) {
    return (Wide){_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}

/* Sign-extend to 32 bits and multiply by 2^13: unpacked above zeros the sample is times 2^16. */
static inline Wide scaled(Vector x) {
    Vector zero = _mm256_setzero_si256();
    return (Wide){_mm256_srai_epi32(_mm256_unpacklo_epi16(zero, x), 16 - CONST_BITS),
                  _mm256_srai_epi32(_mm256_unpackhi_epi16(zero, x), 16 - CONST_BITS)};
}

static inline __attribute__((always_inline)) Vector descale(Wide x, const int shift) {
    Vector half = _mm256_set1_epi32(1 << (shift - 1));
    return _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(x.low, half), shift),
                              _mm256_srai_epi32(_mm256_add_epi32(x.high, half), shift));
}

/* Eight one-dimensional transforms per block, across the registers, in place. */
static inline __attribute__((always_inline)) void transform(Vector v[8], const int shift) {
    Wide even0 = scaled(_mm256_add_epi16(v[0], v[4])), even1 = scaled(_mm256_sub_epi16(v[0], v[4]));
    /* Each rotation by a cosine pair is one multiply-and-add of interleaved 16-bit values. */
    Wide even2 = rotate(v[2], v[6], pair(F_0_541, F_0_541 - F_1_847));
    Wide even3 = rotate(v[2], v[6], pair(F_0_541 + F_0_765, F_0_541));
    Wide e0 = add(even0, even3), e3 = subtract(even0, even3);
    Wide e1 = add(even1, even2), e2 = subtract(even1, even2);

    /* The odd part, with its products combined as in libjpeg-turbo's SIMD code. */
    Vector z3 = _mm256_add_epi16(v[3], v[7]), z4 = _mm256_add_epi16(v[1], v[5]);
    Wide w3 = rotate(z3, z4, pair(F_1_175 - F_1_961, F_1_175));
    Wide w4 = rotate(z3, z4, pair(F_1_175, F_1_175 - F_0_390));
    Wide o0 = add(rotate(v[7], v[1], pair(F_0_298 - F_0_899, -F_0_899)), w3);
    Wide o3 = add(rotate(v[7], v[1], pair(-F_0_899, F_1_501 - F_0_899)), w4);
    Wide o1 = add(rotate(v[5], v[3], pair(F_2_053 - F_2_562, -F_2_562)), w4);
    Wide o2 = add(rotate(v[5], v[3], pair(-F_2_562, F_3_072 - F_2_562)), w3);

    v[0] = descale(add(e0, o3), shift);
    v[7] = descale(subtract(e0, o3), shift);
    v[1] = descale(add(e1, o2), shift);
    v[6] = descale(subtract(e1, o2), shift);
    v[2] = descale(add(e2, o1), shift);
    v[5] = descale(subtract(e2, o1), shift);
    v[3] = descale(add(e3, o0), shift);
    v[4] = descale(subtract(e3, o0), shift);
}

static inline __attribute__((always_inline)) void transpose(Vector v[8]) {
    Vector a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
    }
    for (int half = 0; half < 8; half += 4)
        for (int i = 0; i < 2; i++) {
            b[half + 2 * i] = _mm256_unpacklo_epi32(a[half + i], a[half + 2 + i]);
            b[half + 2 * i + 1] = _mm256_unpackhi_epi32(a[half + i], a[half + 2 + i]);
        }
    for (int i = 0; i < 4; i++) {
        v[2 * i] = _mm256_unpacklo_epi64(b[i], b[4 + i]);
        v[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[4 + i]);
    }
}

/* The first pass. Where rows 1..7 of a block are zero, libjpeg-turbo only scales row 0, without saturation. */
static inline __attribute__((always_inline)) void transform_columns(Vector v[8]) {
    Vector rest = v[1];
    for (int i = 2; i < 8; i++) rest = _mm256_or_si256(rest, v[i]);
    Vector flat = _mm256_slli_epi16(v[0], PASS1_BITS);
    int zeros = _mm256_movemask_epi8(_mm256_cmpeq_epi8(rest, _mm256_setzero_si256()));
    bool flat_low = (uint16_t)zeros == 0xFFFF, flat_high = (uint32_t)zeros >> 16 == 0xFFFF;
    /* Both are flat: no multiplication. One is flat: transform both, then put its columns back. */
    if (flat_low && flat_high) {
        for (int i = 0; i < 8; i++) v[i] = flat;
        return;
    }
    transform(v, DESCALE_PASS1);
    if (!flat_low && !flat_high) return;
    Vector which = _mm256_set_m128i(_mm_set1_epi8((char)-flat_high), _mm_set1_epi8((char)-flat_low));
    for (int i = 0; i < 8; i++) v[i] = _mm256_blendv_epi8(v[i], flat, which);
}

static void transform_two(int16_t coefficients[2][BLOCK_SIZE], const uint16_t *const quantizer[2], uint8_t *const out[2],
                          const ptrdiff_t stride[2]) {
    Vector v[8];
    for (int i = 0; i < 8; i++) {
        Vector c = _mm256_loadu2_m128i((const __m128i *)&coefficients[1][8 * i], (const __m128i *)&coefficients[0][8 * i]);
        Vector q = _mm256_loadu2_m128i((const __m128i *)&quantizer[1][8 * i], (const __m128i *)&quantizer[0][8 * i]);
        v[i] = _mm256_mullo_epi16(c, q);
    }
    for (int i = 0; i < 8; i++) _mm256_store_si256((Vector *)coefficients + i, _mm256_setzero_si256());
    transform_columns(v);
    transpose(v);
    transform(v, DESCALE_PASS2);
    transpose(v);
    /* Samples are centred at 0 until here; saturation to -128 .. 127 comes before the shift to 0 .. 255. */
    const Vector middle = _mm256_set1_epi8((char)0x80);
    for (int i = 0; i < 8; i += 2) {
        Vector rows = _mm256_add_epi8(_mm256_packs_epi16(v[i], v[i + 1]), middle);
        __m128i low = _mm256_castsi256_si128(rows), high = _mm256_extracti128_si256(rows, 1);
        _mm_storel_epi64((__m128i *)(out[0] + i * stride[0]), low);
        _mm_storel_epi64((__m128i *)(out[0] + (i + 1) * stride[0]), _mm_unpackhi_epi64(low, low));
        _mm_storel_epi64((__m128i *)(out[1] + i * stride[1]), high);
        _mm_storel_epi64((__m128i *)(out[1] + (i + 1) * stride[1]), _mm_unpackhi_epi64(high, high));
    }
}

/* Transform the pending blocks, one or two, and zero their coefficients for the next ones. */
void transform_pending(PendingBlocks *pending) {
    if (!pending->count) return;
    uint8_t unused[BLOCK_SIZE]; /* of the second block, if only one is pending */
    if (pending->count == 1) {
        pending->quantizer[1] = pending->quantizer[0];
        pending->out[1] = unused;
        pending->stride[1] = BLOCK;
    }
    transform_two(pending->coefficients, pending->quantizer, pending->out, pending->stride);
    pending->count = 0;
}

/* Write a block whose only coefficient is its mean: the result of both passes, without running them. */
void fill_block(int mean, const uint16_t *quantizer, uint8_t *out, ptrdiff_t stride) {
    int16_t scaled_mean = (int16_t)((uint32_t)(uint16_t)mean * quantizer[0] << PASS1_BITS);
    int rounding = 1 << (DESCALE_PASS2 - CONST_BITS - 1);
    int sample = (scaled_mean + rounding) >> (DESCALE_PASS2 - CONST_BITS);
    sample = sample < -128 ? -128 : sample > 127 ? 127 : sample;
    for (int row = 0; row < BLOCK; row++, out += stride) memset(out, sample + 128, BLOCK);
}

/* Decodes a box of a baseline JPEG to libjpeg-turbo's pixels, with little work outside the box.
 *
 * In the order in which an image passes through:
 *   markers.c   what the headers say, into a Frame
 *   huffman.c   entropy-coded bits to coefficients; blocks that are not needed are skipped
 *   idct.c      coefficients to samples
 *   colour.c    a row of samples to RGB
 *   region.c    which blocks a box needs, and the loop over them
 *   module.c    the Python functions
 *
 * It decodes the JPEGs of photographs: 8 bits, sequential Huffman coding, one interleaved scan, gray or YCbCr with
 * chroma at full or half resolution. For every other or irregular file it returns false, and the caller uses the
 * reference decoder. The arithmetic equals libjpeg-turbo's SIMD code bit for bit, for any coefficients.
 */
#ifndef TEMPERA_JPEG_H
#define TEMPERA_JPEG_H

#if !defined(__x86_64__) || !defined(__GNUC__)
#error "the JPEG box decoder is written for x86-64 with AVX2; elsewhere Tempera decodes from the first row on"
#endif

#pragma GCC target("avx2,bmi2")

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 8, BLOCK_SIZE = 64, MAX_COMPONENTS = 3, NUM_TABLES = 4 };

/* A Huffman table as a DHT segment holds it. */
typedef struct {
    uint8_t num_codes[17]; /* by length, 1..16 */
    uint8_t symbols[256];
} HuffmanSpec;

typedef struct {
    int h, v;                        /* sampling factors: blocks of a minimum coded unit (MCU) across and down */
    int quantizer, dc_table, ac_table;
    uint8_t id;
} Component;

/* The parsed headers. */
typedef struct {
    int width, height, num_components, restart_interval;
    int h, v; /* largest sampling factors */
    Component components[MAX_COMPONENTS];
    _Alignas(32) uint16_t quantizers[NUM_TABLES][BLOCK_SIZE]; /* in natural order */
    HuffmanSpec dc[NUM_TABLES], ac[NUM_TABLES];
    const uint8_t *scan, *end; /* entropy-coded bytes, and the end of the file */
} Frame;

/* A box of pixels. */
typedef struct {
    int top, left, height, width;
} Box;

/* Place of the k-th coefficient of the zigzag order. The 16 further items stop corrupt runs at the last place. */
extern const uint8_t natural_order[BLOCK_SIZE + 16];

bool read_frame(const uint8_t *data, size_t size, Frame *frame);

/* Position in the entropy-coded bits. */
typedef struct BitReader BitReader;

/* A Huffman table in the form for decoding. */
typedef struct DecodingTable DecodingTable;

const DecodingTable *decoding_table(const HuffmanSpec *spec, bool dc);

enum { CHUNK = 8192, LOOKAHEAD = 512, PADDING = 1024 };

struct BitReader {
    const uint8_t *at;    /* next byte to load */
    const uint8_t *limit; /* past it, more bytes are loaded before the next block */
    const uint8_t *end;   /* of the unstuffed bytes */
    uint64_t buffer;      /* unread bits, the next one on top */
    int bits;             /* number of valid ones */
    const uint8_t *source, *source_end;
    bool exhausted; /* a marker or the end of the file was reached */
    uint8_t bytes[CHUNK + PADDING];
};

void start_reading(BitReader *reader, const uint8_t *source, const uint8_t *source_end);
/* Returns whether reading has stayed within the data. */
bool within_bytes(const BitReader *reader);
bool next_interval(BitReader *reader, int number);
/* Read a block into zeroed coefficients, in natural order. Returns the zigzag index of the last one that is not zero
 * (0: only the mean), or -1 if the data is irregular. */
int read_block(BitReader *reader, const DecodingTable *dc, const DecodingTable *ac, int *mean, int16_t *coefficients);
/* Skip a block; only its mean is updated, on which the next block builds. Returns false if the data is irregular. */
bool skip_block(BitReader *reader, const DecodingTable *dc, const DecodingTable *ac, int *mean);

/* Blocks that wait for their inverse transform: it runs on two at a time. */
typedef struct {
    _Alignas(32) int16_t coefficients[2][BLOCK_SIZE];
    const uint16_t *quantizer[2];
    uint8_t *out[2];
    ptrdiff_t stride[2];
    int count;
} PendingBlocks;

void transform_pending(PendingBlocks *pending);
void fill_block(int mean, const uint16_t *quantizer, uint8_t *out, ptrdiff_t stride);

/* Chroma rows at half resolution to full resolution: `n` samples, with memory on both sides. */
void upsample_h2v1(const uint8_t *in, int n, uint16_t *scratch, uint8_t *out);
void upsample_h2v2(const uint8_t *near, const uint8_t *far, int n, uint16_t *scratch, uint8_t *out);
void upsample_h1v2(const uint8_t *near, const uint8_t *far, int n, bool lower, uint8_t *out);
void convert_row(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, uint8_t *rgb);
void repeat_gray(const uint8_t *y, int width, uint8_t *rgb);

/* Decode a box that lies in the frame into RGB rows without gaps. Returns false where a reference decoder is needed. */
bool decode_box(const Frame *frame, Box box, uint8_t *rgb);

#endif

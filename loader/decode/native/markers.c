/* The headers of a JPEG (ITU-T T.81, annex B): quantizers, Huffman tables, the frame and its one scan. */
#include "jpeg.h"

#include <string.h>

enum {
    SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, SOF15 = 0xCF, DAC = 0xCC, SOI = 0xD8, EOI = 0xD9, SOS = 0xDA, DQT = 0xDB,
    DRI = 0xDD, APP0 = 0xE0, APP14 = 0xEE, TEM = 0x01, RST0 = 0xD0, RST7 = 0xD7,
};

const uint8_t natural_order[BLOCK_SIZE + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
    6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
    39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

/* The segments read so far. */
typedef struct {
    bool frame, jfif, adobe;
    int adobe_transform;
    unsigned quantizers, dc, ac; /* bit i: table i is there */
} Seen;

static int u16(const uint8_t *at) { return at[0] << 8 | at[1]; }

static bool read_quantizers(const uint8_t *at, const uint8_t *end, Frame *frame, Seen *seen) {
    while (at < end) {
        int wide = *at >> 4, number = *at & 15;
        at++;
        if (wide > 1 || number >= NUM_TABLES || end - at < BLOCK_SIZE * (1 + wide)) return false;
        for (int k = 0; k < BLOCK_SIZE; k++, at += 1 + wide)
            frame->quantizers[number][natural_order[k]] = (uint16_t)(wide ? u16(at) : *at);
        seen->quantizers |= 1u << number;
    }
    return true;
}

static bool read_huffman_tables(const uint8_t *at, const uint8_t *end, Frame *frame, Seen *seen) {
    while (end - at >= 17) {
        int kind = *at >> 4, number = *at & 15, total = 0;
        if (kind > 1 || number >= NUM_TABLES) return false;
        HuffmanSpec *spec = kind ? &frame->ac[number] : &frame->dc[number];
        memset(spec, 0, sizeof *spec);
        for (int length = 1; length <= 16; length++) total += spec->num_codes[length] = at[length];
        at += 17;
        if (total > 256 || end - at < total) return false;
        memcpy(spec->symbols, at, (size_t)total);
        at += total;
        *(kind ? &seen->ac : &seen->dc) |= 1u << number;
    }
    return at == end;
}

static bool read_frame_header(const uint8_t *at, const uint8_t *end, Frame *frame, Seen *seen) {
    if (seen->frame || end - at < 6 || at[0] != 8) return false;
    frame->height = u16(at + 1);
    frame->width = u16(at + 3);
    frame->num_components = at[5];
    if (frame->num_components != 1 && frame->num_components != 3) return false;
    if (end - at != 6 + 3 * frame->num_components || !frame->width || !frame->height) return false;
    at += 6;
    for (int i = 0; i < frame->num_components; i++, at += 3) {
        Component *c = &frame->components[i];
        *c = (Component){.id = at[0], .h = at[1] >> 4, .v = at[1] & 15, .quantizer = at[2]};
        if (c->quantizer >= NUM_TABLES) return false;
    }
    seen->frame = true;
    return true;
}

/* Check the sampling factors. Gray has one block per MCU whatever its factors say; chroma must be 1 x 1,
 * luma 1 or 2 each way. */
static bool check_sampling(Frame *frame) {
    Component *c = frame->components;
    if (frame->num_components == 1) c[0].h = c[0].v = 1;
    for (int i = 1; i < frame->num_components; i++)
        if (c[i].h != 1 || c[i].v != 1) return false;
    frame->h = c[0].h;
    frame->v = c[0].v;
    return frame->h >= 1 && frame->h <= 2 && frame->v >= 1 && frame->v <= 2;
}

static bool is_ycbcr(const Frame *frame, const Seen *seen) {
    const Component *c = frame->components;
    if (seen->jfif) return true;
    if (seen->adobe) return seen->adobe_transform == 1;
    return !(c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B');
}

static bool read_scan_header(const uint8_t *at, const uint8_t *end, Frame *frame, const Seen *seen) {
    int n = frame->num_components;
    if (!seen->frame || end - at != 4 + 2 * n || at[0] != n) return false;
    at++;
    for (int i = 0; i < n; i++, at += 2) {
        Component *c = &frame->components[i];
        c->dc_table = at[1] >> 4;
        c->ac_table = at[1] & 15;
        if (at[0] != c->id || c->dc_table >= NUM_TABLES || c->ac_table >= NUM_TABLES) return false;
        if (!(seen->dc >> c->dc_table & 1) || !(seen->ac >> c->ac_table & 1)) return false;
        if (!(seen->quantizers >> c->quantizer & 1)) return false;
    }
    return at[0] == 0 && at[1] == BLOCK_SIZE - 1 && at[2] == 0 && check_sampling(frame) &&
           (n == 1 || is_ycbcr(frame, seen));
}

static void read_application_data(int marker, const uint8_t *at, const uint8_t *end, Seen *seen) {
    if (marker == APP0 && end - at >= 14 && !memcmp(at, "JFIF", 5)) seen->jfif = true;
    if (marker == APP14 && end - at >= 12 && !memcmp(at, "Adobe", 5)) {
        seen->adobe = true;
        seen->adobe_transform = at[11];
    }
}

/* Read everything up to the first scan. Returns false for files that this decoder does not handle. */
bool read_frame(const uint8_t *data, size_t size, Frame *frame) {
    const uint8_t *at = data, *end = data + size;
    Seen seen = {0};
    if (size < 4 || at[0] != 0xFF || at[1] != SOI) return false;
    frame->restart_interval = 0;
    for (at += 2; end - at >= 4;) {
        if (at[0] != 0xFF) return false;
        int marker = at[1];
        if (marker == 0xFF) { /* a fill byte */
            at++;
            continue;
        }
        int length = u16(at + 2);
        const uint8_t *segment = at + 4, *next = at + 2 + length;
        if (length < 2 || end - at < 2 + length) return false;
        if (marker == DQT ? !read_quantizers(segment, next, frame, &seen)
            : marker == DHT ? !read_huffman_tables(segment, next, frame, &seen)
            : marker == SOF0 || marker == SOF1 ? !read_frame_header(segment, next, frame, &seen)
            : (marker >= SOF0 && marker <= SOF15) || marker == TEM || (marker >= RST0 && marker <= RST7) ||
                marker == EOI || marker == SOI || marker == 0)
            return false;
        if (marker == DRI) {
            if (length != 4) return false;
            frame->restart_interval = u16(segment);
        }
        read_application_data(marker, segment, next, &seen);
        if (marker == SOS) {
            frame->scan = next;
            frame->end = end;
            return read_scan_header(segment, next, frame, &seen);
        }
        at = next;
    }
    return false;
}

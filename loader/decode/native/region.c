/* Which samples a box needs, the loop over the blocks of the scan, and the rows of the box.
 *
 * Blocks above the box, left and right of it are only entropy-decoded, since the codes after them depend on it; nothing
 * below the box is read. Chroma at half resolution is interpolated, so one more sample on each side is decoded.
 */
#include "jpeg.h"

#include <stdlib.h>
#include <string.h>

enum { ROOM = 64 }; /* bytes beside rows and planes, for vectors that reach over the end */

/* The samples of a component that a box needs. */
typedef struct {
    int left, right, top, bottom;             /* in samples */
    int block_left, block_right, block_top, block_bottom;
    int last_row;                             /* of the component; interpolation repeats it below */
    ptrdiff_t stride;
    uint8_t *samples;                         /* whole blocks */
} Plane;

/* Memory for one call: the planes, and rows between them and the box. */
typedef struct {
    void *memory;
    Plane planes[MAX_COMPONENTS];
    uint8_t *chroma[2];
    uint16_t *sums;
} Workspace;

static int least(int a, int b) { return a < b ? a : b; }
static int most(int a, int b) { return a > b ? a : b; }

/* The range of samples that pixels first .. last of one axis are computed from. */
static void needed(int first, int last, bool halved, int available, int *begin, int *end) {
    *begin = halved ? most(first / 2 - 1, 0) : first;
    *end = halved ? least(last / 2 + 2, available) : last + 1;
}

static Plane plane_for(const Frame *frame, const Component *component, Box box) {
    bool h_halved = component->h < frame->h, v_halved = component->v < frame->v;
    int width = h_halved ? (frame->width + 1) / 2 : frame->width, height = v_halved ? (frame->height + 1) / 2 : frame->height;
    Plane plane = {.last_row = height - 1};
    needed(box.left, box.left + box.width - 1, h_halved, width, &plane.left, &plane.right);
    needed(box.top, box.top + box.height - 1, v_halved, height, &plane.top, &plane.bottom);
    plane.block_left = plane.left / BLOCK;
    plane.block_right = (plane.right + BLOCK - 1) / BLOCK;
    plane.block_top = plane.top / BLOCK;
    plane.block_bottom = (plane.bottom + BLOCK - 1) / BLOCK;
    plane.stride = (ptrdiff_t)(plane.block_right - plane.block_left) * BLOCK;
    return plane;
}

static bool take_workspace(Workspace *space, const Frame *frame, Box box) {
    /* One allocation for all, so that a failed one leaves nothing to free. */
    size_t row = (size_t)box.width + 2 * ROOM, total = 2 * row + sizeof(uint16_t) * row, sizes[MAX_COMPONENTS];
    for (int i = 0; i < frame->num_components; i++) {
        Plane *plane = &space->planes[i];
        *plane = plane_for(frame, &frame->components[i], box);
        sizes[i] = (size_t)plane->stride * BLOCK * (size_t)(plane->block_bottom - plane->block_top) + ROOM;
        total += sizes[i];
    }
    uint8_t *at = space->memory = malloc(total);
    if (!at) return false;
    space->sums = (uint16_t *)at + ROOM / 2;
    at += sizeof(uint16_t) * row;
    for (int i = 0; i < 2; i++, at += row) space->chroma[i] = at;
    for (int i = 0; i < frame->num_components; at += sizes[i++]) space->planes[i].samples = at;
    return true;
}

/* Read the next block of the scan, or skip it if the box does not need it. */
static bool take_block(BitReader *reader, const Frame *frame, int i, Plane *plane, int x, int y, int *mean,
                       const DecodingTable *dc, const DecodingTable *ac, PendingBlocks *pending) {
    if (x < plane->block_left || x >= plane->block_right || y < plane->block_top || y >= plane->block_bottom)
        return skip_block(reader, dc, ac, mean);
    const uint16_t *quantizer = frame->quantizers[frame->components[i].quantizer];
    uint8_t *out = plane->samples + (y - plane->block_top) * BLOCK * plane->stride + (x - plane->block_left) * BLOCK;
    int16_t *coefficients = pending->coefficients[pending->count];
    int last = read_block(reader, dc, ac, mean, coefficients);
    if (last < 0) return false;
    /* Smooth areas have many blocks of one colour, which need no transform. */
    if (last == 0) {
        fill_block(coefficients[0], quantizer, out, plane->stride);
        coefficients[0] = 0;
        return true;
    }
    pending->quantizer[pending->count] = quantizer;
    pending->out[pending->count] = out;
    pending->stride[pending->count] = plane->stride;
    if (++pending->count == 2) transform_pending(pending);
    return true;
}

/* Read the scan from its beginning to the last row of blocks that a plane needs. */
static bool read_scan(const Frame *frame, Plane *planes) {
    const DecodingTable *dc[MAX_COMPONENTS], *ac[MAX_COMPONENTS];
    int across = (frame->width + BLOCK * frame->h - 1) / (BLOCK * frame->h), down = 0;
    for (int i = 0; i < frame->num_components; i++) {
        const Component *c = &frame->components[i];
        if (!(dc[i] = decoding_table(&frame->dc[c->dc_table], true))) return false;
        if (!(ac[i] = decoding_table(&frame->ac[c->ac_table], false))) return false;
        down = most(down, (planes[i].block_bottom + c->v - 1) / c->v);
    }
    BitReader reader;
    PendingBlocks pending = {.count = 0};
    int means[MAX_COMPONENTS] = {0}, to_restart = frame->restart_interval, marker = 0;
    start_reading(&reader, frame->scan, frame->end);
    for (int row = 0; row < down; row++)
        for (int column = 0; column < across; column++) {
            if (frame->restart_interval && to_restart-- == 0) {
                /* Behind a restart marker means are counted from 0 again. */
                if (!next_interval(&reader, marker)) return false;
                memset(means, 0, sizeof means);
                marker = (marker + 1) % 8;
                to_restart = frame->restart_interval - 1;
            }
            for (int i = 0; i < frame->num_components; i++) {
                const Component *c = &frame->components[i];
                for (int block = 0; block < c->h * c->v; block++)
                    if (!take_block(&reader, frame, i, &planes[i], column * c->h + block % c->h,
                                    row * c->v + block / c->h, &means[i], dc[i], ac[i], &pending))
                        return false;
            }
        }
    transform_pending(&pending);
    return within_bytes(&reader);
}

static const uint8_t *sample_row(const Plane *plane, int row) {
    row = least(most(row, 0), plane->last_row);
    return plane->samples + (row - plane->block_top * BLOCK) * plane->stride + plane->left - plane->block_left * BLOCK;
}

/* Return a row of chroma at full resolution, starting at the left of the box. */
static const uint8_t *chroma_row(const Frame *frame, const Plane *plane, Box box, int y, uint16_t *sums, uint8_t *out) {
    int n = plane->right - plane->left, nearest = frame->v == 2 ? y / 2 : y;
    const uint8_t *near = sample_row(plane, nearest);
    if (frame->h == 1 && frame->v == 1) return near;
    const uint8_t *far = sample_row(plane, y % 2 ? nearest + 1 : nearest - 1);
    if (frame->h == 1)
        upsample_h1v2(near, far, n, y % 2, out);
    else if (frame->v == 1)
        upsample_h2v1(near, n, sums, out);
    else
        upsample_h2v2(near, far, n, sums, out);
    return frame->h == 1 ? out : out + box.left - 2 * plane->left;
}

static void write_rows(const Frame *frame, Workspace *space, Box box, uint8_t *rgb) {
    const Plane *planes = space->planes;
    for (int y = box.top; y < box.top + box.height; y++, rgb += 3 * (size_t)box.width) {
        const uint8_t *luma = sample_row(&planes[0], y);
        if (frame->num_components == 1) {
            repeat_gray(luma, box.width, rgb);
            continue;
        }
        const uint8_t *cb = chroma_row(frame, &planes[1], box, y, space->sums, space->chroma[0]);
        const uint8_t *cr = chroma_row(frame, &planes[2], box, y, space->sums, space->chroma[1]);
        convert_row(luma, cb, cr, box.width, rgb);
    }
}

/* Decode a box that lies in the frame into RGB rows without gaps. Returns false where a reference decoder is needed. */
bool decode_box(const Frame *frame, Box box, uint8_t *rgb) {
    /* libjpeg repeats chroma that is at most two samples wide instead of interpolating it. */
    if (frame->h == 2 && frame->width <= 4) return false;
    Workspace space;
    if (!take_workspace(&space, frame, box)) return false;
    bool done = read_scan(frame, space.planes);
    if (done) write_rows(frame, &space, box, rgb);
    free(space.memory);
    return done;
}

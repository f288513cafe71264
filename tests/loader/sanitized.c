/* Feeds damaged JPEGs to the compiled decoder and resize: built with sanitizers, it ends at the first wrong access.
 *
 *   sanitized SEED TRIES FILE...    prints "runs N decoded M"
 */
#include "../../loader/decode/native/jpeg.h"
#include "../../loader/decode/native/resize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PIXELS = 1 << 20, HEADERS = 700, MOST_SIZE = 96 };

static uint64_t state;

static int below(int bound) { /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int)(state % (uint64_t)bound);
}

static void damage(uint8_t *data, int size) {
    static const int values[] = {0, 0x7F, 0xFF};
    for (int change = below(9); change > 0; change--) {
        int at = below(below(2) || size < HEADERS ? size : HEADERS);
        data[at] = (uint8_t)(below(2) ? data[at] ^ 1 << below(8) : below(2) ? below(256) : values[below(3)]);
    }
}

static Box some_box(const Frame *frame) {
    Box box = {.top = below(frame->height), .left = below(frame->width)};
    box.height = 1 + below(frame->height - box.top);
    box.width = 1 + below(frame->width - box.left);
    return box;
}

static void resize_some(const uint8_t *pixels, Box box) {
    Resize to = {.size = 1 + below(MOST_SIZE), .bicubic = below(2), .flip = below(2)};
    to.height = to.size + below(40);
    to.width = to.size + below(40);
    to.top = below(to.height - to.size + 1);
    to.left = below(to.width - to.size + 1);
    Picture picture = {pixels, pixels + 3 * box.height * box.width, 3 * box.width, box.height, box.width};
    uint8_t *out = malloc(3 * (size_t)to.size * (size_t)to.size);
    if (!resize_picture(&picture, &to, out)) abort();
    free(out);
}

/* Every block of memory has just its size, so that reading or writing beside it is seen. */
static bool decode_some(const uint8_t *data, size_t size) {
    Frame frame;
    if (!read_frame(data, size, &frame)) return false;
    Box box = some_box(&frame);
    if ((int64_t)box.height * box.width > MOST_PIXELS) return false;
    uint8_t *pixels = malloc(3 * (size_t)box.height * (size_t)box.width);
    bool decoded = decode_box(&frame, box, pixels);
    if (decoded) resize_some(pixels, box);
    free(pixels);
    return decoded;
}

static long try_file(const char *path, long tries) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) abort();
    int whole = (int)ftell(file);
    uint8_t *data = malloc((size_t)whole);
    rewind(file);
    if (fread(data, 1, (size_t)whole, file) != (size_t)whole) abort();
    fclose(file);
    long decoded = 0;
    for (long number = 0; number < tries; number++) {
        int size = below(4) ? whole : 1 + below(whole);
        uint8_t *copy = malloc((size_t)size);
        memcpy(copy, data, (size_t)size);
        damage(copy, size);
        decoded += decode_some(copy, (size_t)size);
        free(copy);
    }
    free(data);
    return decoded;
}

int main(int count, char **arguments) {
    if (count < 4) return 2;
    state = strtoull(arguments[1], NULL, 10) * 7919 + 88172645463325252ull;
    long tries = strtol(arguments[2], NULL, 10), decoded = 0;
    for (int i = 3; i < count; i++) decoded += try_file(arguments[i], tries);
    printf("runs %ld decoded %ld\n", tries * (count - 3), decoded);
    return 0;
}

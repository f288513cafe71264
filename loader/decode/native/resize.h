/* Resizes 8-bit RGB as torch's antialiased interpolation does, to the bit. */
#ifndef TEMPERA_RESIZE_H
#define TEMPERA_RESIZE_H

#pragma GCC target("avx2,bmi2")

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Pixels to read: rows of RGB, each without gaps. Nothing at or behind `end` is read. */
typedef struct {
    const uint8_t *pixels, *end;
    ptrdiff_t stride; /* bytes */
    int height, width;
} Picture;

/* The size of a picture after the resize, and the window of the result that is written, mirrored or not. */
typedef struct {
    int height, width, top, left, size;
    bool bicubic; /* else bilinear */
    bool flip;
} Resize;

/* Write uint8[size, size, 3]. Returns false if there is no memory for it. */
bool resize_picture(const Picture *picture, const Resize *to, uint8_t *out);

#endif

/* Renders one block of a panorama, in portable C. _warp_avx2.h gives the same bytes, faster.
 *
 * A block is 16 pixels in a row. Its place in the camera's picture is the position of its first pixel and a step per
 * pixel, in 1/4096 of a luma pixel: one byte a pixel, instead of the six of a map with a position for each pixel, and
 * less than 0.01 pixels off.
 *
 * All arithmetic is that of 16-bit words with AVX2's rounding and saturation, because both ways must give the same
 * bytes: a test compares them.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    BLOCK_PIXELS = 16,
    BLOCK_BYTES = 3 * BLOCK_PIXELS, /* BGR */
    POSITION_BITS = 12,             /* fractional bits of positions */
    WEIGHT_BITS = 6,                /* fractional bits of the weights of the interpolation, and of its results */
    WEIGHT_ONE = 1 << WEIGHT_BITS,
    FACTOR_BITS = 12,               /* fractional bits of the factors from planes to BGR */
    SUM_BITS = WEIGHT_BITS + FACTOR_BITS - 15, /* those of blue, green and red before they are rounded: see scaled() */
    GREY = 128 * WEIGHT_ONE, /* a U or V without colour */
    ALL_SEEN = 0xffff,
};

/* Where the pixels of a block are in the picture. The middle of luma sample (0, 0) is at (0, 0). */
typedef struct {
    int32_t x, y, step_x, step_y;
} Place;

/* Factors at the first pixel of the block and of the next block to its right, in 1/16384. */
typedef struct {
    int16_t first, next;
} Brightness;

/* Samples of Y, U or V. A sample stands for 1 << shift luma pixels along each axis. */
typedef struct {
    const uint8_t *samples;
    ptrdiff_t stride;
    int32_t width, height; /* at least 2, because the interpolation reads two samples along each axis */
    int shift_x, shift_y;
    int32_t offset_y; /* distance of the middle of row 0 below the middle of luma's row 0 */
} Plane;

typedef struct {
    Plane luma, u, v;      /* u and v differ in their samples only, so offsets and weights are computed once for both */
    int16_t black;         /* luma of black, with WEIGHT_BITS */
    int16_t factors[3][3]; /* of luma, U and V in blue, green and red */
} Picture;

/* Sums and products wrap around as those of vectors do. The overflow of signed numbers would be undefined. */
static inline int32_t added(int32_t one, int32_t other) { return (int32_t)((uint32_t)one + (uint32_t)other); }

static inline int32_t along(int32_t first, int32_t step, int count)
{
    return added(first, (int32_t)((uint32_t)step * (uint32_t)count));
}

static inline int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : (value > high ? high : value);
}

static inline int16_t saturate(int32_t value) { return (int16_t)clamp(value, INT16_MIN, INT16_MAX); }

/* As PMULHRSW: the upper half of the product, rounded. It drops 15 fractional bits. */
static inline int32_t scaled(int32_t value, int32_t factor) { return (value * factor + (1 << 14)) >> 15; }

/* The last position at which there is a sample to the right, or below. */
static inline int32_t last_position(int32_t samples) { return ((samples - 1) << POSITION_BITS) - 1; }

/* Interpolate between the four samples around a position, with WEIGHT_BITS. Positions beyond the edge read the edge. */
static inline int32_t sample(const Plane *plane, int32_t x, int32_t y)
{
    x = clamp(x >> plane->shift_x, 0, last_position(plane->width));
    y = clamp(added(y, -plane->offset_y) >> plane->shift_y, 0, last_position(plane->height));
    const uint8_t *upper = plane->samples + (y >> POSITION_BITS) * plane->stride + (x >> POSITION_BITS);
    const uint8_t *lower = upper + plane->stride;
    int32_t right = x >> (POSITION_BITS - WEIGHT_BITS) & (WEIGHT_ONE - 1), left = WEIGHT_ONE - right;
    int32_t down = y >> (POSITION_BITS - WEIGHT_BITS) & (WEIGHT_ONE - 1);
    /* At most 255 << WEIGHT_BITS, which fits a signed word. */
    int32_t above = upper[0] * left + upper[1] * right, below = lower[0] * left + lower[1] * right;
    return above + (((below - above) * down + WEIGHT_ONE / 2) >> WEIGHT_BITS);
}

/* The factor of one pixel of a block. */
static inline int32_t brightness_at(const Brightness *brightness, int pixel)
{
    int16_t rise = (int16_t)(brightness->next - brightness->first); /* over BLOCK_PIXELS, which is 1 << 4 */
    return (int16_t)(brightness->first + ((rise * pixel + BLOCK_PIXELS / 2) >> 4));
}

/* Compute the BGR of a block. Without `brightness`, all factors are 1. */
static inline void make_block(const Picture *picture, const Place *place, const Brightness *brightness, uint8_t *bgr)
{
    for (int pixel = 0; pixel < BLOCK_PIXELS; pixel++, bgr += 3) {
        int32_t x = along(place->x, place->step_x, pixel), y = along(place->y, place->step_y, pixel);
        int32_t luma = sample(&picture->luma, x, y) - picture->black;
        int32_t u = sample(&picture->u, x, y) - GREY, v = sample(&picture->v, x, y) - GREY;
        if (brightness) {
            /* Twice the value, because a factor of 1 is 1 << 14 and scaled() drops 15 bits. */
            int32_t factor = brightness_at(brightness, pixel);
            luma = scaled(2 * luma, factor);
            u = scaled(2 * u, factor);
            v = scaled(2 * v, factor);
        }
        for (int colour = 0; colour < 3; colour++) {
            /* Saturate after each addition, in this order, as PADDSW does. */
            const int16_t *factors = picture->factors[colour];
            int32_t sum = saturate(saturate(scaled(luma, factors[0]) + scaled(u, factors[1])) + scaled(v, factors[2]));
            bgr[colour] = (uint8_t)clamp(saturate(sum + (1 << (SUM_BITS - 1))) >> SUM_BITS, 0, 255);
        }
    }
}

/* Compute the BGR of blocks side by side. */
typedef void MakeBlocks(const Picture *picture, const Place *places, const Brightness *brightness, int count, uint8_t *bgr);

static void make_blocks(const Picture *picture, const Place *places, const Brightness *brightness, int count, uint8_t *bgr)
{
    for (int block = 0; block < count; block++)
        make_block(picture, places + block, brightness ? brightness + block : NULL, bgr + block * BLOCK_BYTES);
}

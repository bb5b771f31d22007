/* Blocks by AVX2, with the same bytes as make_block() in _warp.h. Include it after that file.
 *
 * The 16 pixels of a block nearly always lie within a few rows, and each half of them within 16 samples of a row. Such
 * a half is read by one load per row, and a shuffle moves the two samples beside each position into place. That is
 * several times faster than to gather them one by one, as is done for pictures that are rotated by more than 8 degrees,
 * shown at less than half their size, or cut by their edge.
 *
 * Vectors have a 16-bit word per pixel, the first half in the lower lane. A word holds the lowest 16 bits of a
 * position: the whole fraction, and as much of the integer part as distances within a window need.
 */

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,bmi2")

enum {
    HALF = BLOCK_PIXELS / 2,
    WINDOW = 16,                                     /* samples that one load reads */
    MAX_STEP_X = 2 << POSITION_BITS,                 /* largest one with which a half lies within a window */
    MAX_STEP_Y = (1 << POSITION_BITS) / (HALF - 1),  /* largest one with which it lies within three rows */
    ROWS_AHEAD = 12,                                 /* distance of the prefetched row below the rows that are read */
    FRACTION = (WEIGHT_ONE - 1) << (POSITION_BITS - WEIGHT_BITS),
};

#define INLINE static inline __attribute__((always_inline))

/* The positions for which all windows lie within the planes. */
typedef struct {
    int64_t right, top, bottom;
} Limits;

/* Offsets of the first samples of the two halves' windows. */
typedef struct {
    ptrdiff_t first, second;
} Corners;

/* Which samples of a window each pixel reads, and with which weights. */
typedef struct {
    __m256i shuffle;   /* puts the samples to the left and right of each position side by side */
    __m256i across;    /* weights of these two */
    __m256i down;      /* weight of the lower row, for PMULHRSW */
    __m256i upper_two; /* all ones where a pixel lies between the first and the second of three rows */
} Taps;

static inline int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

/* Narrow the limits to those of a plane: the second half's window and the third row of both windows must lie in it. */
INLINE void narrow(Limits *limits, const Plane *plane)
{
    int64_t columns = plane->width - WINDOW + 1, rows = plane->height - 2;
    limits->right = least(limits->right, columns * (1 << (POSITION_BITS + plane->shift_x)) - 1);
    limits->bottom = least(limits->bottom, rows * (1 << (POSITION_BITS + plane->shift_y)) - 1 + plane->offset_y);
    if (limits->top < plane->offset_y)
        limits->top = plane->offset_y;
}

INLINE bool fits(const Limits *limits, const Place *place)
{
    if (place->step_x < 0 || place->step_x > MAX_STEP_X || place->step_y < -MAX_STEP_Y || place->step_y > MAX_STEP_Y)
        return false;
    /* 64 bits, because places from Python may be any numbers. */
    int64_t last_y = place->y + (int64_t)place->step_y * (BLOCK_PIXELS - 1);
    int64_t upper = least(place->y, last_y), lower = place->y + last_y - upper;
    return place->x >= 0 && place->x + (int64_t)place->step_x * HALF <= limits->right && upper >= limits->top &&
           lower <= limits->bottom;
}

/* Return where the windows of a place that fits begin. */
INLINE Corners find_corners(const Plane *plane, const Place *place, int shift_x, int shift_y)
{
    int32_t x = place->x, y = place->y - plane->offset_y;
    y += place->step_y < 0 ? place->step_y * (HALF - 1) : 0; /* the highest pixel of a half is its first or last one */
    int32_t next_x = x + place->step_x * HALF, next_y = y + place->step_y * HALF;
    int bits_x = POSITION_BITS + shift_x, bits_y = POSITION_BITS + shift_y;
    return (Corners){(y >> bits_y) * plane->stride + (x >> bits_x), (next_y >> bits_y) * plane->stride + (next_x >> bits_x)};
}

INLINE __m256i halves(__m128i first, __m128i second)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

/* Copy the word of one pixel of each half to all pixels of that half. */
INLINE __m256i everywhere(__m256i words, int pixel)
{
    short bytes = (short)(2 * pixel + 256 * (2 * pixel + 1));
    return _mm256_shuffle_epi8(words, _mm256_set1_epi16(bytes));
}

/* Bytes for PMADDUBSW, 64 - w and w: 64 + 255 w is (64 - w) + 256 w. */
INLINE __m256i pair_weights(__m256i weights)
{
    return _mm256_add_epi16(_mm256_set1_epi16(WEIGHT_ONE), _mm256_mullo_epi16(weights, _mm256_set1_epi16(255)));
}

/* Weights for PMULHRSW, which drops 15 bits. */
INLINE __m256i row_weights(__m256i weights) { return _mm256_slli_epi16(weights, 15 - WEIGHT_BITS); }

INLINE __m256i weights_of(__m256i positions, int shift)
{
    return _mm256_and_si256(_mm256_srli_epi16(positions, POSITION_BITS - WEIGHT_BITS + shift),
                            _mm256_set1_epi16(WEIGHT_ONE - 1));
}

INLINE Taps find_taps(__m256i x, __m256i y, bool rises, int shift_x, int shift_y)
{
    __m256i column = _mm256_srli_epi16(x, POSITION_BITS + shift_x), row = _mm256_srli_epi16(y, POSITION_BITS + shift_y);
    /* A word holds columns modulo 16 >> shift_x. A half spans fewer, so differences from its first column are exact. */
    __m256i from_left = _mm256_and_si256(_mm256_sub_epi16(column, everywhere(column, 0)), _mm256_set1_epi16(15 >> shift_x));
    __m256i both = _mm256_or_si256(from_left, _mm256_slli_epi16(from_left, 8));
    /* In the shuffle, a pixel's low byte takes the sample to the left, and its high byte the one to the right. Pixels
     * lie between the first and the second row, as the highest one of a half does, or between the second and third. */
    return (Taps){
        .shuffle = _mm256_add_epi16(both, _mm256_set1_epi16(0x0100)),
        .across = pair_weights(weights_of(x, shift_x)),
        .down = row_weights(weights_of(y, shift_y)),
        .upper_two = _mm256_cmpeq_epi16(row, rises ? everywhere(row, HALF - 1) : everywhere(row, 0)),
    };
}

INLINE __m256i between(__m256i above, __m256i below, __m256i down)
{
    return _mm256_add_epi16(above, _mm256_mulhrs_epi16(_mm256_sub_epi16(below, above), down));
}

/* One row of both windows, interpolated across. */
INLINE __m256i read_row(const uint8_t *samples, const Corners *corners, const Taps *taps)
{
    __m128i first = _mm_loadu_si128((const __m128i *)(samples + corners->first));
    __m128i second = _mm_loadu_si128((const __m128i *)(samples + corners->second));
    return _mm256_maddubs_epi16(_mm256_shuffle_epi8(halves(first, second), taps->shuffle), taps->across);
}

INLINE __m256i read_windows(const Plane *plane, const Corners *corners, const Taps *taps)
{
    __m256i first = read_row(plane->samples, corners, taps);
    __m256i second = read_row(plane->samples + plane->stride, corners, taps);
    __m256i third = read_row(plane->samples + 2 * plane->stride, corners, taps);
    /* As an integer, because a pointer must not be computed beyond the plane. A prefetch of an unmapped address does
     * nothing. */
    _mm_prefetch((const char *)((uintptr_t)plane->samples + (uintptr_t)(corners->first + ROWS_AHEAD * plane->stride)),
                 _MM_HINT_T0);
    return between(_mm256_blendv_epi8(second, first, taps->upper_two), _mm256_blendv_epi8(third, second, taps->upper_two),
                   taps->down);
}

/* The samples of a block, interpolated, with WEIGHT_BITS. */
typedef struct {
    __m256i luma, u, v;
} Read;

INLINE Read read_block(const Picture *picture, const Place *place, int shift_x, int shift_y)
{
    const __m256i count = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m256i way_x = _mm256_mullo_epi16(count, _mm256_set1_epi16((short)place->step_x));
    __m256i way_y = _mm256_mullo_epi16(count, _mm256_set1_epi16((short)place->step_y));
    __m256i x = _mm256_add_epi16(way_x, _mm256_set1_epi16((short)place->x));
    __m256i y = _mm256_add_epi16(way_y, _mm256_set1_epi16((short)place->y));
    bool rises = place->step_y < 0;
    Taps taps = find_taps(x, y, rises, 0, 0);
    Corners corners = find_corners(&picture->luma, place, 0, 0);
    Read read = {.luma = read_windows(&picture->luma, &corners, &taps)};
    taps = find_taps(x, _mm256_sub_epi16(y, _mm256_set1_epi16((short)picture->u.offset_y)), rises, shift_x, shift_y);
    corners = find_corners(&picture->u, place, shift_x, shift_y);
    read.u = read_windows(&picture->u, &corners, &taps);
    read.v = read_windows(&picture->v, &corners, &taps);
    return read;
}

/* ---- blocks that do not fit into windows ---------------------------------------------------------------------- */

/* Positions of the 8 pixels from `first` on, in samples of the plane, clamped to it. */
INLINE __m256i clamped(int32_t start, int32_t step, int first, int shift, int32_t samples)
{
    const __m256i count = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i way = _mm256_mullo_epi32(_mm256_add_epi32(count, _mm256_set1_epi32(first)), _mm256_set1_epi32(step));
    __m256i at = _mm256_sra_epi32(_mm256_add_epi32(_mm256_set1_epi32(start), way), _mm_cvtsi32_si128(shift));
    return _mm256_min_epi32(_mm256_max_epi32(at, _mm256_setzero_si256()), _mm256_set1_epi32(last_position(samples)));
}

/* Pack two vectors of 32-bit numbers below 2^16, one per pixel, into words. */
INLINE __m256i to_words(__m256i first, __m256i second)
{
    /* PACKUSDW packs within lanes: 0xd8 exchanges the two quarters in the middle. */
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
}

INLINE __m256i fractions(__m256i first, __m256i second)
{
    const __m256i mask = _mm256_set1_epi32(WEIGHT_ONE - 1);
    return to_words(_mm256_and_si256(_mm256_srli_epi32(first, POSITION_BITS - WEIGHT_BITS), mask),
                    _mm256_and_si256(_mm256_srli_epi32(second, POSITION_BITS - WEIGHT_BITS), mask));
}

static inline short pair_at(const uint8_t *samples)
{
    short pair;
    memcpy(&pair, samples, sizeof pair);
    return pair;
}

INLINE __m128i read_pairs(const uint8_t *samples, const int32_t *offsets)
{
    return _mm_setr_epi16(pair_at(samples + offsets[0]), pair_at(samples + offsets[1]), pair_at(samples + offsets[2]),
                          pair_at(samples + offsets[3]), pair_at(samples + offsets[4]), pair_at(samples + offsets[5]),
                          pair_at(samples + offsets[6]), pair_at(samples + offsets[7]));
}

/* The offset of each pixel's upper left sample, and its weights. */
typedef struct {
    int32_t offsets[BLOCK_PIXELS];
    __m256i across, down;
} Apart;

INLINE void find_apart(const Plane *plane, const Place *place, Apart *apart)
{
    __m256i x[2], y[2];
    int32_t top = added(place->y, -plane->offset_y);
    for (int half = 0; half < 2; half++) {
        x[half] = clamped(place->x, place->step_x, half * HALF, plane->shift_x, plane->width);
        y[half] = clamped(top, place->step_y, half * HALF, plane->shift_y, plane->height);
        __m256i row = _mm256_mullo_epi32(_mm256_srli_epi32(y[half], POSITION_BITS), _mm256_set1_epi32((int)plane->stride));
        __m256i offset = _mm256_add_epi32(row, _mm256_srli_epi32(x[half], POSITION_BITS));
        _mm256_storeu_si256((__m256i *)(apart->offsets + half * HALF), offset);
    }
    apart->across = pair_weights(fractions(x[0], x[1]));
    apart->down = row_weights(fractions(y[0], y[1]));
}

INLINE __m256i read_apart(const Plane *plane, const Apart *apart)
{
    const uint8_t *upper = plane->samples, *lower = upper + plane->stride;
    const int32_t *first = apart->offsets, *second = apart->offsets + HALF;
    __m256i above = _mm256_maddubs_epi16(halves(read_pairs(upper, first), read_pairs(upper, second)), apart->across);
    __m256i below = _mm256_maddubs_epi16(halves(read_pairs(lower, first), read_pairs(lower, second)), apart->across);
    return between(above, below, apart->down);
}

/* Not inlined, because it is rarely needed and would take registers from the code around it. */
__attribute__((noinline)) static void read_block_apart(const Picture *picture, const Place *place, Read *read)
{
    Apart apart;
    find_apart(&picture->luma, place, &apart);
    read->luma = read_apart(&picture->luma, &apart);
    find_apart(&picture->u, place, &apart);
    read->u = read_apart(&picture->u, &apart);
    read->v = read_apart(&picture->v, &apart);
}

/* ---- colours -------------------------------------------------------------------------------------------------- */

INLINE __m256i brightness_words(const Brightness *brightness)
{
    /* PMULHRSW by 2048 n divides by 16, rounded. */
    const __m256i sixteenths = _mm256_mullo_epi16(
        _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm256_set1_epi16(2048));
    __m256i rise = _mm256_set1_epi16((short)(brightness->next - brightness->first));
    return _mm256_add_epi16(_mm256_set1_epi16(brightness->first), _mm256_mulhrs_epi16(rise, sixteenths));
}

/* One colour of all pixels, 8 bits each. */
INLINE __m128i to_colour(const int16_t factors[3], __m256i luma, __m256i u, __m256i v)
{
    __m256i sum = _mm256_adds_epi16(_mm256_mulhrs_epi16(luma, _mm256_set1_epi16(factors[0])),
                                    _mm256_mulhrs_epi16(u, _mm256_set1_epi16(factors[1])));
    sum = _mm256_adds_epi16(sum, _mm256_mulhrs_epi16(v, _mm256_set1_epi16(factors[2])));
    sum = _mm256_srai_epi16(_mm256_adds_epi16(sum, _mm256_set1_epi16(1 << (SUM_BITS - 1))), SUM_BITS);
    return _mm_packus_epi16(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
}

/* Interleave three colours of 16 pixels. A -1 in a shuffle clears the byte, for another colour to fill. */
INLINE void store_bgr(uint8_t *bgr, __m128i blue, __m128i green, __m128i red)
{
    const __m128i blue_of[3] = {
        _mm_setr_epi8(0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1, 5),
        _mm_setr_epi8(-1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10, -1),
        _mm_setr_epi8(-1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1, -1)};
    const __m128i green_of[3] = {
        _mm_setr_epi8(-1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1, -1),
        _mm_setr_epi8(5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1, 10),
        _mm_setr_epi8(-1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15, -1)};
    const __m128i red_of[3] = {
        _mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1),
        _mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, 8, -1, -1, 9, -1, -1),
        _mm_setr_epi8(10, -1, -1, 11, -1, -1, 12, -1, -1, 13, -1, -1, 14, -1, -1, 15)};
    for (int part = 0; part < 3; part++) {
        __m128i bytes = _mm_or_si128(_mm_shuffle_epi8(blue, blue_of[part]), _mm_shuffle_epi8(green, green_of[part]));
        bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(red, red_of[part]));
        _mm_storeu_si128((__m128i *)(bgr + 16 * part), bytes);
    }
}

INLINE void colour_block(const Picture *picture, const Read *read, const Brightness *brightness, uint8_t *bgr)
{
    __m256i luma = _mm256_sub_epi16(read->luma, _mm256_set1_epi16(picture->black));
    __m256i u = _mm256_sub_epi16(read->u, _mm256_set1_epi16(GREY));
    __m256i v = _mm256_sub_epi16(read->v, _mm256_set1_epi16(GREY));
    if (brightness) {
        __m256i factors = brightness_words(brightness);
        luma = _mm256_mulhrs_epi16(_mm256_slli_epi16(luma, 1), factors);
        u = _mm256_mulhrs_epi16(_mm256_slli_epi16(u, 1), factors);
        v = _mm256_mulhrs_epi16(_mm256_slli_epi16(v, 1), factors);
    }
    store_bgr(bgr, to_colour(picture->factors[0], luma, u, v), to_colour(picture->factors[1], luma, u, v),
              to_colour(picture->factors[2], luma, u, v));
}

/* Compute blocks side by side. The shifts are those of the picture's chroma. */
INLINE void make_run(const Picture *picture, int shift_x, int shift_y, const Place *places, const Brightness *brightness,
                     int count, uint8_t *bgr)
{
    const Picture own = *picture; /* a copy: no store to `bgr` can change it, so its fields stay in registers */
    Limits limits = {INT64_MAX, 0, INT64_MAX};
    narrow(&limits, &own.luma);
    narrow(&limits, &own.u);
    for (int block = 0; block < count; block++) {
        Read read;
        if (__builtin_expect(fits(&limits, places + block), 1)) {
            read = read_block(&own, places + block, shift_x, shift_y);
        } else {
            Read apart;
            read_block_apart(picture, places + block, &apart);
            read = apart;
        }
        colour_block(&own, &read, brightness ? brightness + block : NULL, bgr + block * BLOCK_BYTES);
    }
}

static void make_blocks_avx2(const Picture *picture, const Place *places, const Brightness *brightness, int count,
                             uint8_t *bgr)
{
    /* 4:2:0, the usual format, gets code of its own with constant shifts. */
    int shift_x = picture->u.shift_x, shift_y = picture->u.shift_y;
    if (shift_x == 1 && shift_y == 1)
        make_run(picture, 1, 1, places, brightness, count, bgr);
    else
        make_run(picture, shift_x, shift_y, places, brightness, count, bgr);
}

#pragma GCC pop_options

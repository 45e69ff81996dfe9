/* A chunk of uint16 compressed by LZ4 after a bitshuffle, in Blosc's format and to the byte what c-blosc 1.21 makes.
 *
 *     | header, 16 bytes | where each block begins | block: low bytes' length, LZ4; high bytes' length, LZ4 | block | …
 *
 * c-blosc as it is distributed shuffles in three passes by 128-bit instructions, of a chunk that is contiguous. Here
 * it is one pass by 256-bit ones, straight from the rows of a larger array: no copy is made of the chunk before.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int compress_fast(const char *in, char *out, int in_bytes, int out_bytes, int acceleration); /* LZ4's */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

enum { AT_ONCE = 32, TILE = 16 * AT_ONCE }; /* voxels of one load; those whose bits fill a cache line of each plane */
enum { AHEAD = 8 };                         /* rows: of 1 to 32, the quickest from memory, by half */

struct walk { /* along the rows of the chunk, plane after plane; what is not there is 0 */
    const uint16_t *plane_begin, *row_begin;
    ptrdiff_t plane, row, nz, ny, nx; /* of what is there */
    ptrdiff_t cy, cx;                 /* of the chunk */
    ptrdiff_t z, y, x;
    uint16_t end[AT_ONCE];
};

static const uint16_t zeros[AT_ONCE];

static inline const uint16_t *next_voxels(struct walk *walk)
{
    const uint16_t *found = walk->row_begin + walk->x;
    ptrdiff_t there = walk->z < walk->nz && walk->y < walk->ny ? walk->nx - walk->x : 0;
    if (there >= AT_ONCE)
        __builtin_prefetch(found + AHEAD * walk->row); /* rows lie apart, so that the processor foresees none */
    else if (there > 0) {
        memset(walk->end, 0, sizeof walk->end);
        found = memcpy(walk->end, found, (size_t)there * sizeof *found);
    } else
        found = zeros;
    if ((walk->x += AT_ONCE) == walk->cx) {
        walk->x = 0;
        walk->row_begin += walk->row;
        if (++walk->y == walk->cy) {
            walk->y = 0;
            walk->z++;
            walk->row_begin = walk->plane_begin += walk->plane;
        }
    }
    return found;
}

/* Bit b of voxel i becomes bit i % 8 of byte i / 8 of the b-th sixteenth of out. */
__attribute__((target("avx2"))) static void bitshuffle(struct walk *walk, uint8_t *out, ptrdiff_t voxels)
{
    uint32_t tile[16][TILE / AT_ONCE]; /* sixteen places of out, far apart, would drive each other from the cache */
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    for (ptrdiff_t done = 0; done < voxels; done += TILE) {
        for (int i = 0; i < TILE / AT_ONCE; i++) {
            const uint16_t *in = next_voxels(walk);
            __m256i a = _mm256_loadu_si256((const __m256i *)in), b = _mm256_loadu_si256((const __m256i *)(in + 16));
            __m256i low = _mm256_packus_epi16(_mm256_and_si256(a, low_byte), _mm256_and_si256(b, low_byte));
            __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
            low = _mm256_permute4x64_epi64(low, 0xd8); /* packing goes by halves */
            high = _mm256_permute4x64_epi64(high, 0xd8);
            for (int bit = 7; bit >= 0; bit--) {
                tile[bit][i] = (uint32_t)_mm256_movemask_epi8(low);
                tile[8 + bit][i] = (uint32_t)_mm256_movemask_epi8(high);
                low = _mm256_add_epi8(low, low);
                high = _mm256_add_epi8(high, high);
            }
        }
        for (int bit = 0; bit < 16; bit++)
            memcpy(out + (bit * voxels + done) / 8, tile[bit], TILE / 8);
    }
}

static void put(uint8_t *at, ptrdiff_t number)
{
    int32_t value = (int32_t)number;
    memcpy(at, &value, 4);
}

/* The bytes written to out, or 0 where it cannot be done here; out must hold the chunk, 16 bytes, and 12 a block.
 *
 * in: nz planes of ny rows of nx voxels, all that is there of a chunk of cz, cy, cx; plane and row: voxels from one to
 * the next. block: bytes compressed at once, which is what scratch must hold. */
ptrdiff_t blosc_lz4_uint16(const uint16_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny, ptrdiff_t nx,
                           ptrdiff_t cz, ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t block, int acceleration,
                           compress_fast *compress, uint8_t *scratch, uint8_t *out)
{
    ptrdiff_t bytes = cz * cy * cx * 2, blocks = bytes / block, half = block / 2;
    struct walk walk = {in, in, plane, row, nz, ny, nx, cy, cx, 0, 0, 0, {0}};
    uint8_t *at = out + 16 + 4 * blocks;
    if (!__builtin_cpu_supports("avx2") || cx % AT_ONCE || bytes % block || half % TILE)
        return 0;
    for (ptrdiff_t i = 0; i < blocks; i++) {
        put(out + 16 + 4 * i, at - out);
        bitshuffle(&walk, scratch, half);
        for (const uint8_t *part = scratch; part < scratch + block; part += half) {
            int found = compress((const char *)part, (char *)at + 4, (int)half, (int)half, acceleration);
            if (found <= 0 || found == half) { /* as they are */
                memcpy(at + 4, part, half);
                found = (int)half;
            }
            put(at, found);
            at += 4 + found;
        }
    }
    out[0] = 2;            /* Blosc's format */
    out[1] = 1;            /* LZ4's */
    out[2] = 1 << 5 | 0x4; /* LZ4, bitshuffle */
    out[3] = 2;            /* bytes of a voxel */
    put(out + 4, bytes);
    put(out + 8, block);
    put(out + 12, at - out);
    return at - out;
}

#else

ptrdiff_t blosc_lz4_uint16(const uint16_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny, ptrdiff_t nx,
                           ptrdiff_t cz, ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t block, int acceleration,
                           compress_fast *compress, uint8_t *scratch, uint8_t *out)
{
    return 0;
}

#endif

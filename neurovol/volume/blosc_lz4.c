/* Chunks of uint16 in Blosc's format, bitshuffled and compressed by LZ4, to the byte what c-blosc 1.21 makes of them.
 *
 *     | header, 16 bytes | where each block begins | block: low bytes' length, LZ4; high bytes' length, LZ4 | block | …
 *
 * c-blosc as it is distributed shuffles in three passes by 128-bit instructions, of a chunk that is contiguous. Here it
 * is one pass by 256-bit ones, of slices as they come: whole rows of them, which is how memory is quickest, go to all
 * chunks that they cross. What is shuffled goes past the caches, for LZ4 reads it when a layer of chunks is whole.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int compress_fast(const char *in, char *out, int in_bytes, int out_bytes, int acceleration); /* LZ4's */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

enum { AT_ONCE = 32, TILE = 16 * AT_ONCE }; /* voxels of one load; those whose bits fill a cache line of each plane */

static const uint16_t zeros[AT_ONCE];

/* Bit b of voxel i becomes bit i % 8 of byte i / 8 of plane b; load i of AT_ONCE voxels. */
__attribute__((target("avx2"))) static inline void shuffle(const uint16_t *in, uint32_t tile[16][TILE / AT_ONCE], int i)
{
    const __m256i low_byte = _mm256_set1_epi16(0xff);
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

/* Slices z to z + nz of a layer of chunks of cy rows of cx voxels, as Blosc shuffles each block of so many voxels.
 *
 * in: `there` planes of ny rows of nx voxels; plane and row: voxels from one to the next. Other planes, and what the
 * last chunks have beyond rows and voxels, are 0. out: chunks of so many bytes, those along x in a row; aligned to 64.
 * A plane of a chunk must be whole groups of rows, and a group whole tiles, as shuffles() says. */
__attribute__((target("avx2")))
void shuffle_slices_uint16(const uint16_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t there, ptrdiff_t ny,
                           ptrdiff_t nx, ptrdiff_t z, ptrdiff_t nz, ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t rows,
                           ptrdiff_t block, ptrdiff_t chunk_bytes, uint8_t *out)
{
    ptrdiff_t along_x = (nx + cx - 1) / cx, along_y = (ny + cy - 1) / cy;
    uint16_t last[AT_ONCE];
    for (ptrdiff_t i = 0; i < nz; i++)
        for (ptrdiff_t y = 0; y < along_y * cy; y += rows)
            for (ptrdiff_t chunk = 0; chunk < along_x; chunk++) {
                ptrdiff_t voxel = ((z + i) * cy + y % cy) * cx, r = 0, x = chunk * cx;
                uint8_t *to = out + (y / cy * along_x + chunk) * chunk_bytes;
                for (ptrdiff_t end = voxel + rows * cx; voxel < end; voxel += TILE) {
                    uint32_t tile[16][TILE / AT_ONCE] __attribute__((aligned(64)));
                    for (int k = 0; k < TILE / AT_ONCE; k++) {
                        const uint16_t *from = zeros;
                        if (i < there && y + r < ny && x < nx) {
                            from = in + i * plane + (y + r) * row + x;
                            if (nx - x < AT_ONCE) {
                                memset(last, 0, sizeof last);
                                from = memcpy(last, from, (size_t)(nx - x) * sizeof *from);
                            }
                        }
                        shuffle(from, tile, k);
                        if ((x += AT_ONCE) == (chunk + 1) * cx) {
                            x = chunk * cx;
                            r++;
                        }
                    }
                    uint8_t *line = to + voxel / block * block * 2 + voxel % block / 8;
                    for (int bit = 0; bit < 16; bit++, line += block / 8) {
                        const __m256i *bits = (const __m256i *)tile[bit];
                        _mm256_stream_si256((__m256i *)line, _mm256_load_si256(bits));
                        _mm256_stream_si256((__m256i *)line + 1, _mm256_load_si256(bits + 1));
                    }
                }
            }
    _mm_sfence();
}

/* Whether shuffle_slices_uint16 runs here, in groups of so many rows. */
int shuffles(ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t rows, ptrdiff_t block, ptrdiff_t bytes)
{
    return __builtin_cpu_supports("avx2") && cx % AT_ONCE == 0 && rows * cx % TILE == 0 && cy % rows == 0 &&
           block % TILE == 0 && bytes % (2 * block) == 0;
}

#else

void shuffle_slices_uint16(const uint16_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t there, ptrdiff_t ny,
                           ptrdiff_t nx, ptrdiff_t z, ptrdiff_t nz, ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t rows,
                           ptrdiff_t block, ptrdiff_t chunk_bytes, uint8_t *out)
{
}

int shuffles(ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t rows, ptrdiff_t block, ptrdiff_t bytes)
{
    return 0;
}

#endif

static void put(uint8_t *at, ptrdiff_t number)
{
    int32_t value = (int32_t)number;
    memcpy(at, &value, 4);
}

/* A chunk of so many shuffled bytes; the bytes written to out, which must hold these, 16, and 12 a block. */
ptrdiff_t blosc_lz4_uint16(const uint8_t *in, ptrdiff_t bytes, ptrdiff_t block, int acceleration,
                           compress_fast *compress, uint8_t *out)
{
    ptrdiff_t blocks = bytes / (2 * block);
    uint8_t *at = out + 16 + 4 * blocks;
    for (ptrdiff_t i = 0; i < 2 * blocks; i++, in += block) { /* by the voxels' low bytes, and by their high ones */
        if (i % 2 == 0)
            put(out + 16 + 2 * i, at - out);
        int found = compress((const char *)in, (char *)at + 4, (int)block, (int)block, acceleration);
        if (found <= 0 || found == block) { /* as they are */
            memcpy(at + 4, in, (size_t)block);
            found = (int)block;
        }
        put(at, found);
        at += 4 + found;
    }
    out[0] = 2;            /* Blosc's format */
    out[1] = 1;            /* LZ4's */
    out[2] = 1 << 5 | 0x4; /* LZ4, bitshuffle */
    out[3] = 2;            /* bytes of a voxel */
    put(out + 4, bytes);
    put(out + 8, 2 * block);
    put(out + 12, at - out);
    return at - out;
}

/* Chunks of uint16 in Blosc's format, bitshuffled and compressed by LZ4, to the byte what c-blosc 1.21 makes of them.
 *
 *     | header, 16 bytes | where each block begins | block: low bytes' length, LZ4; high bytes' length, LZ4 | block | …
 *
 * c-blosc as it is distributed shuffles in three passes by 128-bit instructions, of a chunk that is contiguous. Here it
 * is one pass by wider ones, of slices as they come: whole rows of them, which is how memory is quickest, go to all
 * chunks that they cross. What is shuffled goes past the caches, for LZ4 reads it when a layer of chunks is whole.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { CRC_ROW = 1024 }; /* bytes: rows are summed up several at a time */

int crc32c_rows(uint32_t *crc, const uint8_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny,
                ptrdiff_t bytes); /* crc32c_rows.c */

typedef int compress_fast(const char *in, char *out, int in_bytes, int out_bytes, int acceleration); /* LZ4's */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

enum { AT_ONCE = 32, LOADS = 16, TILE = LOADS * AT_ONCE }; /* a tile's voxels fill a cache line with each bit */
enum { FEW = 4 }; /* chunks along x at a time: of many the processor forgets where their pages are */

static const uint16_t zeros[AT_ONCE];

/* Bit b of voxel i becomes bit i % 8 of byte i / 8 of line b; lines are so many bytes apart. */
typedef void shuffle(const uint16_t *const from[LOADS], uint8_t *line, ptrdiff_t apart);

__attribute__((target("avx2")))
static void by_avx2(const uint16_t *const from[LOADS], uint8_t *line, ptrdiff_t apart)
{
    uint32_t tile[16][LOADS] __attribute__((aligned(64)));
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    for (int i = 0; i < LOADS; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)from[i]), b = _mm256_loadu_si256((const __m256i *)from[i] + 1);
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
    for (int bit = 0; bit < 16; bit++, line += apart)
        for (int half = 0; half < 2; half++)
            _mm256_stream_si256((__m256i *)line + half, _mm256_load_si256((const __m256i *)tile[bit] + half));
}

#if __GNUC__ >= 10 || __clang_major__ >= 12
#define GFNI "avx512f,avx512bw,avx512vbmi,gfni"

/* Eight lines, from eight registers that have eight bytes of each. */
__attribute__((target(GFNI))) static inline void put_lines(const __m512i *bits, uint8_t *line, ptrdiff_t apart)
{
    for (int odd = 0; odd < 2; odd++) {
        __m512i pair[4];
        for (int i = 0; i < 4; i++)
            pair[i] = odd ? _mm512_unpackhi_epi64(bits[2 * i], bits[2 * i + 1])
                          : _mm512_unpacklo_epi64(bits[2 * i], bits[2 * i + 1]);
        __m512i a = _mm512_shuffle_i64x2(pair[0], pair[1], 0x44), b = _mm512_shuffle_i64x2(pair[2], pair[3], 0x44);
        __m512i c = _mm512_shuffle_i64x2(pair[0], pair[1], 0xee), d = _mm512_shuffle_i64x2(pair[2], pair[3], 0xee);
        _mm512_stream_si512((void *)(line + odd * apart), _mm512_shuffle_i64x2(a, b, 0x88));
        _mm512_stream_si512((void *)(line + (2 + odd) * apart), _mm512_shuffle_i64x2(a, b, 0xdd));
        _mm512_stream_si512((void *)(line + (4 + odd) * apart), _mm512_shuffle_i64x2(c, d, 0x88));
        _mm512_stream_si512((void *)(line + (6 + odd) * apart), _mm512_shuffle_i64x2(c, d, 0xdd));
    }
}

/* Which of two registers' 128 bytes are turned: eight voxels' low or high ones, the last first; and where bits go. */
#define OF_8(n) (n) + 14, (n) + 12, (n) + 10, (n) + 8, (n) + 6, (n) + 4, (n) + 2, n
#define OF_32(n) OF_8(n), OF_8(n + 16), OF_8(n + 32), OF_8(n + 48)
#define COLUMN(n) n, n + 8, n + 16, n + 24, n + 32, n + 40, n + 48, n + 56
static const uint8_t low_bytes[64] = {OF_32(0), OF_32(64)}, high_bytes[64] = {OF_32(1), OF_32(65)};
static const uint8_t columns[64] = {COLUMN(0), COLUMN(1), COLUMN(2), COLUMN(3),
                                    COLUMN(4), COLUMN(5), COLUMN(6), COLUMN(7)};

/* A sixth of the instructions: one turns eight times eight bits. */
__attribute__((target(GFNI)))
static void by_gfni(const uint16_t *const from[LOADS], uint8_t *line, ptrdiff_t apart)
{
    const __m512i low = _mm512_loadu_si512(low_bytes), high = _mm512_loadu_si512(high_bytes);
    const __m512i column = _mm512_loadu_si512(columns), each_bit = _mm512_set1_epi64((int64_t)0x8040201008040201);
    __m512i lows[8], highs[8];
    for (int i = 0; i < 8; i++) {
        __m512i a = _mm512_loadu_si512(from[2 * i]), b = _mm512_loadu_si512(from[2 * i + 1]);
        __m512i l = _mm512_gf2p8affine_epi64_epi8(each_bit, _mm512_permutex2var_epi8(a, low, b), 0);
        __m512i h = _mm512_gf2p8affine_epi64_epi8(each_bit, _mm512_permutex2var_epi8(a, high, b), 0);
        lows[i] = _mm512_permutexvar_epi8(column, l);
        highs[i] = _mm512_permutexvar_epi8(column, h);
    }
    put_lines(lows, line, apart);
    put_lines(highs, line + 8 * apart, apart);
}

static int has_gfni(void)
{
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
}
#else
#define by_gfni by_avx2

static int has_gfni(void)
{
    return 0;
}
#endif

/* As shuffle_slices_uint16, of the chunks along x from `left` to `right`. */
static void shuffle_chunks(const uint16_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t there, ptrdiff_t ny,
                           ptrdiff_t nx, ptrdiff_t z, ptrdiff_t nz, ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t rows,
                           ptrdiff_t block, ptrdiff_t chunk_bytes, uint8_t *out, shuffle *shuffled, ptrdiff_t left,
                           ptrdiff_t right)
{
    ptrdiff_t along_x = (nx + cx - 1) / cx, along_y = (ny + cy - 1) / cy;
    uint16_t last[LOADS][AT_ONCE];
    for (ptrdiff_t i = 0; i < nz; i++)
        for (ptrdiff_t y = 0; y < along_y * cy; y += rows)
            for (ptrdiff_t chunk = left; chunk < right; chunk++) {
                ptrdiff_t voxel = ((z + i) * cy + y % cy) * cx, r = 0, x = chunk * cx;
                uint8_t *to = out + (y / cy * along_x + chunk) * chunk_bytes;
                for (ptrdiff_t end = voxel + rows * cx; voxel < end; voxel += TILE) {
                    const uint16_t *from[LOADS];
                    for (int k = 0; k < LOADS; k++) {
                        from[k] = zeros;
                        if (i < there && y + r < ny && x < nx) {
                            from[k] = in + i * plane + (y + r) * row + x;
                            if (nx - x < AT_ONCE) {
                                memset(last[k], 0, sizeof last[k]);
                                from[k] = memcpy(last[k], from[k], (size_t)(nx - x) * sizeof *in);
                            }
                        }
                        if ((x += AT_ONCE) == (chunk + 1) * cx) {
                            x = chunk * cx;
                            r++;
                        }
                    }
                    shuffled(from, to + voxel / block * block * 2 + voxel % block / 8, block / 8);
                }
            }
}

/* Slices z to z + nz of a layer of chunks of cy rows of cx voxels, as Blosc shuffles each block of so many voxels.
 *
 * in: `there` planes of ny rows of nx voxels; plane and row: voxels from one to the next. Other planes, and what the
 * last chunks have beyond rows and voxels, are 0. out: chunks of so many bytes, those along x in a row; aligned to 64.
 * A plane of a chunk must be whole groups of rows, and a group whole tiles, as shuffles() says. newest: whether
 * instructions may be taken that only newer processors have. */
void shuffle_slices_uint16(const uint16_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t there, ptrdiff_t ny,
                           ptrdiff_t nx, ptrdiff_t z, ptrdiff_t nz, ptrdiff_t cy, ptrdiff_t cx, ptrdiff_t rows,
                           ptrdiff_t block, ptrdiff_t chunk_bytes, uint8_t *out, int newest)
{
    ptrdiff_t along_x = (nx + cx - 1) / cx;
    shuffle *shuffled = newest && has_gfni() ? by_gfni : by_avx2;
    for (ptrdiff_t left = 0; left < along_x; left += FEW)
        shuffle_chunks(in, plane, row, there, ny, nx, z, nz, cy, cx, rows, block, chunk_bytes, out, shuffled, left,
                       left + FEW < along_x ? left + FEW : along_x);
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
                           ptrdiff_t block, ptrdiff_t chunk_bytes, uint8_t *out, int newest)
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
static ptrdiff_t blosc_lz4(const uint8_t *in, ptrdiff_t bytes, ptrdiff_t block, int acceleration,
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

static int is_zero(const uint8_t *in, ptrdiff_t bytes)
{
    static const uint8_t zero[1024];
    ptrdiff_t i = 0;
    for (; i + 1024 <= bytes; i += 1024)
        if (memcmp(in + i, zero, 1024))
            return 0;
    return !memcmp(in + i, zero, (size_t)(bytes - i));
}

/* Chunks of so many shuffled bytes each, one after the other, and the crc32c of each behind it; of one that is 0
 * throughout nothing. As many as fit into so much room if each takes `most`: their number is returned, and what each
 * takes is in `taken`. Only where shuffles() says yes. */
ptrdiff_t blosc_lz4_uint16(const uint8_t *in, ptrdiff_t chunks, ptrdiff_t bytes, ptrdiff_t block, int acceleration,
                           compress_fast *compress, uint8_t *out, ptrdiff_t most, ptrdiff_t room, int64_t *taken)
{
    ptrdiff_t i = 0;
    for (; i < chunks && most <= room; i++, in += bytes) {
        taken[i] = 0;
        if (is_zero(in, bytes))
            continue;
        ptrdiff_t n = blosc_lz4(in, bytes, block, acceleration, compress, out), rows = n / CRC_ROW;
        uint32_t crc = 0;
        crc32c_rows(&crc, out, 0, CRC_ROW, 1, rows, CRC_ROW);
        crc32c_rows(&crc, out + rows * CRC_ROW, 0, 0, 1, 1, n - rows * CRC_ROW);
        memcpy(out + n, &crc, sizeof crc);
        taken[i] = n + 4;
        out += taken[i];
        room -= taken[i];
    }
    return i;
}

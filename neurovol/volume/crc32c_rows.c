/* The crc32c of rows that lie apart, as if they were one after the other. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

enum { LANES = 4 }; /* rows at once: an instruction takes three times as long as until the next can begin */

__attribute__((target("sse4.2"))) static inline uint32_t eight_bytes(uint32_t crc, const uint8_t *in)
{
    uint64_t word;
    memcpy(&word, in, 8);
    return (uint32_t)_mm_crc32_u64(crc, word);
}

/* What a row has beyond whole words. */
__attribute__((target("sse4.2"))) static inline uint32_t rest(uint32_t crc, const uint8_t *in, ptrdiff_t bytes)
{
    for (ptrdiff_t i = bytes / 8 * 8; i < bytes; i++)
        crc = _mm_crc32_u8(crc, in[i]);
    return crc;
}

/* What becomes of each byte of a remainder when as many zeros follow as a row has bytes: remainders add up. */
__attribute__((target("sse4.2"))) static void after_row(uint32_t table[4][256], ptrdiff_t bytes)
{
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (ptrdiff_t i = 0; i < bytes / 8; i++)
            crc = (uint32_t)_mm_crc32_u64(crc, 0);
        for (ptrdiff_t i = 0; i < bytes % 8; i++)
            crc = _mm_crc32_u8(crc, 0);
        table[bit / 8][1 << bit % 8] = crc;
    }
    for (int byte = 0; byte < 4; byte++) {
        table[byte][0] = 0;
        for (int value = 1; value < 256; value++)
            table[byte][value] = table[byte][value & (value - 1)] ^ table[byte][value & -value];
    }
}

__attribute__((target("sse4.2")))
static uint32_t rows(uint32_t crc, const uint8_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny,
                     ptrdiff_t bytes)
{
    uint32_t table[4][256];
    if (ny >= LANES)
        after_row(table, bytes);
    for (ptrdiff_t z = 0; z < nz; z++) {
        const uint8_t *a = in + z * plane;
        ptrdiff_t y = 0;
        for (; y + LANES <= ny; y += LANES, a += LANES * row) {
            uint32_t lane[LANES] = {crc};
            for (ptrdiff_t i = 0; i + 8 <= bytes; i += 8) {
                if (i % 64 == 0)
                    for (int k = 0; k < LANES; k++)
                        __builtin_prefetch(a + (k + LANES) * row + i);
                for (int k = 0; k < LANES; k++)
                    lane[k] = eight_bytes(lane[k], a + k * row + i);
            }
            crc = rest(lane[0], a, bytes);
            for (int k = 1; k < LANES; k++)
                crc = rest(lane[k], a + k * row, bytes) ^ table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^
                      table[2][crc >> 16 & 0xff] ^ table[3][crc >> 24];
        }
        for (; y < ny; y++, a += row) {
            for (ptrdiff_t i = 0; i + 8 <= bytes; i += 8)
                crc = eight_bytes(crc, a + i);
            crc = rest(crc, a, bytes);
        }
    }
    return crc;
}

#if __GNUC__ >= 10 || __clang_major__ >= 12
enum { AT_ONCE = 256 }; /* bytes */

/* What 16 bytes add to the remainder of those that lie AT_ONCE further on: their first and their last eight are
 * multiplied by x^(8 * AT_ONCE + 31) and x^(8 * AT_ONCE - 33) modulo Castagnoli's polynomial, lowest bit first. (Gopal et
 * al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009.) */
#define FIRST 0xdcb17aa4
#define LAST 0xb9e02b86

/* A sixth of the instructions: of rows that are whole multiples of AT_ONCE, and one at least. */
__attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))
static uint32_t folded(uint32_t crc, const uint8_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny,
                       ptrdiff_t bytes)
{
    const __m512i by = _mm512_set_epi64(LAST, FIRST, LAST, FIRST, LAST, FIRST, LAST, FIRST);
    __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512i next = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)); /* goes into the first bytes */
    for (ptrdiff_t z = 0; z < nz; z++)
        for (ptrdiff_t y = 0; y < ny; y++) {
            const uint8_t *a = in + z * plane + y * row;
            for (ptrdiff_t i = 0; i < bytes; i += AT_ONCE) {
                for (int k = 0; k < 4; k++) {
                    __m512i first = _mm512_clmulepi64_epi128(sum[k], by, 0x00);
                    __m512i last = _mm512_clmulepi64_epi128(sum[k], by, 0x11);
                    sum[k] = _mm512_ternarylogic_epi64(first, last, _mm512_loadu_si512(a + i + 64 * k), 0x96);
                }
                sum[0] = _mm512_xor_si512(sum[0], next);
                next = _mm512_setzero_si512();
            }
        }
    uint8_t left[AT_ONCE];
    for (int k = 0; k < 4; k++)
        _mm512_storeu_si512(left + 64 * k, sum[k]);
    crc = 0;
    for (int i = 0; i < AT_ONCE; i += 8)
        crc = eight_bytes(crc, left + i);
    return crc;
}

static int folds(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
}
#else
enum { AT_ONCE = 1 };
#define folded rows

static int folds(void)
{
    return 0;
}
#endif

/* Continues *crc, 0 to begin with, and says 1; 0 where it cannot be done here. Of nz planes of ny rows of so many
 * bytes; plane and row: bytes from one to the next. */
int crc32c_rows(uint32_t *crc, const uint8_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny,
                ptrdiff_t bytes)
{
    if (!__builtin_cpu_supports("sse4.2"))
        return 0;
    int whole = nz > 0 && ny > 0 && bytes > 0 && bytes % AT_ONCE == 0;
    *crc = ~(whole && folds() ? folded : rows)(~*crc, in, plane, row, nz, ny, bytes);
    return 1;
}

#else

int crc32c_rows(uint32_t *crc, const uint8_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny,
                ptrdiff_t bytes)
{
    return 0;
}

#endif

/* Of columns side by side, of so many bytes each: each continues its own. */
int crc32c_columns(uint32_t *crcs, const uint8_t *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny,
                   const ptrdiff_t *bytes, ptrdiff_t columns)
{
    for (ptrdiff_t k = 0; k < columns; in += bytes[k++])
        if (!crc32c_rows(crcs + k, in, plane, row, nz, ny, bytes[k]))
            return 0;
    return 1;
}

/* Means of whole windows of 1 or 2 by 1 or 2 by 2 voxels (z, y, x), rounded half up; pyramid.py says what they are.
 *
 * in: nz * fz planes of ny * fy rows of 2 * nx voxels; plane and row: voxels from one to the next.
 * out: nz planes of ny rows of nx voxels, likewise.
 */
#include <stddef.h>
#include <stdint.h>

/* One library for every processor of a cluster: the loops are made for several, and one is taken as it is loaded. */
#ifdef CLONES
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#define PAIR(row) ((SUM)(row)[2 * x] + (SUM)(row)[2 * x + 1])

/* VOXEL: their type; SUM: one that holds eight of them, the narrower the more are added at once */
#define HALVE(NAME, VOXEL, SUM_TYPE)                                                                              \
    FOR_EACH_PROCESSOR                                                                                            \
    void NAME(const VOXEL *in, ptrdiff_t in_plane, ptrdiff_t in_row, VOXEL *out, ptrdiff_t out_plane,             \
              ptrdiff_t out_row, ptrdiff_t nz, ptrdiff_t ny, ptrdiff_t nx, ptrdiff_t fz, ptrdiff_t fy)            \
    {                                                                                                             \
        typedef SUM_TYPE SUM;                                                                                     \
        for (ptrdiff_t z = 0; z < nz; z++)                                                                        \
            for (ptrdiff_t y = 0; y < ny; y++) {                                                                  \
                const VOXEL *a = in + z * fz * in_plane + y * fy * in_row;                                        \
                const VOXEL *b = fz == 2 ? a + in_plane : a + in_row; /* the second row, where there is one */    \
                VOXEL *restrict o = out + z * out_plane + y * out_row;                                            \
                if (fz * fy == 4) {                                                                               \
                    const VOXEL *c = a + in_row, *d = b + in_row;                                                 \
                    for (ptrdiff_t x = 0; x < nx; x++)                                                            \
                        o[x] = (VOXEL)((SUM)(PAIR(a) + PAIR(b) + PAIR(c) + PAIR(d) + 4) >> 3);                    \
                } else if (fz * fy == 2) {                                                                        \
                    for (ptrdiff_t x = 0; x < nx; x++)                                                            \
                        o[x] = (VOXEL)((SUM)(PAIR(a) + PAIR(b) + 2) >> 2);                                        \
                } else {                                                                                          \
                    for (ptrdiff_t x = 0; x < nx; x++)                                                            \
                        o[x] = (VOXEL)((SUM)(PAIR(a) + 1) >> 1);                                                  \
                }                                                                                                 \
            }                                                                                                     \
    }

HALVE(halve_uint8, uint8_t, uint16_t)
HALVE(halve_uint16, uint16_t, uint32_t)

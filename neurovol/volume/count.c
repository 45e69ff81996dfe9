/* How often each value occurs, in every so-manieth row: of plane z those rows y where y + z + first is a multiple. */
#include <stddef.h>
#include <stdint.h>

/* in: nz planes of ny rows of nx voxels; plane and row: voxels from one to the next. counts: one of each value. */
#define COUNT(NAME, VOXEL)                                                                                          \
    void NAME(int64_t *counts, const VOXEL *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz, ptrdiff_t ny,         \
              ptrdiff_t nx, ptrdiff_t every, ptrdiff_t first)                                                       \
    {                                                                                                               \
        for (ptrdiff_t z = 0; z < nz; z++)                                                                          \
            for (ptrdiff_t y = (every - (z + first) % every) % every; y < ny; y += every) {                         \
                const VOXEL *a = in + z * plane + y * row;                                                          \
                for (ptrdiff_t x = 0; x < nx; x++)                                                                  \
                    counts[a[x]]++;                                                                                 \
            }                                                                                                       \
    }

COUNT(count_uint8, uint8_t)
COUNT(count_uint16, uint16_t)

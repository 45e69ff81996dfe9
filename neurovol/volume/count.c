/* How often each value occurs, in every so-manieth row: of plane z those rows y where y + z + first is a multiple. */
#include <stddef.h>
#include <stdint.h>

/* in: nz planes of ny rows, of columns side by side that are so many voxels wide each; plane and row: voxels from one
 * to the next. counts: one of each value for the first columns, and `apart` further on for the next ones. */
#define COUNT(NAME, VOXEL)                                                                                          \
    void NAME(int64_t *counts, ptrdiff_t apart, const VOXEL *in, ptrdiff_t plane, ptrdiff_t row, ptrdiff_t nz,      \
              ptrdiff_t ny, const ptrdiff_t *widths, ptrdiff_t columns, ptrdiff_t every, ptrdiff_t first)           \
    {                                                                                                               \
        for (ptrdiff_t k = 0; k < columns; counts += apart, in += widths[k++])                                      \
            for (ptrdiff_t z = 0; z < nz; z++)                                                                      \
                for (ptrdiff_t y = (every - (z + first) % every) % every; y < ny; y += every) {                     \
                    const VOXEL *a = in + z * plane + y * row;                                                      \
                    for (ptrdiff_t x = 0; x < widths[k]; x++)                                                       \
                        counts[a[x]]++;                                                                             \
                }                                                                                                   \
    }

COUNT(count_uint8, uint8_t)
COUNT(count_uint16, uint16_t)

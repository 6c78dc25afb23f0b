// The kernel's source as plain C++: the thread's place is a variable, the grid a loop.
#include <cmath>

#define __global__
#define __device__

struct Place {
    unsigned x, y, z;
};
static thread_local Place threadIdx, blockIdx, blockDim;

#include "prepare.cu"

template <typename Kernel, typename... Arguments>
static void launch(Kernel kernel, const unsigned* grid, const unsigned* block, Arguments... arguments) {
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++) kernel(arguments...);
}

#define EDGESMITH_LAUNCH(NAME, OUT)                                                                        \
    extern "C" void launch_##NAME(const unsigned* grid, const unsigned* block, const Job* jobs, OUT* out,  \
                                  const OUT* table, int rows, int columns, int order, int pad, int plane,  \
                                  int step, int image) {                                                   \
        launch(NAME, grid, block, jobs, out, table, rows, columns, order, pad, plane, step, image);        \
    }

EDGESMITH_LAUNCH(prepare_u8, unsigned char)
EDGESMITH_LAUNCH(prepare_u16, unsigned short)
EDGESMITH_LAUNCH(prepare_u32, unsigned int)

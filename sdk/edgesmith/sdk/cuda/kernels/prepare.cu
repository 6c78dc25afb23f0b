// From BGR frames to the network's input in one pass: resize, pad or crop, colour, arithmetic, layout.
//
// The same answer as sdk/preprocess.py: taps.py gives the weights of each axis, and a table the value
// that each of the 256 rounded pixels becomes, channel by channel, in the bits of the input's type. So
// the kernel knows neither interpolations nor number formats. One thread makes one output pixel.
//
// Compiles as CUDA C (nvcc, NVRTC: no header is included) and, behind a shim for threadIdx and its
// kin, as C++.

// Laid out as the numpy dtype JOB of preprocess.py.
struct Job {
    const unsigned char* source;  // BGR rows without gaps; starts and ends on a multiple of four bytes
    const int* row_start;         // for each row of the region: the first source row
    const float* row_weights;     // [region rows][row_taps]
    const int* column_start;
    const float* column_weights;
    int pitch;  // bytes of a source row
    int row_taps;
    int column_taps;
    int top;  // where the picture lies in the input; outside of it stands the pad value
    int left;
    int bottom;
    int right;
    int unused;
};

enum { ORDER_BGR = 0, ORDER_RGB = 1, ORDER_LUMA = 2 };

struct Pixel {
    float blue, green, red;
};

// Three bytes at a time out of aligned words: a third of the loads that single bytes would take.
struct Bytes {
    const unsigned* next;
    unsigned long long bits;
    int have;

    __device__ explicit Bytes(const unsigned char* at) {
        const unsigned long long address = (unsigned long long)at;
        const int skip = (int)(address & 3) * 8;
        next = (const unsigned*)(address & ~3ull);
        bits = *next++ >> skip;
        have = 32 - skip;
    }

    __device__ unsigned take() {
        if (have < 24) {
            bits |= (unsigned long long)*next++ << have;
            have += 32;
        }
        const unsigned three = (unsigned)bits & 0xffffff;
        bits >>= 24;
        have -= 24;
        return three;
    }
};

// OpenCV's BGR2YCrCb: weights in steps of 1/16384.
__device__ static int luma(unsigned three) {
    return (int)((1868 * (three & 255) + 9617 * (three >> 8 & 255) + 4899 * (three >> 16) + 8192) >> 14);
}

__device__ static Pixel weighted(const Job& job, int y, int x, int order) {
    const int row = job.row_start[y];
    const int column = job.column_start[x];
    const float* across = job.column_weights + (long long)x * job.column_taps;
    const float* down = job.row_weights + (long long)y * job.row_taps;
    Pixel sum = {0.f, 0.f, 0.f};
    for (int i = 0; i < job.row_taps; i++) {
        Bytes bytes(job.source + (long long)(row + i) * job.pitch + 3ll * column);
        Pixel line = {0.f, 0.f, 0.f};
        for (int j = 0; j < job.column_taps; j++) {
            const unsigned three = bytes.take();
            const float weight = across[j];
            if (order == ORDER_LUMA) {
                line.blue += weight * (float)luma(three);
            } else {
                line.blue += weight * (float)(three & 255);
                line.green += weight * (float)(three >> 8 & 255);
                line.red += weight * (float)(three >> 16);
            }
        }
        sum.blue += down[i] * line.blue;
        sum.green += down[i] * line.green;
        sum.red += down[i] * line.red;
    }
    return sum;
}

__device__ static int rounded(float value) {
    return (int)rintf(fminf(fmaxf(value, 0.f), 255.f));
}

// `plane` and `step` are the distances of two channels and of two neighbours in a row, `image` that of
// two inputs of the batch, in elements.
template <typename Out>
__device__ static void prepare(const Job* jobs, Out* out, const Out* table, int rows, int columns, int order,
                               int pad, int plane, int step, int image) {
    const int x = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    const int y = (int)(blockIdx.y * blockDim.y + threadIdx.y);
    if (x >= columns || y >= rows) return;
    const Job job = jobs[blockIdx.z];
    int blue = pad, green = pad, red = pad;
    if (y >= job.top && y < job.bottom && x >= job.left && x < job.right) {
        const Pixel pixel = weighted(job, y - job.top, x - job.left, order);
        blue = rounded(pixel.blue);
        green = rounded(pixel.green);
        red = rounded(pixel.red);
    }
    Out* at = out + (long long)blockIdx.z * image + ((long long)y * columns + x) * step;
    if (order == ORDER_LUMA) {
        at[0] = table[blue];
        return;
    }
    const bool swap = order == ORDER_RGB;
    at[0] = table[swap ? red : blue];
    at[plane] = table[256 + green];
    at[2ll * plane] = table[512 + (swap ? blue : red)];
}

#define EDGESMITH_PREPARE(NAME, OUT)                                                                      \
    extern "C" __global__ void NAME(const Job* jobs, OUT* out, const OUT* table, int rows, int columns,   \
                                    int order, int pad, int plane, int step, int image) {                 \
        prepare<OUT>(jobs, out, table, rows, columns, order, pad, plane, step, image);                    \
    }

EDGESMITH_PREPARE(prepare_u8, unsigned char)    // uint8
EDGESMITH_PREPARE(prepare_u16, unsigned short)  // float16
EDGESMITH_PREPARE(prepare_u32, unsigned int)    // float32

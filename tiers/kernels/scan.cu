// The kernels of a scan: scores of a few questions, and the k best of many scores, without a sort.
//
// Compiled by NVRTC when hot starts on a GPU. The tests compile the same bytes with g++ (tests/tiers/kernels) and run
// every thread of a block as a fiber, so what is not plain C++17 is kept to what that knows: thread and block numbers,
// __shared__ in kernels, __syncthreads, two shuffles, atomicAdd, 16-byte loads. Nothing is included.
//
// Rows lie in memory one after another, each padded with zeros to a multiple of 16 bytes. A mask is a bit a row, from
// row 0 of the memory on, 32 to a word. Positions and rows are ints: a scan reads less than 2^31 rows.

constexpr int LANES = 32;
constexpr unsigned EVERY_LANE = 0xffffffffu;
constexpr int ROWS = 4;        // that a warp reads at once: so many loads are under way, and share the question's
constexpr int THREADS = 256;   // of a block; a multiple of LANES
constexpr int BINS = 2048;     // of the histogram: 11 bits of a key
constexpr int EACH = BINS / THREADS;
constexpr unsigned KEY_BITS[] = {21, 10, 0};  // where the digits of a key begin: 11, 11 and 10 bits

static_assert(BINS % THREADS == 0 && THREADS % LANES == 0, "each thread sums whole bins, warps are whole");

struct Found {
    float value;
    int row;
};

// -- scores -----------------------------------------------------------------------------------------------------------

struct Float32 {
    using Load = float4;
    static constexpr int WIDTH = 4;
    static __device__ void widen(const Load &from, float *to) {
        to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
    }
};

__device__ inline float widened(unsigned short half) {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    return half_to_float(half);  // the tests' own; this branch and the three lines above are all that differs
#endif
}

struct Float16 {
    using Load = uint4;
    static constexpr int WIDTH = 8;
    static __device__ void widen(const Load &from, float *to) {
        const unsigned words[] = {from.x, from.y, from.z, from.w};
#pragma unroll
        for (int at = 0; at < 4; ++at) {
            to[2 * at] = widened(static_cast<unsigned short>(words[at] & 0xffffu));
            to[2 * at + 1] = widened(static_cast<unsigned short>(words[at] >> 16));
        }
    }
};

__device__ inline bool wanted_by_any(const unsigned *masks, long long words, int count, int row) {
    unsigned any = 0;
    for (int mask = 0; mask < count; ++mask) {
        any |= masks[mask * words + (row >> 5)];
    }
    return (any >> (row & 31)) & 1u;
}

// Scores of rows [first, first + rows) for QUESTIONS questions: scores[question * width + row - first]. A row that no
// mask wants is not read, and its scores are not written. A warp takes ROWS rows at a time, its lanes the columns.
template <class Stored, int QUESTIONS>
__device__ void score(const typename Stored::Load *vectors, int loads, int first, int rows, const float *questions,
                      const unsigned *masks, long long words, int mask_count, float *scores, long long width) {
    const int lane = threadIdx.x % LANES;
    const int warps = gridDim.x * (blockDim.x / LANES);
    const int dim = loads * Stored::WIDTH;
    for (int begin = (blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES) * ROWS; begin < rows;
         begin += warps * ROWS) {
        bool wanted[ROWS];
        bool none = true;
#pragma unroll
        for (int at = 0; at < ROWS; ++at) {
            wanted[at] = begin + at < rows && wanted_by_any(masks, words, mask_count, first + begin + at);
            none = none && !wanted[at];
        }
        if (none) {
            continue;
        }
        float sums[QUESTIONS][ROWS] = {};
        for (int load = lane; load < loads; load += LANES) {
            typename Stored::Load loaded[ROWS] = {};
#pragma unroll
            for (int at = 0; at < ROWS; ++at) {
                if (wanted[at]) {
                    loaded[at] = vectors[static_cast<long long>(first + begin + at) * loads + load];
                }
            }
            float values[ROWS][Stored::WIDTH];
#pragma unroll
            for (int at = 0; at < ROWS; ++at) {
                Stored::widen(loaded[at], values[at]);
            }
#pragma unroll
            for (int question = 0; question < QUESTIONS; ++question) {
                const float4 *asked =
                    reinterpret_cast<const float4 *>(questions + question * dim + load * Stored::WIDTH);
#pragma unroll
                for (int part = 0; part < Stored::WIDTH / 4; ++part) {
                    const float4 of = asked[part];
#pragma unroll
                    for (int at = 0; at < ROWS; ++at) {
                        sums[question][at] += of.x * values[at][4 * part] + of.y * values[at][4 * part + 1] +
                                              of.z * values[at][4 * part + 2] + of.w * values[at][4 * part + 3];
                    }
                }
            }
        }
#pragma unroll
        for (int question = 0; question < QUESTIONS; ++question) {
#pragma unroll
            for (int at = 0; at < ROWS; ++at) {
                float sum = sums[question][at];
                for (int apart = LANES / 2; apart > 0; apart /= 2) {
                    sum += __shfl_xor_sync(EVERY_LANE, sum, apart);
                }
                if (lane == 0 && wanted[at]) {
                    scores[question * width + begin + at] = sum;
                }
            }
        }
    }
}

#define SCORE(name, Stored, QUESTIONS)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                           \
        name(const Stored::Load *vectors, int loads, int first, int rows, const float *questions,                   \
             const unsigned *masks, long long words, int mask_count, float *scores, long long width) {              \
        score<Stored, QUESTIONS>(vectors, loads, first, rows, questions, masks, words, mask_count, scores, width);  \
    }

SCORE(score_float32_1, Float32, 1)
SCORE(score_float32_8, Float32, 8)
SCORE(score_float16_1, Float16, 1)
SCORE(score_float16_8, Float16, 8)

// -- the k best -------------------------------------------------------------------------------------------------------

// What a block shares. Each function that uses a part leaves it free for the next: they end with a barrier.
struct Shared {
    int bins[BINS];
    int warps[THREADS / LANES];
    int total;
    int digit;
    int above;
};

// The sum of `own` over the threads before this one; `total` over all.
__device__ int before(int own, Shared &shared, int &total) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    int sum = own;
    for (int apart = 1; apart < LANES; apart *= 2) {
        const int other = __shfl_up_sync(EVERY_LANE, sum, apart);
        sum += lane >= apart ? other : 0;
    }
    if (lane == LANES - 1) {
        shared.warps[warp] = sum;
    }
    __syncthreads();
    int earlier = 0;
    total = 0;
    for (int other = 0; other < THREADS / LANES; ++other) {
        earlier += other < warp ? shared.warps[other] : 0;
        total += shared.warps[other];
    }
    __syncthreads();
    return earlier + sum - own;
}

// Keys order as the floats do, as unsigned numbers.
__device__ inline unsigned key_of(float value) {
    const unsigned bits = __float_as_uint(value);
    return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

__device__ inline float value_of(unsigned key) {
    return __uint_as_float(key ^ ((key >> 31) ? 0x80000000u : 0xffffffffu));
}

// The k-th highest key of the candidates, of which there are more than k; `ties` is how many that have it belong to
// the k. One digit after the other, each by a histogram of those that share the digits before.
template <class Input>
__device__ unsigned kth(const Input &input, int begin, int end, int k, Shared &shared, int &ties) {
    unsigned found = 0, known = 0;
    int left = k;
    for (int digit = 0; digit < 3; ++digit) {
        const unsigned shift = KEY_BITS[digit];
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
            shared.bins[bin] = 0;
        }
        __syncthreads();
        for (int at = begin + threadIdx.x; at < end; at += THREADS) {
            Found each;
            if (input.candidate(at, each)) {
                const unsigned key = key_of(each.value);
                if ((key & known) == found) {
                    atomicAdd(&shared.bins[(key >> shift) % BINS], 1);
                }
            }
        }
        __syncthreads();
        int own = 0;  // thread t has the EACH bins below those of thread t - 1: the highest come first
        const int top = BINS - 1 - threadIdx.x * EACH;
        for (int bin = 0; bin < EACH; ++bin) {
            own += shared.bins[top - bin];
        }
        int total;
        int above = before(own, shared, total);
        if (above < left && above + own >= left) {
            int bin = top;
            while (above + shared.bins[bin] < left) {
                above += shared.bins[bin--];
            }
            shared.digit = bin;
            shared.above = above;
        }
        __syncthreads();
        found |= static_cast<unsigned>(shared.digit) << shift;
        known |= (digit == 2 ? 0x3ffu : 0x7ffu) << shift;
        left -= shared.above;
        __syncthreads();
    }
    ties = left;
    return found;
}

// Write the k best candidates of [begin, end) to `out`, in the order of their positions; of those equal to the k-th
// the first ones. Places without a candidate get row -1. Where there were more than k, `floor` becomes the k-th value.
// `out` may be the input itself from `begin` on or before: nothing is written before what lies there has been read.
template <class Input>
__device__ void select(const Input &input, int begin, int end, int k, Shared &shared, Found *out, float *floor) {
    int count = 0, total;
    for (int at = begin + threadIdx.x; at < end; at += THREADS) {
        Found each;
        count += input.candidate(at, each) ? 1 : 0;
    }
    before(count, shared, total);
    unsigned least = 0;
    int ties = k;
    if (total > k) {
        least = kth(input, begin, end, k, shared, ties);
    }
    int written = 0, equal = 0;
    for (int strip = begin; strip < end; strip += THREADS) {
        const int at = strip + threadIdx.x;
        Found each = {};
        int higher = 0, same = 0;
        if (at < end && input.candidate(at, each)) {
            const unsigned key = key_of(each.value);
            higher = key > least ? 1 : 0;
            same = key == least ? 1 : 0;
        }
        int both;  // two counts in one: neither exceeds THREADS
        const int ahead = before(higher | (same << 16), shared, both);
        const int equal_ahead = equal + (ahead >> 16);
        if (higher || (same && equal_ahead < ties)) {
            out[written + (ahead & 0xffff) + min(equal_ahead, ties) - min(equal, ties)] = each;
        }
        written += (both & 0xffff) + min(equal + (both >> 16), ties) - min(equal, ties);
        equal += both >> 16;
    }
    for (int at = written + threadIdx.x; at < k; at += THREADS) {
        out[at] = {0, -1};
    }
    if (floor != nullptr && total > k && threadIdx.x == 0) {
        *floor = value_of(least);
    }
}

// Scores of one question over a tile: candidates are the rows that its mask wants, better than what it has already.
struct Scores {
    const float *scores;
    const unsigned *mask;
    int first;
    float floor;
    __device__ bool candidate(int at, Found &found) const {
        const int row = first + at;
        if (!((mask[row >> 5] >> (row & 31)) & 1u)) {
            return false;
        }
        found = {scores[at], row};
        return found.value > floor;  // a NaN is not
    }
};

// What was found before: all of it, but for empty places.
struct Kept {
    const Found *found;
    __device__ bool candidate(int at, Found &each) const {
        each = found[at];
        return each.row >= 0;
    }
};

// One block a chunk of a tile and a question. Each writes its `keep` best to pool[question * columns + after + ...].
extern "C" __global__ void __launch_bounds__(THREADS)
    select_scores(const float *scores, long long width, int first, int rows, int chunk, int keep, const unsigned *masks,
                  long long words, const int *mask_of, const float *floors, Found *pool, long long columns, int after) {
    __shared__ Shared shared;
    const int question = blockIdx.y;
    const int begin = blockIdx.x * chunk, end = min(begin + chunk, rows);
    const Scores input = {scores + question * width, masks + mask_of[question] * words, first, floors[question]};
    Found *out = pool + question * columns + after + static_cast<long long>(blockIdx.x) * keep;
    select(input, begin, end, keep, shared, out, static_cast<float *>(nullptr));
}

// One block a question: the k best of pool[question * columns + (begin .. end)] to out[question * out_columns + ...].
extern "C" __global__ void __launch_bounds__(THREADS)
    select_found(const Found *pool, long long columns, int begin, int end, int k, Found *out, long long out_columns,
                 float *floors) {
    __shared__ Shared shared;
    const int question = blockIdx.x;
    const Kept input = {pool + question * columns};
    select(input, begin, end, k, shared, out + question * out_columns, floors + question);
}

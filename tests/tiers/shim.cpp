// CUDA's words on a CPU, so that the product's kernels run unchanged where there is no GPU (tests/tiers/shim.py).
//
// Every thread of a block is a fiber. It runs until it waits: for its block at a barrier, for its warp in a shuffle, or
// at its end; then the next one runs, in an order that the caller chooses. So a thread that reads what another has yet
// to write, because a barrier lacks, reads what was there before: shared memory is filled with garbage for each block.
// A barrier or shuffle that some threads never reach is an error. Blocks run one after another.
//
// The name of the file with the kernels is given as KERNELS.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __shared__ static __attribute__((section("shared_memory")))
using std::min;

struct Three {
    int x = 0, y = 0, z = 0;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

static Three threadIdx, blockIdx, blockDim, gridDim;

extern "C" char __start_shared_memory[], __stop_shared_memory[];

namespace {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 64 << 10;
enum State { READY, BARRIER, SHUFFLE, DONE };

struct Fiber {
    jmp_buf at;
    ucontext_t first;
    std::vector<char> stack = std::vector<char>(STACK_BYTES);
    State state = READY;
    bool begun = false;
    unsigned posted = 0, seen = 0;
};

std::vector<Fiber *> fibers;
jmp_buf scheduler;
ucontext_t scheduler_first;
int current;
void (*body)(const long long *);
const long long *arguments;
std::string complaint;

void wait_as(State state) {
    fibers[current]->state = state;
    if (_setjmp(fibers[current]->at) == 0) {
        _longjmp(scheduler, 1);
    }
}

void enter() {
    body(arguments);
    fibers[current]->state = DONE;
    _longjmp(scheduler, 1);
}

void resume(int thread) {
    current = thread;
    threadIdx.x = thread;
    Fiber &fiber = *fibers[thread];
    if (_setjmp(scheduler) == 0) {
        if (fiber.begun) {
            _longjmp(fiber.at, 1);
        }
        fiber.begun = true;
        getcontext(&fiber.first);
        fiber.first.uc_stack.ss_sp = fiber.stack.data();
        fiber.first.uc_stack.ss_size = fiber.stack.size();
        fiber.first.uc_link = nullptr;
        makecontext(&fiber.first, enter, 0);
        setcontext(&fiber.first);
    }
}

bool all_in(const std::vector<int> &threads, State state) {
    return std::all_of(threads.begin(), threads.end(), [&](int each) { return fibers[each]->state == state; });
}

// Run the threads of a warp for as long as they wait for none but each other.
void run_warp(const std::vector<int> &threads) {
    while (true) {
        for (int thread : threads) {
            if (fibers[thread]->state == READY) {
                resume(thread);
            }
        }
        if (!all_in(threads, SHUFFLE)) {
            return;
        }
        for (int thread : threads) {
            fibers[thread]->seen = fibers[thread]->posted;
            fibers[thread]->state = READY;
        }
    }
}

void run_block(const std::vector<int> &order) {
    std::memset(__start_shared_memory, 0xa5, __stop_shared_memory - __start_shared_memory);
    std::vector<std::vector<int>> warps;  // in the order in which their first threads come
    std::vector<int> place(order.size(), -1);
    for (int thread : order) {
        fibers[thread]->state = READY;
        fibers[thread]->begun = false;
        int &at = place[thread / WARP];
        if (at < 0) {
            at = static_cast<int>(warps.size());
            warps.emplace_back();
        }
        warps[at].push_back(thread);
    }
    while (!all_in(order, DONE)) {
        for (const auto &warp : warps) {
            run_warp(warp);
        }
        if (all_in(order, BARRIER)) {
            for (int thread : order) {
                fibers[thread]->state = READY;
            }
        } else if (!all_in(order, DONE)) {
            complaint = "some threads wait at a barrier or in a shuffle that others never reach";
            return;
        }
    }
}

}  // namespace

static void __syncthreads() { wait_as(BARRIER); }

template <class T>
static T exchanged(T value, int from) {
    static_assert(sizeof(T) == sizeof(unsigned));
    std::memcpy(&fibers[current]->posted, &value, sizeof value);
    const int first = current / WARP * WARP, own = current;
    wait_as(SHUFFLE);
    const int source = from < 0 || from >= WARP ? own : first + from;
    std::memcpy(&value, &fibers[source]->seen, sizeof value);
    return value;
}

template <class T>
static T __shfl_xor_sync(unsigned, T value, int apart) {
    return exchanged(value, (current % WARP) ^ apart);
}

template <class T>
static T __shfl_up_sync(unsigned, T value, int apart) {
    return exchanged(value, current % WARP - apart);
}

static int atomicAdd(int *place, int value) {
    const int before = *place;
    *place += value;
    return before;
}

static unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static float half_to_float(unsigned short half) {  // finite halves: the exponent moved by 112
    const unsigned sign = static_cast<unsigned>(half & 0x8000u) << 16;
    const float size = __uint_as_float(static_cast<unsigned>(half & 0x7fffu) << 13) * 0x1p112f;
    return __uint_as_float(sign | __float_as_uint(size));
}

#include KERNELS

namespace {

template <class T>
T argument(long long word) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(word);
    } else {
        return static_cast<T>(word);
    }
}

template <auto kernel, class... Types, size_t... At>
void call(void (*)(Types...), const long long *words, std::index_sequence<At...>) {
    kernel(argument<Types>(words[At])...);
}

template <auto kernel>
struct Entry;
template <class... Types, void (*kernel)(Types...)>
struct Entry<kernel> {
    static constexpr int count = sizeof...(Types);
    static constexpr char kinds[] = {
        (std::is_pointer_v<Types> ? 'p' : sizeof(Types) == 8 ? 'l' : std::is_same_v<Types, int> ? 'i' : '?')..., 0};
    static void run(const long long *words) { call<kernel>(kernel, words, std::index_sequence_for<Types...>()); }
};

struct Named {
    const char *name;
    int count;
    const char *kinds;
    void (*run)(const long long *);
};

#define NAMED(kernel) {#kernel, Entry<kernel>::count, Entry<kernel>::kinds, Entry<kernel>::run}
const Named KERNEL_TABLE[] = {NAMED(score_float32_1), NAMED(score_float32_8), NAMED(score_float16_1),
                              NAMED(score_float16_8), NAMED(select_scores),   NAMED(select_found)};

}  // namespace

// A letter an argument: p a pointer, i an int, l eight bytes. Null for what is no kernel.
extern "C" const char *kernel_kinds(const char *name) {
    for (const Named &each : KERNEL_TABLE) {
        if (std::string(name) == each.name) {
            return each.kinds;
        }
    }
    return nullptr;
}

// Run a kernel over grid_x * grid_y blocks; `order` names each thread of a block once. Null, or what went wrong.
extern "C" const char *run_kernel(const char *name, int grid_x, int grid_y, int threads, const int *order,
                                  const long long *words, int count) {
    complaint = std::string("there is no kernel ") + name;
    for (const Named &each : KERNEL_TABLE) {
        if (std::string(name) != each.name) {
            continue;
        }
        complaint = "";
        if (count != each.count) {
            complaint = std::string(name) + " takes another number of arguments";
            break;
        }
        body = each.run;
        arguments = words;
        while (static_cast<int>(fibers.size()) < threads) {
            fibers.push_back(new Fiber);
        }
        blockDim.x = threads, gridDim.x = grid_x, gridDim.y = grid_y;
        for (int block = 0; block < grid_x * grid_y && complaint.empty(); ++block) {
            blockIdx.x = block % grid_x, blockIdx.y = block / grid_x;
            run_block(std::vector<int>(order, order + threads));
        }
        break;
    }
    return complaint.empty() ? nullptr : complaint.c_str();
}
